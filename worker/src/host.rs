//! The process that hosts one shim for a worker daemon, and outlives it: one node of one attempt, from `launch.json` to
//! `outcome` ([`crate::launch`]). It answers the worker on a Unix socket, one connection at a time; whether a worker is
//! there or not changes nothing but the lease, which the shim enforces.
//!
//! What it does not do: choose, retry, or talk to the scheduler.

use crate::board::Board;
use crate::cores::{Claim as CoreClaim, CoreList, Given};
use crate::fail_point;
use crate::launch::{Folder, Launch, Process, Processes};
use crate::meeting;
use crate::processes::boot_id;
use crate::report::Report;
use crate::run_file::{self, For};
use crate::shim::{
    self, Event, Failure, FailureCause, Handle, Options, Outcome, ShimError, log_name,
};
use lampyris_proto::v1::{FromShim, ToShim, failure::Class, outcome::Kind};
use lampyris_proto::{Rank, frame, v1};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Events that may wait for the board.
const EVENT_LIMIT: usize = 1024;

/// How long ranks may take to a step boundary before the log says which have not come.
const REPORT_AFTER: Duration = Duration::from_secs(60);

/// How often logs are measured: a rank that writes 100 MB/s is 500 MB over the limit at most.
const LOG_PERIOD: Duration = Duration::from_secs(5);

/// What the caller does before ranks may start.
pub struct Ready<'a, G> {
    /// On every node: whether what is to run fits together and is whole.
    pub check: &'a dyn Fn(&Launch) -> Result<(), Wrong>,
    /// On node 0: claims the attempt and locks the run directory. What it gives back is kept while the ranks live.
    pub claim: &'a dyn Fn(&Launch) -> Result<G, Wrong>,
}

/// What is wrong before a start, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// With the job: it would be wrong everywhere and every time.
    Job(String),
    /// It cannot be found out on this node.
    Here(String),
    /// With neither: another try may go well.
    Now(String),
}

/// Runs what `folder` says to the end, and notes how it ended there.
///
/// # Errors
/// When the folder cannot be read or written. All else is an outcome.
pub fn run<G>(folder: &Folder, ready: &Ready<'_, G>) -> io::Result<()> {
    // Signals of the terminal at which the worker was started are not for the ranks.
    rustix::process::setsid().ok();
    let launch = folder.launch()?;
    note_processes(folder, Vec::new());
    fail_point::reached("start");
    let outcome = attempt(folder, &launch, ready).unwrap_or_else(|failure| v1::Outcome {
        kind: Some(Kind::Failed(failure)),
        progress: None,
    });
    fail_point::reached("finish");
    folder.write_outcome(&outcome)
}

fn attempt<G>(
    folder: &Folder,
    launch: &Launch,
    ready: &Ready<'_, G>,
) -> Result<v1::Outcome, v1::Failure> {
    let listener = listen(folder).map_err(|e| infrastructure(format!("no socket: {e}")))?;
    let desk = Arc::new(Desk::new(launch));
    let answers = Arc::clone(&desk);
    thread::spawn(move || answers.answer(&listener));
    (ready.check)(launch).map_err(wrong)?;
    if desk.is_over() {
        return Err(infrastructure("its lease passed before its ranks were started".into()));
    }
    let _claimed = match launch.node {
        0 => Some((ready.claim)(launch).map_err(wrong)?),
        _ => None,
    };
    let meeting = meeting::of(launch, &|| desk.is_over()).map_err(infrastructure)?;
    let rendezvous = meeting.as_ref().map(|meeting| meeting.rendezvous.clone());
    let cores = core_claim(launch);
    let mut options = options(launch, rendezvous, cores.given(&launch.cores));
    options.deadline = Some(desk.deadline());
    let (service, handle) = options.build().map_err(shim_failure)?;
    desk.open(handle);
    let (sender, events) = sync_channel(EVENT_LIMIT);
    let (watcher, folder, ranks) = (Arc::clone(&desk), folder.clone(), launch.ranks_per_node);
    let watching = thread::spawn(move || watch(&events, &watcher.board, &folder, ranks as usize));
    shorten_logs(launch);
    // The shim has the main thread: the ranks' lives are tied to the thread that starts them.
    let outcome = service.run(&sender).map_err(shim_failure)?;
    // What the ranks said last is on the board once the watcher has read it all.
    drop(sender);
    let report = watching.join().unwrap_or_default();
    if outcome == Outcome::Finished
        && launch.node == 0
        && let Err(error) = report.write(&launch.run_dir)
    {
        tracing::warn!(%error, "cannot write report.json");
    }
    let progress = lock(&desk.board).progress(Instant::now());
    Ok(outcome_message(outcome, v1::Progress { ranks: Vec::new(), ..progress }))
}

