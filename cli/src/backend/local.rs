//! Runs of `lampyris train` on this machine: a run directory is all there is to ask.

use super::{Backend, JobDetails, JobRow, LogSink, LogsWanted, Phase, RankRow, Wanted};
use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen;
use lampyris_proto::{Attempt, Rank};
use lampyris_worker::run_file::{self, For};
use lampyris_worker::shim::status::{self, State, Status};
use lampyris_worker::shim::{control, log_name};
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Exit code of a node whose ranks ended because they lost others.
const LOST: u8 = 75;

/// Between two looks at a log that is followed.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

/// Bytes of one piece of a log.
const PIECE_BYTES: u64 = 64 << 10;

/// The run directories of a folder.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    /// Where `list` looks.
    pub(crate) runs_dir: PathBuf,
}

impl Local {
    /// The run directories, newest plan first.
    pub(crate) fn runs(&self) -> Result<Vec<PathBuf>, CliError> {
        let entries = match fs::read_dir(&self.runs_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(CliError::read(&self.runs_dir, error)),
        };
        let mut runs = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| CliError::read(&self.runs_dir, error))?.path();
            // Whatever it is: a run with a damaged plan is listed as such.
            if let Ok(plan) = fs::symlink_metadata(path.join("plan.toml")) {
                runs.push((plan.modified().ok(), path));
            }
        }
        runs.sort();
        Ok(runs.into_iter().rev().map(|(_, path)| path).collect())
    }
}

/// The row of one run; of a run that cannot be read, why.
fn row(path: &Path) -> JobRow {
    let read = RunDir::open(path).and_then(|run| details(&run));
    read.map_or_else(|error| broken(path, &error), |details| details.row)
}

/// The row of a run that cannot be read.
pub(crate) fn broken(path: &Path, error: &CliError) -> JobRow {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = error.to_string();
    let reason = words.split_whitespace().collect::<Vec<_>>().join(" ");
    JobRow { name, phase: Phase::Unknown, reason, ..JobRow::of(path) }
}

impl Backend for Local {
    fn list(&self, wanted: &Wanted) -> Result<Vec<JobRow>, CliError> {
        let rows = self.runs()?.into_iter().map(|path| row(&path));
        let shown = |row: &JobRow| wanted.all || !row.phase.is_final();
        Ok(rows.filter(shown).take(wanted.limit).collect())
    }

    fn show(&self, job: &str) -> Result<JobDetails, CliError> {
        details(&RunDir::open(Path::new(job))?)
    }

    fn logs(&self, job: &str, wanted: &LogsWanted, out: LogSink<'_>) -> Result<(), CliError> {
        let run = RunDir::open(Path::new(job))?;
        let newest = read_status(&run)?.first().map_or(1, |status| status.attempt);
        let attempt = wanted.attempt.unwrap_or(newest);
        let name = log_name(Rank(wanted.rank), Attempt(attempt));
        read_log(run.path(), &name, wanted, out, &|| {
            Ok(read_status(&run)?.iter().all(|status| status.attempt != attempt || is_over(status)))
        })
    }

    fn stop(&self, job: &str) -> Result<String, CliError> {
        self.suspend(job, "asked with `lampyris stop`")
    }

    fn suspend(&self, job: &str, reason: &str) -> Result<String, CliError> {
        let run = RunDir::open(Path::new(job))?;
        control::request_suspend(run.path(), reason)
            .map_err(|source| CliError::write(&control::suspend_path(run.path()), source))?;
        Ok(format!(
            "{} will checkpoint at its next step boundary and stay stopped; `lampyris resume {}` continues it",
            run.path().display(),
            screen::word(run.path())
        ))
    }

    fn resume(&self, job: &str) -> Result<String, CliError> {
        Err(CliError::NotInBackground { path: job.into() })
    }
}

