//! `lampyris shim FOLDER`: what a worker starts for one node of one attempt. Not for people.

use super::Environment;
use crate::error::CliError;
use crate::run_dir::{RunDir, RunLock};
use crate::screen;
use crate::verified;
use lampyris_plan::Attempt;
use lampyris_worker::host::{self, Ready, Wrong};
use lampyris_worker::launch::{Folder, Launch};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the attempt
    folder: PathBuf,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    super::daemon::log_to_stderr();
    let folder = Folder::new(args.folder.clone());
    let check = |launch: &Launch| check(launch, &environment.cache_dir);
    let ready = Ready { check: &check, claim: &claim };
    host::run(&folder, &ready).map_err(|source| CliError::write(folder.path(), source))?;
    Ok(0)
}

/// What a rank would not notice, or only once all have been started: a layout that is not the plan's, text that is damaged
/// or not the run's.
fn check(launch: &Launch, cache_dir: &Path) -> Result<(), Wrong> {
    let here = |error: CliError| Wrong::Here(error.to_string());
    let run = RunDir::open(&launch.run_dir).map_err(here)?;
    let planned = run.plan().map_err(here)?.parallel.data;
    let (nodes, each) = (launch.nodes, launch.ranks_per_node);
    // Both are at most a few thousand.
    if nodes * each != planned as u64 {
        let what =
            format!("the plan has {planned} ranks, the job asks for {nodes} nodes of {each}");
        return Err(Wrong::Job(what));
    }
    let path = screen::word(&launch.run_dir);
    let fingerprint =
        verified::verify(&launch.dataset, cache_dir).map_err(|error| match error {
            lampyris_data::Error::Corrupt { .. } => {
                Wrong::Job(format!("{error}; `lampyris adopt {path}` prepares the text again"))
            }
            other => Wrong::Here(other.to_string()),
        })?;
    match run.dataset().map_err(here)? {
        Some(record) if record.fingerprint != fingerprint => {
            let dataset = launch.dataset.display();
            Err(Wrong::Job(format!("{dataset} is not the text that {path} was made for")))
        }
        _ => Ok(()),
    }
}

/// Locks the run directory against other programs of this machine, and claims the attempt's number in it.
fn claim(launch: &Launch) -> Result<RunLock, Wrong> {
    let claimed = || {
        let run = RunDir::open(&launch.run_dir)?;
        let lock = run.lock()?;
        run.checkpoints()?.claim(Attempt(launch.run_attempt.0))?;
        Ok(lock)
    };
    claimed().map_err(not_claimed)
}

fn not_claimed(error: CliError) -> Wrong {
    use lampyris_checkpoint::Error::{AttemptNumber, Lineage, NoneGood};
    match &error {
        // A person must look: on every node the records of the run would say the same.
        CliError::Checkpoint(Lineage { .. } | AttemptNumber { .. } | NoneGood { .. }) => {
            Wrong::Job(error.to_string())
        }
        _ => Wrong::Now(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lampyris_checkpoint::disk::RealDisk;
    use std::io;
    use std::sync::Arc;

    #[test]
    fn records_that_a_person_must_mend_are_the_job_s_fault_and_all_else_is_tried_again() {
        let run = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(run.path().join("checkpoints/step-1.attempt-1")).unwrap();
        let opened = lampyris_checkpoint::Run::open(Arc::new(RealDisk), run.path());
        let wrong = not_claimed(opened.unwrap_err().into());
        assert!(
            matches!(&wrong, Wrong::Job(words) if words.contains("checkpoint repair")),
            "{wrong:?}"
        );
        let locked = CliError::Running { path: run.path().into() };
        assert!(matches!(not_claimed(locked), Wrong::Now(_)));
        let unreadable = CliError::read(run.path(), io::Error::other("a dead disk"));
        assert!(matches!(not_claimed(unreadable), Wrong::Now(_)));
    }
}
