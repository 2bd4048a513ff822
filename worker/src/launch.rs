//! One node of one attempt on disk: the folder that a worker makes before it starts a shim, from which a worker that has
//! started again finds what runs.
//!
//! | file | written by | what |
//! |---|---|---|
//! | `launch.json` | worker, before the start | what to run |
//! | `lock` | worker, inherited by the shim's process | held while that process lives: the truth about its life |
//! | `socket` | shim | where the worker speaks to it |
//! | `processes.json` | shim, once the ranks exist | whom to kill if the shim dies without them |
//! | `outcome` | shim, when all is over | how it ended |

use crate::cores::CoreList;
use crate::private;
use lampyris_comm::wire;
use lampyris_proto::{Attempt, JobId, Rank, v1};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Room kept for the outcome from the start, so that a disk that fills up meanwhile cannot lose it.
const OUTCOME_BYTES: u64 = 4096;

/// Longest failure message that is kept; with it an outcome fits [`OUTCOME_BYTES`].
const MESSAGE_CHARS: usize = 800;

/// Most ranks of a job: what a rendezvous serves.
const MAX_RANKS: u64 = wire::table::MAX_RANKS as u64;

/// The last attempt of a run directory: ranks know it as a number of 32 bits.
const MAX_ATTEMPT: u64 = u32::MAX as u64;

/// What one node of one attempt runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Job.
    pub job: JobId,
    /// Attempt of the job.
    pub attempt: Attempt,
    /// Attempt of the run directory: with those from before it was a job.
    pub run_attempt: Attempt,
    /// Run directory.
    pub run_dir: PathBuf,
    /// Folder of the prepared text.
    pub dataset: PathBuf,
    /// The rank program.
    pub rank_program: PathBuf,
    /// Build id that it must have.
    pub build_id: String,
    /// Name of this node.
    pub node_name: String,
    /// Nodes of the job.
    pub nodes: u64,
    /// Which of them this is; node 0 claims the attempt and serves the rendezvous.
    pub node: u64,
    /// Ranks on each.
    pub ranks_per_node: u64,
    /// Address of this node that the others reach.
    pub host: IpAddr,
    /// The lease at the start, CLOCK_BOOTTIME in nanoseconds.
    pub deadline_ns: u64,
    /// Log of a rank on disk beyond which its older half is given back.
    pub log_bytes: u64,
    /// The cores of this node's worker; none means all of the machine.
    #[serde(default)]
    pub cores: CoreList,
    /// How many of them are for this attempt; 0 means all.
    #[serde(default)]
    pub core_share: usize,
}

impl Launch {
    /// Refuses numbers that no start can have: they come from a scheduler or from a file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let ranks = self.nodes.checked_mul(self.ranks_per_node);
        if ranks.is_none_or(|ranks| ranks == 0 || ranks > MAX_RANKS) {
            let (nodes, each) = (self.nodes, self.ranks_per_node);
            return Err(format!(
                "{nodes} nodes of {each} ranks; a job has between 1 and {MAX_RANKS} ranks"
            ));
        }
        if self.node >= self.nodes {
            return Err(format!("node {} is not one of {}", self.node, self.nodes));
        }
        if self.run_attempt.0 > MAX_ATTEMPT {
            let attempt = self.run_attempt;
            return Err(format!("attempt {attempt} of a run directory; the last is {MAX_ATTEMPT}"));
        }
        Ok(())
    }

    /// Global rank of the first rank of this node.
    pub fn first_rank(&self) -> Rank {
        Rank(self.node * self.ranks_per_node)
    }

    /// The ranks of this node.
    pub fn local_ranks(&self) -> impl Iterator<Item = Rank> {
        let first = self.first_rank().0;
        (first..first + self.ranks_per_node).map(Rank)
    }
}

/// A process and when it began, so that another one with its number is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id; a rank leads a group of the same number.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub started: u64,
}

/// The processes of one node of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Boot in which they live.
    pub boot_id: String,
    /// The shim's.
    pub shim: Process,
    /// The ranks'.
    pub ranks: Vec<Process>,
}

