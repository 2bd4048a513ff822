//! `status.json` of a run directory: what each rank of a node is at, and in the end how the attempt ended there. Node 0
//! writes `status.json`, node 3 `status.node-3.json`; always whole (by rename), at most every half second, and at least
//! every five seconds while the shim lives, so that a reader can tell a quiet node from a lost one.
//!
//! It is for people and for whoever looks later; no decision of a shim reads it. Times are wall-clock: display only.

use super::outcome::{Event, Outcome};
use super::service::Options;
use lampyris_proto::rank::from_rank::Body;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Shortest time between two writes.
const WRITE_PERIOD: Duration = Duration::from_millis(500);

/// Longest time between two writes while the shim lives.
pub const ALIVE_PERIOD: Duration = Duration::from_secs(5);

/// What the ranks of one node are at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which start of the job.
    pub attempt: u64,
    /// Ranks of the job.
    pub world: u64,
    /// Nodes of the job.
    pub nodes: u64,
    /// The node that writes, or the first of several virtual ones.
    pub node: u64,
    /// Name of the host.
    pub host: String,
    /// Process id of the shim.
    pub pid: u32,
    /// How far the attempt is on this node.
    pub state: State,
    /// Exit code of the attempt on this node, once it has ended.
    pub exit_code: Option<u8>,
    /// Why it failed, empty otherwise.
    pub reason: String,
    /// When this was written, milliseconds since 1970.
    pub written_ms: u64,
    /// The ranks of this node.
    pub ranks: Vec<RankStatus>,
}

/// How far an attempt is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ranks run.
    Running,
    /// Ranks were asked to checkpoint and stop.
    Suspending,
    /// Training is complete.
    Finished,
    /// Checkpointed and stopped.
    Suspended,
    /// Anything else.
    Failed,
}

/// What one rank is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Global rank.
    pub rank: u64,
    /// Its (virtual) node.
    pub node: u64,
    /// Process id.
    pub pid: u32,
    /// Steps completed.
    pub step: u64,
    /// Steps of the whole run; 0 before the first is known.
    pub total_steps: u64,
    /// What it does; empty while it computes steps.
    pub operation: String,
    /// Since when, milliseconds since 1970: the end of its last step or the beginning of the operation.
    pub since_ms: u64,
}

impl Status {
    /// Whether the attempt has ended on this node.
    pub fn ended(&self) -> bool {
        self.exit_code.is_some()
    }
}

/// Where node `node` writes.
pub fn status_path(run_dir: &Path, node: u64) -> PathBuf {
    match node {
        0 => run_dir.join("status.json"),
        node => run_dir.join(format!("status.node-{node}.json")),
    }
}

/// What all nodes of the newest attempt have written, by node; empty if the run never started.
///
/// # Errors
/// When a file cannot be read or is not of this format.
pub fn read(run_dir: &Path) -> io::Result<Vec<Status>> {
    let Some(first) = read_node(run_dir, 0)? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for node in 1..first.nodes {
        // A node of this attempt that has not written yet has no file, or one of an attempt before.
        let status = read_node(run_dir, node)?;
        all.extend(status.filter(|status| status.attempt == first.attempt));
    }
    all.insert(0, first);
    Ok(all)
}

