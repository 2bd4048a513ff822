//! `lampyris suspend RUN`: asks a run to checkpoint and stay stopped, by a file in its directory. Works from any node
//! that can write there; the run answers at its next step boundary.

use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen;
use lampyris_worker::shim::control;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run directory
    run: PathBuf,
    /// Why, for whoever reads control/suspend.json
    #[arg(long, default_value = "asked with `lampyris suspend`")]
    reason: String,
}

pub(crate) fn run(args: &Args) -> Result<u8, CliError> {
    let run = RunDir::open(&args.run)?;
    control::request_suspend(run.path(), &args.reason)
        .map_err(|source| CliError::write(&control::suspend_path(run.path()), source))?;
    screen::say(format_args!(
        "{} will checkpoint at its next step boundary and stay stopped; `lampyris resume {}` continues it",
        run.path().display(),
        run.path().display()
    ));
    Ok(0)
}
