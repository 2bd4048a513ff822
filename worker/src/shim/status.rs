//! `status.json` of a run directory: what each rank of a node is at, and in the end how the attempt ended there. Node 0
//! writes `status.json`, node 3 `status.node-3.json`; always whole (by rename), at most every half second, and at least
//! every five seconds while the shim lives, so that a reader can tell a quiet node from a lost one.
//!
//! It is for people and for whoever looks later; no decision of a shim reads it. Times are wall-clock: display only.
//!
//! The file of a shim that was killed says "running" for ever. So [`read`] does not believe it: where the shim's process
//! can be looked up it must live, elsewhere its file must be fresh.

use super::outcome::{Event, Outcome};
use super::service::Options;
use crate::launch::Process;
use crate::processes::boot_id;
use crate::run_file;
use lampyris_proto::rank::from_rank::Body;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Shortest time between two writes.
const WRITE_PERIOD: Duration = Duration::from_millis(500);

/// Longest time between two writes while the shim lives.
const ALIVE_PERIOD: Duration = Duration::from_secs(5);

/// A shim on another machine whose file is older than this is not known to live: three writes are missing.
const SILENT_MS: u64 = 3 * ALIVE_PERIOD.as_millis() as u64;

/// Largest file that is read: 250 bytes for each of 4,096 ranks are 1 MiB.
const FILE_LIMIT: u64 = 16 << 20;

/// Most ranks of a job that a file may speak of; plans have no more either.
const MAX_RANKS: u64 = 1 << 24;

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
    /// Where that id has a meaning; none in files of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Place>,
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

/// Where a process id names one process for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The kernel's name for this boot of the machine.
    pub boot_id: String,
    /// The kernel's name for the namespace of process ids: containers of one machine have their own.
    pub namespace: String,
    /// When the process started, in clock ticks since the boot: ids are used again.
    pub started: u64,
}

/// Why the status of a run cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", .path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// Cause.
    pub source: io::Error,
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
    /// Its process is gone without a word about the end. Only [`read`] says so, no file.
    Lost,
    /// Nothing is heard from its machine. Only [`read`] says so, no file.
    Silent,
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
        self.exit_code.is_some() || self.state == State::Lost
    }

    /// Replaces what a dead shim has left standing there by what is true. `here` is the place of the reader; `alive` says
    /// whether a process of it lives.
    fn judge(&mut self, here: &Place, now_ms: u64, alive: impl Fn(Process) -> bool) {
        if self.ended() {
            return;
        }
        let pid = self.pid;
        match &self.process {
            Some(place) if place.is_same_as(here) => {
                if !alive(Process { pid, started: place.started }) {
                    self.state = State::Lost;
                    self.reason = format!("its process {pid} is gone: it was killed or crashed");
                }
            }
            // Clocks of machines differ by less.
            _ if self.written_ms.abs_diff(now_ms) <= SILENT_MS => {}
            Some(place) if place.boot_id != here.boot_id && self.host == host_name() => {
                self.state = State::Lost;
                self.reason = "the machine was started again while it ran".into();
            }
            _ => {
                self.state = State::Silent;
                self.reason = format!("nothing heard from its shim on {}", self.host);
            }
        }
    }

    /// Refuses numbers that no shim writes.
    fn check(&self) -> Result<(), String> {
        let ranks = self.ranks.len() as u64;
        let possible = self.world <= MAX_RANKS
            && (1..=self.world).contains(&self.nodes)
            && self.node < self.nodes
            && ranks <= self.world;
        if possible {
            return Ok(());
        }
        let Status { world, nodes, node, .. } = self;
        Err(format!("{ranks} ranks on node {node} of {nodes} nodes and {world} ranks: impossible"))
    }
}

impl Place {
    /// Of this process.
    fn of_this_process() -> Place {
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let own = Process::of(std::process::id());
        Place {
            boot_id: boot_id(),
            namespace: namespace.to_string_lossy().into_owned(),
            started: own.map_or(0, |own| own.started),
        }
    }

    /// Whether process ids of both mean the same. Without the kernel's names nothing is known.
    fn is_same_as(&self, other: &Place) -> bool {
        let named = !self.boot_id.is_empty() && !self.namespace.is_empty() && self.started > 0;
        named && self.boot_id == other.boot_id && self.namespace == other.namespace
    }
}

/// Where node `node` writes.
pub fn status_path(run_dir: &Path, node: u64) -> PathBuf {
    run_dir.join(file_name(node))
}

fn file_name(node: u64) -> String {
    match node {
        0 => "status.json".into(),
        node => format!("status.node-{node}.json"),
    }
}

/// How the nodes of the newest attempt stand, by node; empty if the run never started. Of a node whose shim is gone the
/// state is [`State::Lost`] or [`State::Silent`], whatever its file says.
///
/// # Errors
/// A file cannot be read or is not of this format.
pub fn read(run_dir: &Path) -> Result<Vec<Status>, ReadError> {
    let mut all = read_files(run_dir)?;
    let (here, now_ms) = (Place::of_this_process(), unix_ms());
    for status in &mut all {
        status.judge(&here, now_ms, Process::is_alive);
    }
    Ok(all)
}

fn read_files(run_dir: &Path) -> Result<Vec<Status>, ReadError> {
    let Some(first) = read_node(run_dir, 0)? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for node in nodes_with_files(run_dir)?.into_iter().filter(|node| *node < first.nodes) {
        // A node of this attempt that has not written yet has no file, or one of an attempt before.
        let status = read_node(run_dir, node)?;
        all.extend(status.filter(|status| status.attempt == first.attempt));
    }
    all.insert(0, first);
    Ok(all)
}

/// Nodes but the first that have a file, in order.
fn nodes_with_files(run_dir: &Path) -> Result<Vec<u64>, ReadError> {
    let failed = |source| ReadError { path: run_dir.to_path_buf(), source };
    let mut nodes = Vec::new();
    for entry in fs::read_dir(run_dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("status.node-"));
        let number = number.and_then(|rest| rest.strip_suffix(".json"));
        nodes.extend(number.and_then(|number| number.parse::<u64>().ok()).filter(|node| *node > 0));
    }
    nodes.sort_unstable();
    Ok(nodes)
}

fn read_node(run_dir: &Path, node: u64) -> Result<Option<Status>, ReadError> {
    let path = status_path(run_dir, node);
    let parse = |bytes: Vec<u8>| -> io::Result<Status> {
        let status: Status = serde_json::from_slice(&bytes)?;
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        status.check().map_err(wrong)?;
        Ok(status)
    };
    match run_file::read(run_dir, &file_name(node), FILE_LIMIT).and_then(parse) {
        Ok(status) => Ok(Some(status)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReadError { path, source }),
    }
}

/// Keeps the status of a shim and writes it.
pub(super) struct StatusFile {
    run_dir: PathBuf,
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
            process: Some(Place::of_this_process()),
            state: State::Running,
            exit_code: None,
            reason: String::new(),
            written_ms: 0,
            ranks: (0..options.local_ranks as u64).map(rank).collect(),
        };
        let run_dir = options.run_dir.clone();
        StatusFile { run_dir, status, changed: true, written: None }
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
        let text = serde_json::to_string(&self.status).expect("plain data becomes JSON") + "\n";
        let name = file_name(self.status.node);
        run_file::write_often(&self.run_dir, &name, text.as_bytes()).ok();
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
mod tests;
