//! `lampyris ranks RUN`: what every rank is at, from the files that the shims keep in the run directory. Works on any
//! machine that sees it.

use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen;
use lampyris_worker::shim::status::{self, Status};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// Between two tables of `--follow`; the files change every half second at most.
const FOLLOW_PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run directory
    run: PathBuf,
    /// Show it again every second until the attempt has ended
    #[arg(long, short)]
    follow: bool,
    /// Print JSON: one status per node
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8, CliError> {
    let run = RunDir::open(&args.run)?;
    loop {
        let nodes = status::read(run.path())?;
        match (args.json, args.follow) {
            (true, _) => screen::json(&nodes),
            (false, true) => screen::again(screen::ranks(&nodes, status::unix_ms())),
            (false, false) => screen::say(screen::ranks(&nodes, status::unix_ms())),
        }
        if !args.follow || nodes.iter().all(Status::ended) {
            return Ok(0);
        }
        thread::sleep(FOLLOW_PERIOD);
    }
}
