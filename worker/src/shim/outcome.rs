//! What a shim tells its caller: events while ranks run, one outcome when they have ended.

use lampyris_proto::{Rank, Step, rank::Failed, rank::from_rank::Body};
use signal_hook::low_level::signal_name;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Something a person or a report may want to know. Outcomes do not depend on events being read.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A rank process exists.
    Started {
        /// Global rank.
        rank: Rank,
        /// Process id.
        pid: u32,
        /// Where its stdout and stderr go.
        log: PathBuf,
    },
    /// A message of a rank.
    Said {
        /// Global rank.
        rank: Rank,
        /// What it said.
        body: Body,
    },
    /// The ranks were asked to stop at the next step boundary.
    Suspending {
        /// Exit 86 instead of 85.
        stay_stopped: bool,
        /// Who asked.
        reason: SuspendReason,
    },
    /// Ranks that were asked to suspend and have not; nothing is killed for it.
    NotAtBoundary {
        /// Each such rank with its last step and what it was doing.
        ranks: Vec<(Rank, Step, String)>,
        /// Time since the request.
        waited: Duration,
    },
}

/// Who asked for a suspend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspendReason {
    /// A signal, by number.
    Signal(i32),
    /// `control/suspend.json` of the run directory.
    Request,
    /// The program that hosts the shim.
    Host,
}

impl fmt::Display for SuspendReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SuspendReason::Signal(signal) => f.write_str(name_of(*signal)),
            SuspendReason::Request => f.write_str("control/suspend.json"),
            SuspendReason::Host => f.write_str("the host program"),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
}

/// How a start of a job ended on this node.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Training is complete.
    Finished,
    /// All ranks committed a checkpoint and stopped.
    Suspended {
        /// Steps completed.
        step: Step,
        /// Stay stopped until resumed, instead of going on when there is room.
        stay_stopped: bool,
    },
    /// Anything else.
    Failed(Box<Failure>),
}

impl Outcome {
    /// Exit code of the program that hosts the shim.
    pub fn exit_code(&self) -> u8 {
        match self {
            Outcome::Finished => 0,
            Outcome::Suspended { stay_stopped: false, .. } => 85,
            Outcome::Suspended { stay_stopped: true, .. } => 86,
            Outcome::Failed(failure) => failure.cause.exit_code(),
        }
    }
}

/// One readable report of a failed start: the rank that failed first and what is known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The rank to which `cause` belongs.
    pub rank: Rank,
    /// What happened.
    pub cause: FailureCause,
    /// Steps it had completed.
    pub step: Step,
    /// What it was doing, empty if unknown.
    pub operation: String,
    /// Its log.
    pub log: PathBuf,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
}

/// Why a start failed.
#[derive(Debug, Clone, PartialEq)]
pub enum FailureCause {
    /// Exited with a failure code, having said why or not.
    Exited {
        /// Exit code.
        code: i32,
        /// Its own account.
        reported: Option<Failed>,
    },
    /// Killed by a signal that this shim did not send.
    Signalled(i32),
    /// Exited with 0, 85 or 86 without having said that it finished or suspended.
    Unannounced(i32),
    /// Broke the protocol of the socket: foreign bytes, another build, a closed socket.
    Protocol(String),
    /// Ranks ended in different ways that do not fit together, e.g. one finished and one suspended.
    Disagreement(String),
    /// Killed because the deadline had passed.
    DeadlinePassed,
    /// Killed by a second SIGINT or by the host program.
    Killed,
}

impl FailureCause {
    fn exit_code(&self) -> u8 {
        match self {
            FailureCause::Exited { code: 75, .. } | FailureCause::DeadlinePassed => 75,
            FailureCause::Exited { code: 78, .. } => 78,
            FailureCause::Killed => 130,
            _ => 1,
        }
    }
}

impl Failure {
    /// What to try, empty if nothing is known.
    pub fn hint(&self) -> String {
        match &self.cause {
            FailureCause::Exited { reported: Some(failed), .. } => failed.hint.clone(),
            FailureCause::Signalled(9) => "this program did not send it; often the kernel's \
                 out-of-memory killer (see dmesg): use a smaller micro-batch or fewer ranks"
                .into(),
            FailureCause::DeadlinePassed => "the run continues from its last checkpoint".into(),
            FailureCause::Protocol(_) | FailureCause::Unannounced(_) => {
                "build lampyris and lampyris-rank together and try again".into()
            }
            _ => String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = self.rank;
        match &self.cause {
            FailureCause::Exited { code, reported: Some(failed) } => {
                write!(f, "rank {rank} failed (exit {code}): {}", failed.message)?;
            }
            FailureCause::Exited { code, reported: None } => {
                write!(f, "rank {rank} exited with code {code}")?;
            }
            FailureCause::Signalled(signal) => {
                write!(f, "rank {rank} was killed by {}", name_of(*signal))?;
            }
            FailureCause::Unannounced(code) => {
                write!(f, "rank {rank} exited with code {code} without a word")?;
            }
            FailureCause::Protocol(what) => write!(f, "rank {rank} {what}")?,
            FailureCause::Disagreement(what) => write!(f, "the ranks disagree: {what}")?,
            FailureCause::DeadlinePassed => f.write_str("the deadline passed: ranks killed")?,
            FailureCause::Killed => f.write_str("killed before a checkpoint was complete")?,
        }
        write!(f, " (after step {}", self.step)?;
        if !self.operation.is_empty() {
            write!(f, ", while {}", self.operation)?;
        }
        f.write_str(")")
    }
}

/// `SIGSEGV` and the like.
fn name_of(signal: i32) -> &'static str {
    signal_name(signal).unwrap_or("an unknown signal")
}
