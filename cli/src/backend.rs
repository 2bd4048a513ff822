//! Where jobs live: in run directories of this machine, with the project's scheduler, or with Slurm. A command asks one
//! [`Backend`] and shows what comes back; which one follows from how the job is named.

pub(crate) mod local;
pub(crate) mod scheduler;
pub(crate) mod slurm;

use crate::error::CliError;
use crate::slurm::submission::PREFIX;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One place where jobs live. `job` is what a person types: the backend's own number, or a run directory.
pub(crate) trait Backend {
    /// The jobs it knows, newest first.
    fn list(&self, wanted: &Wanted) -> Result<Vec<JobRow>, CliError>;

    /// One job, with what each of its ranks is at.
    fn show(&self, job: &str) -> Result<JobDetails, CliError>;

    /// Hands the output of a rank to `out`, piece by piece, until its end or until `out` wants no more.
    fn logs(&self, job: &str, wanted: &LogsWanted, out: LogSink<'_>) -> Result<(), CliError>;

    /// Ends a job after a checkpoint; it does not go on. Gives a line for people.
    fn stop(&self, job: &str) -> Result<String, CliError>;

    /// Checkpoints and stops a job until it is resumed. Gives a line for people.
    fn suspend(&self, job: &str, reason: &str) -> Result<String, CliError>;

    /// Lets a suspended job go on when there is room. Gives a line for people.
    fn resume(&self, job: &str) -> Result<String, CliError>;
}

/// Takes a piece of a log; `false` if no more is wanted.
pub(crate) type LogSink<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Also those that have ended for good.
    pub(crate) all: bool,
    /// Of this user only.
    pub(crate) user: Option<String>,
    /// At most so many.
    pub(crate) limit: usize,
}

/// Which output to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogsWanted {
    /// Global rank.
    pub(crate) rank: u64,
    /// Attempt; the newest if not named.
    pub(crate) attempt: Option<u64>,
    /// Bytes from the beginning, or from the end if negative.
    pub(crate) offset: i64,
    /// Go on with what is written later, until the attempt has ended.
    pub(crate) follow: bool,
}

/// How a job stands, in the words that all backends share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Waits for its first start, or to be tried again.
    Queued,
    /// Told to start.
    Starting,
    /// Ranks train.
    Running,
    /// Asked to checkpoint and stop.
    Suspending,
    /// Being ended.
    Stopping,
    /// Checkpointed and stopped.
    Suspended,
    /// Training is complete.
    Succeeded,
    /// Ended before it was complete.
    Failed,
    /// Ended by a person.
    Cancelled,
    /// The processes that ran it are gone without a word.
    Lost,
    /// Nobody knows.
    Unknown,
}

impl Phase {
    /// The word in tables.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Suspending => "suspending",
            Phase::Stopping => "stopping",
            Phase::Suspended => "suspended",
            Phase::Succeeded => "succeeded",
            Phase::Failed => "failed",
            Phase::Cancelled => "cancelled",
            Phase::Lost => "lost",
            Phase::Unknown => "unknown",
        }
    }

    /// Nothing will change any more.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed | Phase::Cancelled)
    }
}

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct JobRow {
    /// How a person names it.
    pub(crate) id: String,
    /// Name of the run.
    pub(crate) name: String,
    /// Whose it is; empty if unknown.
    pub(crate) user: String,
    /// How it stands.
    pub(crate) phase: Phase,
    /// Why, in words.
    pub(crate) reason: String,
    /// Level; empty where there are none.
    pub(crate) priority: String,
    /// Nodes that it has, or wishes.
    pub(crate) nodes: u64,
    /// Newest attempt; 0 before the first.
    pub(crate) attempt: u64,
    /// Steps completed.
    pub(crate) step: u64,
    /// Steps of the whole run; 0 if unknown.
    pub(crate) total_steps: u64,
    /// Loss of the newest step, nats per token.
    pub(crate) loss: Option<f64>,
    /// Tokens per second of the newest step.
    pub(crate) tokens_per_s: Option<f64>,
    /// Wall time of the newest step in seconds.
    pub(crate) step_s: Option<f64>,
    /// Run directory.
    pub(crate) run_dir: PathBuf,
}

impl JobRow {
    /// Of a run directory of which nothing is known yet.
    fn of(run_dir: &Path) -> JobRow {
        JobRow {
            id: run_dir.display().to_string(),
            name: String::new(),
            user: String::new(),
            phase: Phase::Unknown,
            reason: String::new(),
            priority: String::new(),
            nodes: 1,
            attempt: 0,
            step: 0,
            total_steps: 0,
            loss: None,
            tokens_per_s: None,
            step_s: None,
            run_dir: run_dir.to_path_buf(),
        }
    }
}

/// One job and its ranks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct JobDetails {
    /// As in a list.
    #[serde(flatten)]
    pub(crate) row: JobRow,
    /// Names of its nodes, in the order of node numbers.
    pub(crate) node_names: Vec<String>,
    /// Step of the newest committed checkpoint; 0 if there is none.
    pub(crate) saved_step: u64,
    /// How the last failed attempt failed; empty if none did.
    pub(crate) failure: String,
    /// Its ranks; empty between attempts.
    pub(crate) ranks: Vec<RankRow>,
}

/// What one rank is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RankRow {
    /// Global rank.
    pub(crate) rank: u64,
    /// Name of its node.
    pub(crate) node: String,
    /// Steps completed.
    pub(crate) step: u64,
    /// What it does; empty while it computes steps.
    pub(crate) operation: String,
    /// For how long.
    pub(crate) since_ms: u64,
}

/// How a person names a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobName {
    /// A number of the scheduler.
    Number(u64),
    /// `slurm:N`, a number of Slurm.
    Slurm,
    /// A run directory.
    RunDir(PathBuf),
}

impl JobName {
    /// A number that is no path here is a job, as is `slurm:N`; all else is a path.
    pub(crate) fn parse(text: &str) -> JobName {
        if text.starts_with(PREFIX) && !Path::new(text).exists() {
            return JobName::Slurm;
        }
        match text.parse() {
            Ok(number) if !Path::new(text).exists() => JobName::Number(number),
            _ => JobName::RunDir(text.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_jobs_and_all_else_is_a_path() {
        assert_eq!(JobName::parse("12"), JobName::Number(12));
        assert_eq!(JobName::parse("runs/12"), JobName::RunDir("runs/12".into()));
        assert_eq!(JobName::parse("slurm:12"), JobName::Slurm);
        assert_eq!(JobName::parse("-1"), JobName::RunDir("-1".into()));
    }
}
