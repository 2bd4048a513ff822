//! One rank process: started in its own process group with one end of a socket pair as its standard input and its output
//! in a log file, watched through a pidfd, killed as a group.
//!
//! That a rank dies with its shim is the rank's own first act (PR_SET_PDEATHSIG needs code between fork and exec, which
//! is unsafe): it asks the kernel for SIGKILL at its parent's death and treats end-of-file on the socket as that death.

use super::cores;
use super::outcome::Exit;
use super::service::{Rendezvous, ShimError};
use crate::run_file::{self, For};
use lampyris_proto::frame::{self, Decoder, FrameError};
use lampyris_proto::rank::{FromRank, ToRank, to_rank};
use lampyris_proto::{Attempt, Rank};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::CpuSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

/// The rank's end of its socket is its standard input: the one descriptor that can be passed without a race and taken
/// (by cloning it) without unsafe code on either side.
const SOCKET_FD: &str = "0";

/// Bytes read from a socket at a time; a message is well under 1 KiB except for sampled text.
const READ_BYTES: usize = 16 << 10;

/// How much of a log is searched for its last lines, and how many lines and characters of each are shown.
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 8;
const TAIL_COLUMNS: usize = 240;

/// Held from the moment the read end of a secret's pipe may be inherited until it is closed, so that no other shim of
/// this process starts a rank that would inherit it too.
static INHERITABLE: Mutex<()> = Mutex::new(());

/// Where and with what a rank is started.
pub(super) struct Launch<'a> {
    pub(super) program: &'a Path,
    pub(super) arguments: &'a [OsString],
    pub(super) run_dir: &'a Path,
    pub(super) rank: Rank,
    pub(super) world: u64,
    pub(super) attempt: Attempt,
    /// None in a job of one rank.
    pub(super) among: Option<Among<'a>>,
    /// The cores the rank may run on; None for all of this process's.
    pub(super) cores: Option<CpuSet>,
    /// Compute threads, unless the plan fixes them; None for all cores.
    pub(super) threads: Option<usize>,
}

/// The place of a rank among others.
pub(super) struct Among<'a> {
    pub(super) nodes: u64,
    pub(super) node: u64,
    pub(super) rendezvous: &'a Rendezvous,
}

/// Where the output of a rank goes, below the run directory.
pub fn log_name(rank: Rank, attempt: Attempt) -> String {
    format!("logs/rank-{rank}.attempt-{attempt}.log")
}

pub(super) struct RankProcess {
    child: Child,
    /// None once its end has been seen.
    pidfd: Option<OwnedFd>,
    /// None once the rank has closed its end.
    socket: Option<UnixStream>,
    decoder: Decoder,
    outbox: Outbox,
    pub(super) log: PathBuf,
    log_reader: File,
}

/// What a rank has not been told yet because it does not read: the rest of a frame, then the newest message of each
/// kind. So it stays small however long a rank is stopped.
#[derive(Default)]
struct Outbox {
    partial: Vec<u8>,
    suspend: Option<ToRank>,
    deadline: Option<ToRank>,
}

