//! `lampyris shim FOLDER`: what a worker starts for one node of one attempt. Not for people.

use crate::error::CliError;
use crate::run_dir::{RunDir, RunLock};
use lampyris_plan::Attempt;
use lampyris_worker::host;
use lampyris_worker::launch::{Folder, Launch};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the attempt
    folder: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<u8, CliError> {
    super::daemon::log_to_stderr();
    let folder = Folder::new(args.folder.clone());
    host::run(&folder, &claim).map_err(|source| CliError::write(folder.path(), source))?;
    Ok(0)
}

/// Locks the run directory against other programs of this machine, and claims the attempt's number in it.
fn claim(launch: &Launch) -> Result<RunLock, String> {
    let run = RunDir::open(&launch.run_dir).map_err(|error| error.to_string())?;
    let lock = run.lock().map_err(|error| error.to_string())?;
    let checkpoints = run.checkpoints().map_err(|error| error.to_string())?;
    checkpoints.claim(Attempt(launch.run_attempt.0)).map_err(|error| error.to_string())?;
    Ok(lock)
}