fn options(launch: &Launch, rendezvous: Option<shim::Rendezvous>, cores: Given) -> Options {
    let plan = launch.run_dir.join("plan.toml");
    let arguments = vec![
        "train".into(),
        "--plan".into(),
        plan.into(),
        "--dataset".into(),
        launch.dataset.clone().into(),
    ];
    Options {
        program: launch.rank_program.clone(),
        arguments,
        run_dir: launch.run_dir.clone(),
        attempt: launch.run_attempt,
        first_rank: launch.first_rank(),
        local_ranks: launch.ranks_per_node as usize,
        world: launch.nodes * launch.ranks_per_node,
        nodes: launch.nodes,
        node: launch.node,
        rendezvous,
        cores,
        build_id: launch.build_id.clone(),
        deadline: None,
        report_after: REPORT_AFTER,
        handle_signals: true,
    }
}

/// Takes this attempt's share of its worker's cores, those first that no other run of this machine computes on.
fn core_claim(launch: &Launch) -> CoreClaim {
    let all = if launch.cores.is_empty() { CoreList::allowed() } else { launch.cores.clone() };
    let wanted = if launch.core_share == 0 { all.len() } else { launch.core_share };
    let claim = CoreClaim::take(&all, wanted);
    if claim.own().len() < wanted {
        let (own, of) = (claim.own(), all.to_string());
        tracing::warn!(wanted, %own, %of, "other runs compute on this attempt's cores");
    }
    claim
}