impl RankProcess {
    pub(super) fn start(launch: &Launch<'_>) -> Result<RankProcess, ShimError> {
        let log_name = log_name(launch.rank, launch.attempt);
        let log = launch.run_dir.join(&log_name);
        let in_log = |source| ShimError::Log { path: log.clone(), source };
        fs::create_dir_all(launch.run_dir.join("logs")).map_err(in_log)?;
        let open = |what_for| run_file::open(launch.run_dir, &log_name, what_for).map_err(in_log);
        let output = open(For::Appending)?;
        let log_reader = open(For::Reading)?;
        let errors = output.try_clone().map_err(in_log)?;
        let (socket, theirs) = UnixStream::pair().map_err(ShimError::Socket)?;
        socket.set_nonblocking(true).map_err(ShimError::Socket)?;
        let mut command = Command::new(launch.program);
        command
            .args(launch.arguments)
            .arg("--run-dir")
            .arg(launch.run_dir)
            .args(["--rank", &launch.rank.to_string(), "--world", &launch.world.to_string()])
            .args(["--attempt", &launch.attempt.to_string()])
            .args(["--socket-fd", SOCKET_FD])
            .stdin(OwnedFd::from(theirs))
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        if let Some(threads) = launch.threads {
            command.env("OMP_NUM_THREADS", threads.to_string());
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        let child = match &launch.among {
            None => spawn(&mut command, launch)?,
            Some(among) => spawn_among(&mut command, launch, among)?,
        };
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|error| ShimError::Watch(error.into()))?;
        let (decoder, outbox) = Default::default();
        Ok(RankProcess {
            child,
            pidfd: Some(pidfd),
            socket: Some(socket),
            decoder,
            outbox,
            log,
            log_reader,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when the process has ended; none after that has been seen.
    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Readable when the rank has said something or closed its end; none after that.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// How it ended, once.
    pub(super) fn take_exit(&mut self) -> Option<Exit> {
        self.pidfd.as_ref()?;
        let status = self.child.try_wait().ok()??;
        self.pidfd = None;
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        })
    }

    /// Kills the rank and all that it started.
    pub(super) fn kill(&mut self) {
        // The group may be gone already, which is what is wanted.
        let gone = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        if gone.is_err() {
            self.child.kill().ok();
        }
    }

    /// Everything that has arrived, in order. After an error or the end of the stream the socket is closed; the `bool`
    /// says that it is.
    pub(super) fn receive(&mut self) -> (Vec<FromRank>, Result<bool, FrameError>) {
        let mut messages = Vec::new();
        let result = self.receive_into(&mut messages);
        if !matches!(result, Ok(false)) {
            self.socket = None;
        }
        (messages, result)
    }

    fn receive_into(&mut self, messages: &mut Vec<FromRank>) -> Result<bool, FrameError> {
        let mut buffer = [0; READ_BYTES];
        loop {
            let Some(socket) = &mut self.socket else { return Ok(true) };
            match socket.read(&mut buffer) {
                Ok(0) if self.decoder.is_empty() => return Ok(true),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A peer that died with unread messages of ours.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
                Err(error) => return Err(error.into()),
            }
            while let Some(message) = self.decoder.next_message()? {
                messages.push(message);
            }
        }
    }

    /// Tells the rank something, now or when it reads again.
    pub(super) fn send(&mut self, message: ToRank) {
        match message.body {
            Some(to_rank::Body::Suspend(_)) => self.outbox.suspend = Some(message),
            Some(to_rank::Body::Deadline(_)) => self.outbox.deadline = Some(message),
            None => {}
        }
        self.flush();
    }

    /// Tries to send what is left. A rank that has closed its socket is told nothing; its end is seen elsewhere.
    pub(super) fn flush(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        loop {
            if self.outbox.partial.is_empty() {
                let next = self.outbox.suspend.take().or_else(|| self.outbox.deadline.take());
                let Some(next) = next else { return };
                self.outbox.partial =
                    frame::encode(&next).expect("messages to ranks are a few bytes long");
            }
            match socket.write(&self.outbox.partial) {
                Ok(count) => drop(self.outbox.partial.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// The last lines of the log, shortened; empty if it cannot be read.
    pub(super) fn log_tail(&self) -> Vec<String> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = &self.log_reader;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> = text
            .lines()
            .rev()
            .filter(|line| !line.trim().is_empty())
            .take(TAIL_LINES)
            .map(|line| line.chars().take(TAIL_COLUMNS).collect())
            .collect();
        lines.reverse();
        lines
    }
}

/// Starts the process on its cores: it inherits those of this thread, which are put back.
fn spawn(command: &mut Command, launch: &Launch<'_>) -> Result<Child, ShimError> {
    let _pinned = launch.cores.map(cores::pin);
    let program = || launch.program.to_path_buf();
    command.spawn().map_err(|source| ShimError::Start { program: program(), source })
}

/// Starts the process with its place and the secret, in a pipe that it alone inherits.
fn spawn_among(
    command: &mut Command,
    launch: &Launch<'_>,
    among: &Among<'_>,
) -> Result<Child, ShimError> {
    let failed = |errno: rustix::io::Errno| ShimError::Socket(errno.into());
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    // Far less than a pipe holds, so it does not wait.
    rustix::io::write(&write, &among.rendezvous.secret).map_err(failed)?;
    drop(write);
    command
        .args(["--nodes", &among.nodes.to_string(), "--node", &among.node.to_string()])
        .args(["--rendezvous", &among.rendezvous.address.to_string()])
        .args(["--secret-fd", &read.as_raw_fd().to_string()]);
    let _alone = INHERITABLE.lock().unwrap_or_else(PoisonError::into_inner);
    fcntl_setfd(&read, FdFlags::empty()).map_err(failed)?;
    let child = spawn(command, launch);
    drop(read);
    child
}

impl Drop for RankProcess {
    /// No rank outlives its shim, whatever ends the shim.
    fn drop(&mut self) {
        if self.pidfd.is_some() {
            self.kill();
            self.child.wait().ok();
        }
    }
}
