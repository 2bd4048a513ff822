//! The shell of a shim: one thread that waits on signals, commands, sockets and process ends, hands each to the
//! supervisor and does what it says.

use super::control;
use super::cores;
use super::outcome::{Event, Outcome, SuspendReason};
use super::rank_process::{Among, Launch, RankProcess};
use super::status::StatusFile;
use super::supervisor::{Action, Input, Setup, Supervisor};
use crate::cores::Given;
use crate::hangup;
use lampyris_proto::rank::from_rank::Body;
use lampyris_proto::{Attempt, Rank};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::flag::register_conditional_default;
use signal_hook::iterator::backend::{Handle as SignalHandle, SignalDelivery};
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Longest wait: how late a deadline or `control/suspend.json` may be noticed.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Commands of handles that wait for the shim; it takes all of them every [`TICK`].
const COMMAND_LIMIT: usize = 16;

/// Events kept for a reader that is late; more are dropped, oldest progress first.
const EVENT_BACKLOG: usize = 1024;

/// Why a shim could not start or watch its ranks. How the ranks themselves end is an [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The log of a rank cannot be written.
    #[error("cannot write the log {}: {source}", .path.display())]
    Log {
        /// Path of the log.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The rank program cannot be started.
    #[error("cannot start {}: {source}", .program.display())]
    Start {
        /// Path of the program.
        program: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Several ranks and nowhere to meet, or nodes that do not hold equally many ranks.
    #[error("{0}")]
    Layout(String),
    /// No socket pair, pipe or event counter.
    #[error("cannot make a socket: {0}")]
    Socket(io::Error),
    /// A process cannot be watched.
    #[error("cannot watch a rank process: {0}")]
    Watch(io::Error),
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers: {0}")]
    Signals(io::Error),
}

/// What a shim starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// The rank program.
    pub program: PathBuf,
    /// Sub-command and arguments common to all ranks. `--run-dir`, `--rank`, `--world`, `--attempt` and `--socket-fd`
    /// are added, and in a job of several ranks `--nodes`, `--node`, `--rendezvous` and `--secret-fd`.
    pub arguments: Vec<OsString>,
    /// Run directory: logs go to `logs/`, requests come from `control/`.
    pub run_dir: PathBuf,
    /// Which start of the job this is.
    pub attempt: Attempt,
    /// Global rank of the first local rank.
    pub first_rank: Rank,
    /// Ranks on this node.
    pub local_ranks: usize,
    /// Ranks of the job.
    pub world: u64,
    /// Nodes of the job; each has `world / nodes` ranks, in order.
    pub nodes: u64,
    /// Node of the first local rank. A shim with more ranks than a node has plays several (virtual) nodes: their ranks
    /// take each other for ranks of other hosts.
    pub node: u64,
    /// Where the ranks find each other; needed when there are several.
    pub rendezvous: Option<Rendezvous>,
    /// The cores that the ranks may use; by default all that this process may.
    pub cores: Given,
    /// Build id that each rank must have.
    pub build_id: String,
    /// Moment on CLOCK_BOOTTIME after which the ranks are killed; see [`boottime`].
    pub deadline: Option<Duration>,
    /// How long ranks may take to reach a step boundary before a report names those that have not; repeated.
    pub report_after: Duration,
    /// Take SIGTERM, SIGUSR2, SIGINT and (unless it is ignored) SIGHUP of this process. A host that runs several shims keeps them and uses handles.
    pub handle_signals: bool,
}

/// Where the ranks of an attempt find each other, hosted by whoever starts the job.
#[derive(Clone)]
pub struct Rendezvous {
    /// Of the server.
    pub address: SocketAddr,
    /// What a rank must know to be let in; each gets it through a pipe.
    pub secret: [u8; 32],
}

impl fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rendezvous({}, ..)", self.address)
    }
}

/// Speaks to a running shim; cheap to clone. After the shim has ended every call does nothing.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
}

#[derive(Debug)]
enum Command {
    Suspend { stay_stopped: bool },
    Deadline(Duration),
    Kill,
}

impl Handle {
    /// Asks the ranks to checkpoint and stop at the next step boundary.
    pub fn suspend(&self, stay_stopped: bool) {
        self.send(Command::Suspend { stay_stopped });
    }

    /// Sets or moves the deadline, a moment on CLOCK_BOOTTIME.
    pub fn set_deadline(&self, at: Duration) {
        self.send(Command::Deadline(at));
    }

    /// Kills the ranks now.
    pub fn kill(&self) {
        self.send(Command::Kill);
    }

    fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // It fails only when the counter is full, and then it wakes already.
            rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).ok();
        }
    }
}

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// A shim that is ready to run.
pub struct Service {
    options: Options,
    supervisor: Supervisor,
    signals: Option<(Signals, SignalGuard)>,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    backlog: VecDeque<Event>,
    status: StatusFile,
}