/// The folder of one node of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, which may or may not exist.
    pub fn new(path: PathBuf) -> Folder {
        Folder { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, with `launch` in it, durable.
    ///
    /// # Errors
    /// Failures of the disk; nothing is left behind then.
    pub fn create(&self, launch: &Launch) -> io::Result<()> {
        let make = || {
            private::make_folder(&self.path)?;
            let outcome = private::create_file(&self.path.join("outcome.tmp"))?;
            let flags = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&outcome, flags, 0, OUTCOME_BYTES) {
                Err(rustix::io::Errno::OPNOTSUPP) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            let text = serde_json::to_string(launch).expect("plain data becomes JSON");
            write_whole(&self.path.join("launch.json"), text.as_bytes())
        };
        make().inspect_err(|_| self.remove())
    }

    /// What runs there.
    ///
    /// # Errors
    /// When it cannot be read, was never made whole, or has numbers that no start can have.
    pub fn launch(&self) -> io::Result<Launch> {
        parse_launch(&fs::read(self.path.join("launch.json"))?)
    }

    /// Takes the lock, to hand it to the shim's process as its standard input; `None` while that process lives.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn try_lock(&self) -> io::Result<Option<File>> {
        let path = self.path.join("lock");
        let file = File::options().create(true).append(true).read(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Where the shim listens, by a path short enough for a socket whatever the folder's is. It holds while the file
    /// lives.
    ///
    /// # Errors
    /// When the folder is not there.
    pub fn socket(&self) -> io::Result<(File, PathBuf)> {
        use std::os::fd::AsRawFd;
        let folder = File::open(&self.path)?;
        let path = format!("/proc/self/fd/{}/socket", folder.as_raw_fd());
        Ok((folder, path.into()))
    }

    /// Notes whom to kill.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn write_processes(&self, processes: &Processes) -> io::Result<()> {
        let text = serde_json::to_string(processes).expect("plain data becomes JSON");
        write_whole(&self.path.join("processes.json"), text.as_bytes())
    }

    /// Whom to kill; `None` before any rank existed.
    pub fn processes(&self) -> Option<Processes> {
        let text = fs::read(self.path.join("processes.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Notes how it ended, in the room kept for it.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn write_outcome(&self, outcome: &v1::Outcome) -> io::Result<()> {
        let mut outcome = outcome.clone();
        if let Some(v1::outcome::Kind::Failed(failure)) = &mut outcome.kind {
            failure.message = failure.message.chars().take(MESSAGE_CHARS).collect();
        }
        let temporary = self.path.join("outcome.tmp");
        let mut options = File::options();
        let mut file =
            options.create(true).write(true).truncate(false).mode(0o600).open(&temporary)?;
        file.write_all(&outcome.encode_length_delimited_to_vec())?;
        file.sync_all()?;
        fs::rename(&temporary, self.path.join("outcome"))
    }

    /// How it ended; `None` while it has not, or if the shim died without a word.
    pub fn outcome(&self) -> Option<v1::Outcome> {
        let bytes = fs::read(self.path.join("outcome")).ok()?;
        v1::Outcome::decode_length_delimited(&bytes[..]).ok()
    }

    /// Removes it; what cannot be removed stays and is found again.
    pub fn remove(&self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %self.path.display(), "cannot remove");
            }
            _ => {}
        }
    }
}

/// What `launch.json` says.
pub(crate) fn parse_launch(text: &[u8]) -> io::Result<Launch> {
    let launch: Launch = serde_json::from_slice(text)?;
    launch.check().map_err(|what| io::Error::new(ErrorKind::InvalidData, what))?;
    Ok(launch)
}

/// Writes a file that is there whole or not at all, even after a power cut.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = private::create_file(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn launch() -> Launch {
        Launch {
            job: JobId(3),
            attempt: Attempt(2),
            run_attempt: Attempt(4),
            run_dir: "/runs/a".into(),
            dataset: "/cache/d".into(),
            rank_program: "/bin/rank".into(),
            build_id: "0123".into(),
            node_name: "n1".into(),
            nodes: 1,
            node: 0,
            ranks_per_node: 1,
            host: [127, 0, 0, 1].into(),
            deadline_ns: 5,
            log_bytes: 1 << 20,
            cores: "0-1".parse().unwrap(),
            core_share: 1,
        }
    }

    #[test]
    fn what_was_written_is_read_and_the_lock_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("3.2"));
        folder.create(&launch()).unwrap();
        let mode = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(folder.path().join(name)).unwrap().mode() & 0o777
        };
        assert_eq!((mode("."), mode("launch.json"), mode("outcome.tmp")), (0o700, 0o600, 0o600));
        assert_eq!(folder.launch().unwrap(), launch());
        let lock = folder.try_lock().unwrap();
        assert!(lock.is_some() && folder.try_lock().unwrap().is_none());
        drop(lock);
        assert!(folder.try_lock().unwrap().is_some());
        assert_eq!(folder.outcome(), None);
        let message = "x".repeat(5000);
        let failure = v1::Failure { message, ..Default::default() };
        let kind = Some(v1::outcome::Kind::Failed(failure));
        folder.write_outcome(&v1::Outcome { kind, progress: None }).unwrap();
        let Some(v1::outcome::Kind::Failed(read)) = folder.outcome().unwrap().kind else {
            panic!("a failure was written")
        };
        assert_eq!(read.message.len(), MESSAGE_CHARS);
        assert!(fs::metadata(folder.path().join("outcome")).unwrap().len() <= OUTCOME_BYTES);
        folder.remove();
        assert!(folder.launch().is_err());
    }
}