/// Reads a log from `wanted.offset`, and on while `ended` says no.
pub(crate) fn read_log(
    run_dir: &Path,
    name: &str,
    wanted: &LogsWanted,
    out: LogSink<'_>,
    ended: &dyn Fn() -> Result<bool, CliError>,
) -> Result<(), CliError> {
    let failed = |error| CliError::read(&run_dir.join(name), error);
    let mut file = run_file::open(run_dir, name, For::Reading).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let begin = match u64::try_from(wanted.offset) {
        Ok(offset) => offset.min(length),
        Err(_) => length.saturating_sub(wanted.offset.unsigned_abs()),
    };
    file.seek(SeekFrom::Start(begin)).map_err(failed)?;
    loop {
        // Asked before reading: what was written before the end is then read.
        let last = !wanted.follow || ended()?;
        loop {
            let mut piece = Vec::new();
            (&file).take(PIECE_BYTES).read_to_end(&mut piece).map_err(failed)?;
            if piece.is_empty() {
                break;
            }
            if !out(&piece) {
                return Ok(());
            }
        }
        if last {
            return Ok(());
        }
        thread::sleep(FOLLOW_PERIOD);
    }
}

fn read_status(run: &RunDir) -> Result<Vec<Status>, CliError> {
    Ok(status::read(run.path())?)
}

/// Whether nobody is known to run what `status` tells of.
pub(crate) fn is_over(status: &Status) -> bool {
    status.ended() || status.state == State::Silent
}

/// What a run directory says of itself.
pub(crate) fn details(run: &RunDir) -> Result<JobDetails, CliError> {
    let nodes = read_status(run)?;
    let name = run.plan()?.name;
    let (phase, reason) = standing(&nodes);
    let ranks = nodes.iter().flat_map(|node| node.ranks.iter().map(move |rank| (node, rank)));
    let now = status::unix_ms();
    let ranks: Vec<RankRow> = ranks
        .map(|(node, rank)| RankRow {
            rank: rank.rank,
            node: node.host.clone(),
            step: rank.step,
            operation: rank.operation.clone(),
            since_ms: now.saturating_sub(rank.since_ms),
        })
        .collect();
    let total = nodes.iter().flat_map(|node| &node.ranks).map(|rank| rank.total_steps).max();
    // Before its first start a run has no lineage.
    let candidates = match nodes.is_empty() {
        true => Vec::new(),
        false => run.checkpoints_read_only().candidates()?,
    };
    let row = JobRow {
        name,
        phase,
        reason,
        nodes: nodes.first().map_or(1, |node| node.nodes),
        attempt: nodes.first().map_or(0, |node| node.attempt),
        step: ranks.iter().map(|rank| rank.step).min().unwrap_or(0),
        total_steps: total.unwrap_or(0),
        ..JobRow::of(run.path())
    };
    Ok(JobDetails {
        row,
        node_names: nodes.iter().map(|node| node.host.clone()).collect(),
        saved_step: candidates.first().map_or(0, |id| id.step.0),
        failure: nodes
            .iter()
            .map(|node| node.reason.as_str())
            .find(|r| !r.is_empty())
            .unwrap_or("")
            .into(),
        ranks: if phase.is_final() || phase == Phase::Lost { Vec::new() } else { ranks },
    })
}

/// What the shims have written, in one word and one line.
fn standing(nodes: &[Status]) -> (Phase, String) {
    let Some(first) = nodes.first() else { return (Phase::Queued, "never started".into()) };
    // The node that failed by itself says more than those that only lost it.
    let failed = || nodes.iter().filter(|node| node.state == State::Failed);
    let culprit = failed().find(|node| node.exit_code != Some(LOST)).or_else(|| failed().next());
    if let Some(culprit) = culprit {
        return (Phase::Failed, format!("{}: {}", culprit.host, culprit.reason));
    }
    let in_state = |state| nodes.iter().find(|node| node.state == state);
    if let Some(lost) = in_state(State::Lost) {
        let why = format!("{}; `lampyris resume` continues the run", lost.reason);
        return (Phase::Lost, why);
    }
    if let Some(silent) = in_state(State::Silent) {
        return (Phase::Unknown, silent.reason.clone());
    }
    if let Some(running) = nodes.iter().find(|node| !node.ended()) {
        return match running.state {
            State::Suspending => (Phase::Suspending, "asked to checkpoint and stop".into()),
            _ => (Phase::Running, format!("runs on {}", running.host)),
        };
    }
    match first.state {
        State::Finished => (Phase::Succeeded, "finished".into()),
        _ => (Phase::Suspended, "checkpointed; `lampyris resume` continues it".into()),
    }
}