/// When dropped, SIGINT ends the process again, as it did before. Requests to checkpoint have been answered by then and
/// must not change the exit code that tells so: under Slurm the first shim to exit makes `srun -K1` signal the others.
struct SignalGuard {
    handle: SignalHandle,
    ended: Arc<AtomicBool>,
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        self.handle.close();
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Options {
    /// Takes the signals (if asked to) and prepares the shim; no process is started yet.
    ///
    /// # Errors
    /// [`ShimError::Layout`], [`ShimError::Signals`] or [`ShimError::Socket`].
    pub fn build(self) -> Result<(Service, Handle), ShimError> {
        self.check_layout()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.map_err(|error| ShimError::Socket(error.into()))?);
        let (sender, commands) = sync_channel(COMMAND_LIMIT);
        let signals = if self.handle_signals { Some(take_signals()?) } else { None };
        let supervisor = Supervisor::new(Setup {
            build_id: self.build_id.clone(),
            attempt: self.attempt,
            first_rank: self.first_rank,
            local_ranks: self.local_ranks,
            report_after: self.report_after,
        });
        let backlog = VecDeque::new();
        let handle = Handle { commands: sender, wake: Arc::clone(&wake) };
        let status = StatusFile::new(&self);
        let options = self;
        Ok((Service { options, supervisor, signals, commands, wake, backlog, status }, handle))
    }

    fn check_layout(&self) -> Result<(), ShimError> {
        let (world, nodes, ranks) = (self.world, self.nodes, self.local_ranks as u64);
        let wrong = if ranks == 0 || self.first_rank.0 + ranks > world {
            format!("ranks {} and up, {ranks} of them, are not among {world}", self.first_rank)
        } else if nodes == 0 || !world.is_multiple_of(nodes) {
            format!("{world} ranks do not fill {nodes} nodes evenly")
        } else if self.first_rank.0 != self.node * (world / nodes) {
            format!("rank {} is not the first of node {}", self.first_rank, self.node)
        } else if world > 1 && self.rendezvous.is_none() {
            format!("{world} ranks need a rendezvous")
        } else {
            return Ok(());
        };
        Err(ShimError::Layout(wrong))
    }
}

fn take_signals() -> Result<(Signals, SignalGuard), ShimError> {
    let mut taken = vec![SIGTERM, SIGUSR2, SIGINT];
    if !hangup::is_ignored() {
        taken.push(SIGHUP);
    }
    let take = || {
        let ended = Arc::new(AtomicBool::new(false));
        register_conditional_default(SIGINT, Arc::clone(&ended))?;
        let (read, write) = UnixStream::pair()?;
        let signals = SignalDelivery::with_pipe(read, write, SignalOnly, taken)?;
        let guard = SignalGuard { handle: signals.handle(), ended };
        Ok((signals, guard))
    };
    take().map_err(ShimError::Signals)
}

impl Service {
    /// Starts the ranks, watches them until all have ended, and says how. Blocks; the calling thread must live as long
    /// as the ranks, since their death is tied to it. A full `events` loses progress first and is never waited for
    /// while ranks live.
    ///
    /// # Errors
    /// When a rank cannot be started or watched; ranks started before are killed.
    pub fn run(mut self, events: &SyncSender<Event>) -> Result<Outcome, ShimError> {
        let mut ranks = self.start()?;
        if let Some(deadline) = self.options.deadline {
            self.apply(Input::Deadline(deadline), &mut ranks);
        }
        let outcome = loop {
            for input in self.wait(&mut ranks)? {
                self.apply(input, &mut ranks);
            }
            self.forward(events);
            self.status.write_if_due();
            if let Some(outcome) = self.supervisor.outcome() {
                break outcome;
            }
        };
        for event in self.backlog.drain(..) {
            if events.send(event).is_err() {
                break;
            }
        }
        let outcome = self.with_log(outcome, &ranks);
        self.status.end(&outcome);
        Ok(outcome)
    }

    fn start(&mut self) -> Result<Vec<RankProcess>, ShimError> {
        let options = &self.options;
        let mut ranks = Vec::with_capacity(options.local_ranks);
        let mut shares = cores::shares(&options.cores, options.local_ranks).into_iter();
        let ranks_per_node = options.world / options.nodes;
        for index in 0..options.local_ranks {
            let rank = Rank(options.first_rank.0 + index as u64);
            let node = options.node + index as u64 / ranks_per_node;
            let among = options.rendezvous.as_ref().filter(|_| options.world > 1);
            let share = shares.next().unwrap_or_default();
            let process = RankProcess::start(&Launch {
                program: &options.program,
                arguments: &options.arguments,
                run_dir: &options.run_dir,
                rank,
                world: options.world,
                attempt: options.attempt,
                among: among.map(|rendezvous| Among { nodes: options.nodes, node, rendezvous }),
                cores: share.cores,
                threads: share.threads,
            })?;
            let (pid, log) = (process.pid(), process.log.clone());
            let event = Event::Started { rank, pid, log };
            self.status.note(&event);
            self.backlog.push_back(event);
            ranks.push(process);
        }
        Ok(ranks)
    }