fn read_node(run_dir: &Path, node: u64) -> io::Result<Option<Status>> {
    match fs::read(status_path(run_dir, node)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps the status of a shim and writes it.
pub(super) struct StatusFile {
    path: PathBuf,
    status: Status,
    changed: bool,
    written: Option<Instant>,
}

impl StatusFile {
    pub(super) fn new(options: &Options) -> StatusFile {
        let ranks_per_node = options.world / options.nodes.max(1);
        let rank = |index: u64| RankStatus {
            rank: options.first_rank.0 + index,
            node: options.node + index / ranks_per_node.max(1),
            pid: 0,
            step: 0,
            total_steps: 0,
            operation: "starting".into(),
            since_ms: unix_ms(),
        };
        let status = Status {
            attempt: options.attempt.0,
            world: options.world,
            nodes: options.nodes,
            node: options.node,
            host: host_name(),
            pid: std::process::id(),
            state: State::Running,
            exit_code: None,
            reason: String::new(),
            written_ms: 0,
            ranks: (0..options.local_ranks as u64).map(rank).collect(),
        };
        let path = status_path(&options.run_dir, options.node);
        StatusFile { path, status, changed: true, written: None }
    }

    /// Takes in what happened.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Started { rank, pid, .. } => self.rank(rank.0, |rank| rank.pid = *pid),
            Event::Said { rank, body } => self.rank(rank.0, |rank| rank.said(body)),
            Event::Suspending { .. } => {
                self.status.state = State::Suspending;
                self.changed = true;
            }
            Event::NotAtBoundary { .. } => {}
        }
    }

    fn rank(&mut self, rank: u64, change: impl FnOnce(&mut RankStatus)) {
        if let Some(found) = self.status.ranks.iter_mut().find(|status| status.rank == rank) {
            change(found);
            self.changed = true;
        }
    }

    /// Writes if there is news and the last write is some time ago.
    pub(super) fn write_if_due(&mut self) {
        let since = self.written.map(|written| written.elapsed());
        let period = if self.changed { WRITE_PERIOD } else { ALIVE_PERIOD };
        if since.is_none_or(|since| since >= period) {
            self.write();
        }
    }

    /// Writes how the attempt ended here.
    pub(super) fn end(&mut self, outcome: &Outcome) {
        self.status.exit_code = Some(outcome.exit_code());
        self.status.state = match outcome {
            Outcome::Finished => State::Finished,
            Outcome::Suspended { .. } => State::Suspended,
            Outcome::Failed(failure) => {
                self.status.reason = failure.to_string();
                State::Failed
            }
        };
        self.write();
    }

    /// A disk that refuses is no reason to stop ranks that train: the file grows old, and readers say so.
    fn write(&mut self) {
        self.status.written_ms = unix_ms();
        self.changed = false;
        self.written = Some(Instant::now());
        let temporary = self.path.with_extension("json.tmp");
        let text = serde_json::to_string(&self.status).expect("plain data becomes JSON");
        if fs::write(&temporary, text + "\n").is_ok() {
            fs::rename(&temporary, &self.path).ok();
        }
    }
}

impl RankStatus {
    fn said(&mut self, body: &Body) {
        let operation = match body {
            Body::StepDone(done) => {
                (self.step, self.total_steps) = (done.step, done.total_steps);
                String::new()
            }
            Body::Operation(operation) => match operation.total {
                0 => operation.what.clone(),
                total => format!("{} {}/{total}", operation.what, operation.done),
            },
            Body::Ready(_) => "ready".into(),
            Body::Suspended(_) => "suspended".into(),
            Body::Finished(_) => "finished".into(),
            Body::Failed(failed) => format!("failed: {}", failed.message),
            Body::Saved(_) | Body::Evaluated(_) | Body::Sample(_) | Body::Note(_) => return,
        };
        self.operation = operation;
        self.since_ms = unix_ms();
    }
}

/// Name of this host; empty where the system does not say.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_string()
}

/// Now, in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node: u64, attempt: u64) -> Status {
        Status {
            attempt,
            world: 4,
            nodes: 2,
            node,
            host: format!("n{node}"),
            pid: 7,
            state: State::Running,
            exit_code: None,
            reason: String::new(),
            written_ms: 5,
            ranks: Vec::new(),
        }
    }

    #[test]
    fn nodes_of_the_same_attempt_are_read_together() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(read(run.path()).unwrap(), []);
        let write = |status: &Status| {
            let text = serde_json::to_string(status).unwrap();
            fs::write(status_path(run.path(), status.node), text).unwrap();
        };
        write(&status(0, 2));
        write(&status(1, 1));
        assert_eq!(read(run.path()).unwrap(), [status(0, 2)]);
        write(&status(1, 2));
        assert_eq!(read(run.path()).unwrap(), [status(0, 2), status(1, 2)]);
        fs::write(status_path(run.path(), 0), "{").unwrap();
        assert!(read(run.path()).is_err());
    }
}
