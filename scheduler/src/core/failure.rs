//! How attempts end, and what kind of failure earns another one.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How an attempt ended on one node, as its worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Exit 0: training is complete.
    Finished,
    /// Exit 85 or 86: a checkpoint is committed.
    Suspended {
        /// Exit 86: stay stopped until resumed.
        stay_stopped: bool,
    },
    /// The scheduler's `Kill` did it.
    Killed,
    /// Anything else.
    Failed(Failure),
}

/// One failure of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What decides whether the job is tried again.
    pub class: FailureClass,
    /// Exit code of the job's program on that node, if it had one.
    pub exit_code: Option<i32>,
    /// Global rank that failed first, if known.
    pub rank: Option<u64>,
    /// One line for people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Exit 78: recipe, plan or data. Never tried again.
    BadRecipe,
    /// Exit 75: full disk, lost peer, passed deadline.
    Infrastructure,
    /// A rank was killed by a signal that nobody here sent; often the kernel's out-of-memory killer.
    Killed,
    /// The node was silent for lease, grace and margin, or came back without the attempt.
    NodeLost,
    /// The worker found its node unfit before it started anything: memory bandwidth, programs, its own disk.
    NodeUnfit,
    /// The node is well, and not the one for this job: it does not see the job's files or has too little memory for it.
    Unsuited,
    /// Not all nodes had started the attempt in time.
    StartTimeout,
    /// No rank made progress for the job's hang timeout.
    Hang,
    /// Any other exit: a defect, a number that is not finite. Not tried again.
    Program,
}

impl FailureClass {
    /// Whether another attempt may help. Hangs are decided by the job's own policy.
    pub fn is_retryable(self) -> bool {
        !matches!(self, FailureClass::BadRecipe | FailureClass::Program)
    }

    /// Class of an exit code of a shim's host (docs/architecture.md, "Control"), 0, 85 and 86 aside.
    pub fn of_exit_code(code: i32) -> FailureClass {
        match code {
            75 => FailureClass::Infrastructure,
            78 => FailureClass::BadRecipe,
            _ => FailureClass::Program,
        }
    }

    /// The word in logs and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureClass::BadRecipe => "bad_recipe",
            FailureClass::Infrastructure => "infrastructure",
            FailureClass::Killed => "killed",
            FailureClass::NodeLost => "node_lost",
            FailureClass::NodeUnfit => "node_unfit",
            FailureClass::Unsuited => "unsuited",
            FailureClass::StartTimeout => "start_timeout",
            FailureClass::Hang => "hang",
            FailureClass::Program => "program",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}
