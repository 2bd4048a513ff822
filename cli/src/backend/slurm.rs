//! Runs that were handed to Slurm. The run directory is the truth; the queue is asked once for all jobs of a list, and a
//! queue that does not answer only makes the answer older.

use super::local::{self, Local};
use super::{Backend, JobDetails, JobRow, LogSink, LogsWanted, Wanted};
use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen;
use crate::slurm::queue::{self, Row, SlurmError};
use crate::slurm::standing::{Hint, standing};
use crate::slurm::submission::{self, Handed};
use lampyris_worker::shim::control;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Runs of Slurm's in a folder of runs.
#[derive(Debug, Clone)]
pub(crate) struct Slurm {
    /// What the run directories themselves say.
    pub(crate) local: Local,
}

impl Backend for Slurm {
    fn list(&self, wanted: &Wanted) -> Result<Vec<JobRow>, CliError> {
        let (mut rows, mut broken) = (Vec::new(), Vec::new());
        for path in self.local.runs()?.into_iter().filter(|path| submission::is_handed(path)) {
            let read = || {
                let run = RunDir::open(&path)?;
                Ok((local::details(&run)?.row, submission::handed(&run)?))
            };
            match read() {
                Ok((row, handed)) => rows.extend(handed.map(|handed| (row, handed))),
                Err(error) => broken.push(local::broken(&path, &error)),
            }
        }
        lay_over(&mut rows);
        let rows = rows.into_iter().map(|(row, _)| row).chain(broken);
        let shown = |row: &JobRow| wanted.all || !row.phase.is_final();
        Ok(rows.filter(shown).take(wanted.limit).collect())
    }

    fn show(&self, job: &str) -> Result<JobDetails, CliError> {
        let run = run_of(job)?;
        let mut details = self.local.show(&run)?;
        let mut rows = vec![(details.row, handed(&run)?)];
        lay_over(&mut rows);
        details.row = rows.remove(0).0;
        if details.row.phase.is_final() {
            details.ranks.clear();
        }
        Ok(details)
    }

    fn logs(&self, job: &str, wanted: &LogsWanted, out: LogSink<'_>) -> Result<(), CliError> {
        self.local.logs(&run_of(job)?, wanted, out)
    }

    fn stop(&self, job: &str) -> Result<String, CliError> {
        self.suspend(job, "asked with `lampyris stop`")
    }

    /// Ranks that run read the request themselves; a job that waits is taken out of the queue. If the queue does not
    /// answer, the request makes the job end as soon as it starts.
    fn suspend(&self, job: &str, reason: &str) -> Result<String, CliError> {
        let run = run_of(job)?;
        let number = handed(&run)?.job;
        let said = self.local.suspend(&run, reason)?;
        match queue::rows(&[number]).map(|mut rows| rows.remove(&number)) {
            Ok(Some(row)) if row.state == "PENDING" => {
                queue::cancel(number)?;
                return Ok(format!(
                    "job {number} had to wait and is cancelled; `lampyris resume {}` continues the run",
                    screen::word(Path::new(&run))
                ));
            }
            Ok(_) => {}
            Err(error) => screen::note(format_args!("cannot ask Slurm for job {number}: {error}")),
        }
        Ok(said)
    }

    /// Submits the script of the run again, as it was.
    fn resume(&self, job: &str) -> Result<String, CliError> {
        let path = run_of(job)?;
        let (run, nodes) = (RunDir::open(Path::new(&path))?, handed(&path)?.nodes);
        let _lock = run.lock()?;
        refuse_if_queued(&run)?;
        let text = submission::script(&run)?;
        let request = control::suspend_path(run.path());
        control::clear_suspend(run.path()).map_err(|error| CliError::write(&request, error))?;
        Ok(format!("{}{}", submission::PREFIX, submission::submit(&run, &text, nodes)?))
    }
}

/// A run whose job is in Slurm's queue goes on by itself. A queue that does not answer forbids nothing: attempts fence.
pub(crate) fn refuse_if_queued(run: &RunDir) -> Result<(), CliError> {
    let Some(Handed { job, .. }) = submission::handed(run)? else { return Ok(()) };
    match queue::rows(&[job]).map(|mut rows| rows.remove(&job)) {
        Ok(Some(row)) if !row.has_ended() => Err(CliError::Queued { job, state: row.state }),
        Ok(_) => Ok(()),
        Err(error) => {
            screen::note(format_args!("cannot ask Slurm whether job {job} has ended: {error}"));
            Ok(())
        }
    }
}

/// The run directory of a job that a person names by it or as `slurm:N`.
fn run_of(job: &str) -> Result<String, CliError> {
    let Some(number) = job.strip_prefix(submission::PREFIX) else { return Ok(job.into()) };
    let unknown = |what: String| CliError::SlurmJob { job: job.into(), what };
    let number = number.parse().map_err(|_| unknown("that is no number".into()))?;
    let found = queue::run_dir(number).map_err(|error| unknown(error.to_string()))?;
    found.ok_or_else(|| unknown("Slurm has forgotten it, or it is not of lampyris".into()))
}

fn handed(run: &str) -> Result<Handed, CliError> {
    let not_slurms = || CliError::NotOfSlurm { path: PathBuf::from(run) };
    submission::handed(&RunDir::open(Path::new(run))?)?.ok_or_else(not_slurms)
}

/// Lays the queue's word over what the run directories say of themselves, with one question for all of them.
fn lay_over(rows: &mut [(JobRow, Handed)]) {
    let jobs: Vec<u64> = rows.iter().map(|(_, handed)| handed.job).collect();
    let queue = queue::rows(&jobs);
    for (row, handed) in rows {
        // A later attempt was started by hand: Slurm's job is history.
        if handed.attempt > 0 && row.attempt > handed.attempt {
            continue;
        }
        let written = (row.phase, std::mem::take(&mut row.reason));
        (row.phase, row.reason) = standing(&hint(&queue, handed.job), written);
    }
}

fn hint(queue: &Result<BTreeMap<u64, Row>, SlurmError>, job: u64) -> Hint {
    match queue {
        Ok(rows) => rows.get(&job).cloned().map_or(Hint::Gone, Hint::Row),
        Err(error) => Hint::Silent(error.to_string()),
    }
}