fn listen(folder: &Folder) -> io::Result<UnixListener> {
    let (_folder, path) = folder.socket()?;
    let listener = UnixListener::bind(&path)?;
    // The folder lets nobody else in; this is for one that was made by an earlier release.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Keeps the board, and notes the processes once all exist. In the end, what rank 0 said.
fn watch(events: &Receiver<Event>, board: &Mutex<Board>, folder: &Folder, ranks: usize) -> Report {
    let (mut noted, mut report) = (false, Report::default());
    while let Ok(event) = events.recv() {
        if let Event::NotAtBoundary { ranks, waited } = &event {
            tracing::warn!(?ranks, ?waited, "not at a step boundary after a request to suspend");
        }
        match &event {
            Event::Said { rank: Rank(0), body } => report.note(body),
            Event::Suspending { .. } => fail_point::reached("suspend"),
            _ => {}
        }
        let mut board = lock(board);
        board.note(&event, Instant::now());
        if !noted && board.pids().count() == ranks {
            noted = true;
            note_processes(folder, board.pids().filter_map(Process::of).collect());
            fail_point::reached("ranks");
        }
    }
    report
}

/// Notes this process and its ranks for a worker that must end them.
fn note_processes(folder: &Folder, ranks: Vec<Process>) {
    let Some(shim) = Process::of(std::process::id()) else { return };
    let processes = Processes { boot_id: boot_id(), shim, ranks };
    if let Err(error) = folder.write_processes(&processes) {
        tracing::warn!(%error, "cannot note the processes");
    }
}

/// Where the worker is served: what it says before the shim is there is kept for it.
struct Desk {
    board: Mutex<Board>,
    handle: OnceLock<Handle>,
    deadline_ns: AtomicU64,
    killed: AtomicBool,
}

impl Desk {
    fn new(launch: &Launch) -> Desk {
        let first = launch.first_rank();
        let (node, ranks) = (launch.node_name.clone(), launch.ranks_per_node as usize);
        Desk {
            board: Mutex::new(Board::new(node, first, ranks, Instant::now())),
            handle: OnceLock::new(),
            deadline_ns: AtomicU64::new(launch.deadline_ns),
            killed: AtomicBool::new(false),
        }
    }

    fn deadline(&self) -> Duration {
        Duration::from_nanos(self.deadline_ns.load(Ordering::Acquire))
    }

    /// Whether there is no sense in starting ranks any more.
    fn is_over(&self) -> bool {
        self.killed.load(Ordering::Acquire) || shim::boottime() >= self.deadline()
    }

    /// From now on the shim hears what the worker says, beginning with what it said last.
    fn open(&self, handle: Handle) {
        let handle = self.handle.get_or_init(|| handle);
        handle.set_deadline(self.deadline());
        if self.killed.load(Ordering::Acquire) {
            handle.kill();
        }
    }

    /// Serves one worker after the other.
    fn answer(&self, listener: &UnixListener) {
        for worker in listener.incoming() {
            let served = worker.map_err(frame::FrameError::Io).and_then(|w| self.serve(w));
            if let Err(error) = served {
                tracing::warn!(%error, "lost the worker");
            }
        }
    }

    fn serve(&self, mut worker: UnixStream) -> Result<(), frame::FrameError> {
        while let Some(asked) = frame::read::<ToShim>(&mut worker)? {
            self.deadline_ns.fetch_max(asked.deadline_boottime_ns, Ordering::AcqRel);
            self.killed.fetch_or(asked.kill, Ordering::AcqRel);
            if let Some(handle) = self.handle.get() {
                handle.set_deadline(self.deadline());
                if asked.suspend {
                    handle.suspend(true);
                }
                if asked.kill {
                    handle.kill();
                }
            }
            let progress = lock(&self.board).progress(Instant::now());
            frame::write(&mut worker, &FromShim { progress: Some(progress) })?;
        }
        Ok(())
    }
}

/// Keeps the logs short while this process lives.
fn shorten_logs(launch: &Launch) {
    let launch = launch.clone();
    thread::spawn(move || {
        loop {
            thread::sleep(LOG_PERIOD);
            for rank in launch.local_ranks() {
                let log = log_name(rank, launch.run_attempt);
                keep_newest(&launch.run_dir, &log, launch.log_bytes);
            }
        }
    });
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the older half of a log of more than `bytes` on disk back to the file system. Offsets stay as they are, and the
/// rank that appends notices nothing. On a file system without holes the log grows on.
fn keep_newest(run_dir: &Path, log: &str, bytes: u64) {
    let Ok(file) = run_file::open(run_dir, log, For::Changing) else { return };
    let Ok(of) = file.metadata() else { return };
    // st_blocks counts 512 bytes whatever the file system's block is.
    if of.blocks() * 512 > bytes {
        punch(&file, of.len().saturating_sub(bytes / 2));
    }
}

fn punch(file: &File, length: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = fallocate(file, flags, 0, length) {
        tracing::debug!(%error, "this file system cannot shorten logs");
    }
}

fn wrong(wrong: Wrong) -> v1::Failure {
    let (class, message) = match wrong {
        Wrong::Job(message) => (Class::BadRecipe, message),
        Wrong::Here(message) => (Class::Unsuited, message),
        Wrong::Now(message) => (Class::Infrastructure, message),
    };
    v1::Failure { class: class.into(), ..infrastructure(message) }
}

fn infrastructure(message: String) -> v1::Failure {
    let class = Class::Infrastructure.into();
    v1::Failure { class, exit_code: None, rank: None, message }
}

fn shim_failure(error: ShimError) -> v1::Failure {
    let class = match &error {
        ShimError::Start { .. } => Class::NodeUnfit,
        _ => Class::Infrastructure,
    };
    v1::Failure { class: class.into(), ..infrastructure(error.to_string()) }
}

/// The outcome in the words of the API.
fn outcome_message(outcome: Outcome, progress: v1::Progress) -> v1::Outcome {
    let kind = match outcome {
        Outcome::Finished => Kind::Finished(v1::outcome::Finished {}),
        Outcome::Suspended { stay_stopped, .. } => {
            Kind::Suspended(v1::outcome::Suspended { stay_stopped })
        }
        Outcome::Failed(failure) if failure.cause == FailureCause::Killed => {
            Kind::Killed(v1::outcome::Killed {})
        }
        Outcome::Failed(failure) => Kind::Failed(failure_message(&failure)),
    };
    v1::Outcome { kind: Some(kind), progress: Some(progress) }
}

fn failure_message(failure: &Failure) -> v1::Failure {
    let exit_code = i32::from(Outcome::Failed(Box::new(failure.clone())).exit_code());
    let class = match (&failure.cause, exit_code) {
        (FailureCause::Signalled(_), _) => Class::Killed,
        (_, 75) => Class::Infrastructure,
        (_, 78) => Class::BadRecipe,
        _ => Class::Program,
    };
    let last = failure.log_tail.last().map(|line| format!("; its log ends: {line}"));
    v1::Failure {
        class: class.into(),
        exit_code: Some(exit_code),
        rank: Some(failure.rank.0),
        message: format!("{failure}{}", last.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_long_log_keeps_its_newest_part_and_its_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = run_file::open(dir.path(), "log", For::Appending).unwrap();
        file.write_all(&vec![b'a'; 1 << 20]).unwrap();
        file.write_all(b"the end").unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap();
        keep_newest(dir.path(), "log", 2 << 20);
        assert_eq!(file.metadata().unwrap().blocks(), before.blocks());
        keep_newest(dir.path(), "log", 256 << 10);
        assert_eq!(file.metadata().unwrap().len(), before.len());
        assert!(file.metadata().unwrap().blocks() * 512 <= 160 << 10);
        file.write_all(b"!").unwrap();
        assert!(std::fs::read(&path).unwrap().ends_with(b"aathe end!"));
    }
}