    /// Waits for something to happen, at most [`TICK`], and lists it: messages of a rank before its end.
    fn wait(&mut self, ranks: &mut [RankProcess]) -> Result<Vec<Input>, ShimError> {
        self.poll(ranks).map_err(|error| ShimError::Watch(error.into()))?;
        let mut inputs = self.signals_and_commands();
        for (index, rank) in ranks.iter_mut().enumerate() {
            // In this order, so that everything a dead rank has written is read.
            let exit = rank.take_exit();
            if rank.socket().is_some() {
                receive(index, rank, &mut inputs);
            }
            inputs.extend(exit.map(|exit| Input::Exited(index, exit)));
            rank.flush();
        }
        if control::suspend_requested(&self.options.run_dir) {
            inputs.push(Input::Suspend { stay_stopped: true, reason: SuspendReason::Request });
        }
        inputs.push(Input::Tick);
        Ok(inputs)
    }

    fn poll(&self, ranks: &[RankProcess]) -> rustix::io::Result<()> {
        let fds = ranks.iter().flat_map(|rank| [rank.socket(), rank.pidfd()]).flatten();
        let own = self.signals.iter().map(|(signals, _)| signals.get_read().as_fd());
        let mut fds: Vec<PollFd<'_>> = fds
            .chain(own)
            .chain([self.wake.as_fd()])
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
        match poll(&mut fds, Some(&tick)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn signals_and_commands(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        if let Some((signals, _)) = &mut self.signals {
            inputs.extend(signals.pending().map(|signal| match signal {
                SIGINT => Input::Interrupt,
                signal => {
                    let reason = SuspendReason::Signal(signal);
                    Input::Suspend { stay_stopped: false, reason }
                }
            }));
        }
        // Only wakes: the commands are in the channel.
        rustix::io::read(&self.wake, &mut [0; 8]).ok();
        inputs.extend(self.commands.try_iter().map(|command| match command {
            Command::Suspend { stay_stopped } => {
                Input::Suspend { stay_stopped, reason: SuspendReason::Host }
            }
            Command::Deadline(at) => Input::Deadline(at),
            Command::Kill => Input::Kill,
        }));
        inputs
    }

    fn apply(&mut self, input: Input, ranks: &mut [RankProcess]) {
        for action in self.supervisor.step(boottime(), input) {
            match action {
                Action::Send(index, message) => ranks[index].send(message),
                Action::Kill(index) => ranks[index].kill(),
                Action::Emit(event) => self.emit(event),
            }
        }
    }

    /// Queues an event; at the limit, the oldest progress makes room.
    fn emit(&mut self, event: Event) {
        self.status.note(&event);
        if self.backlog.len() >= EVENT_BACKLOG {
            let oldest = self.backlog.iter().position(is_progress).unwrap_or(0);
            self.backlog.remove(oldest);
        }
        self.backlog.push_back(event);
    }

    /// Hands events on as far as the reader has room.
    fn forward(&mut self, events: &SyncSender<Event>) {
        while let Some(event) = self.backlog.pop_front() {
            match events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => return self.backlog.push_front(event),
                Err(TrySendError::Disconnected(_)) => self.backlog.clear(),
            }
        }
    }

    fn with_log(&self, mut outcome: Outcome, ranks: &[RankProcess]) -> Outcome {
        if let Outcome::Failed(failure) = &mut outcome {
            let rank = &ranks[(failure.rank.0 - self.options.first_rank.0) as usize];
            failure.log.clone_from(&rank.log);
            failure.log_tail = rank.log_tail();
        }
        outcome
    }
}

fn receive(index: usize, rank: &mut RankProcess, inputs: &mut Vec<Input>) {
    let (messages, end) = rank.receive();
    inputs.extend(messages.into_iter().map(|message| Input::Message(index, message.body)));
    match end {
        Ok(false) => {}
        Ok(true) => inputs.push(Input::Closed(index)),
        Err(error) => inputs.push(Input::Garbage(index, error.to_string())),
    }
}

fn is_progress(event: &Event) -> bool {
    matches!(event, Event::Said { body: Body::StepDone(_) | Body::Operation(_), .. })
}

/// Now on CLOCK_BOOTTIME, the clock of deadlines: it goes on while the machine sleeps and never jumps.
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    /// Without that, this signal ends the test program.
    #[test]
    fn a_request_to_checkpoint_that_comes_late_changes_no_exit_code() {
        drop(take_signals().unwrap());
        for signal in [Signal::TERM, Signal::USR2, Signal::HUP] {
            kill_process(getpid(), signal).unwrap();
        }
    }
}
