//! What can happen to a scheduler.

use super::{Capacity, Instance, JobSpec, NodeName, Outcome, Quota, QuotaKey};
use lampyris_proto::{Attempt, JobId};
use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A person asks; [`super::Action::Answer`] with the same ticket follows in the same step.
    Command {
        /// Chosen by the caller.
        ticket: u64,
        /// What is asked.
        command: Command,
    },
    /// A worker has connected. Replaces an earlier session of the same node.
    Registered(Registration),
    /// The connection of a session is gone.
    Disconnected {
        /// Node.
        node: NodeName,
        /// Session; an older one than the node's is ignored.
        session: u64,
    },
    /// A worker leaves on purpose. If nothing runs there, its lease ends at once; else it counts as disconnected.
    Left {
        /// Node.
        node: NodeName,
        /// Session.
        session: u64,
    },
    /// A worker lives. Never changes what is durable.
    Heartbeat {
        /// Node.
        node: NodeName,
        /// Session; another one than the node's is answered with [`super::Action::Reject`].
        session: u64,
        /// One entry per attempt with news.
        progress: Vec<(JobId, Attempt, Progress)>,
    },
    /// A worker has started an attempt.
    AttemptStarted {
        /// Node.
        node: NodeName,
        /// Session.
        session: u64,
        /// Job.
        job: JobId,
        /// Attempt.
        attempt: Attempt,
    },
    /// An attempt is over on a node: no process of it lives there. Said again until [`super::Action::Forget`].
    AttemptEnded {
        /// Node.
        node: NodeName,
        /// Session.
        session: u64,
        /// Job.
        job: JobId,
        /// Attempt.
        attempt: Attempt,
        /// How.
        outcome: Outcome,
    },
    /// Time has passed; comes at least at every [`super::Scheduler::next_wakeup`].
    Tick,
}

/// What a person may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A new job.
    Submit {
        /// The same one twice gives the first one's job.
        request_id: String,
        /// What is asked for.
        spec: JobSpec,
    },
    /// End a job: checkpoint and stop, or leave the queue.
    Cancel {
        /// Job.
        job: JobId,
    },
    /// Checkpoint, stop, and stay stopped.
    Suspend {
        /// Job.
        job: JobId,
    },
    /// Let a suspended job run again.
    Resume {
        /// Job.
        job: JobId,
    },
    /// Give a node nothing new.
    Drain {
        /// Node.
        node: NodeName,
        /// Also suspend what runs there; it goes on elsewhere.
        suspend_jobs: bool,
        /// The program that hosts the node's worker asks, because it leaves; it ends the drain when it comes back.
        by_host: bool,
    },
    /// End a drain, or a spell of unfitness.
    ResumeNode {
        /// Node.
        node: NodeName,
        /// Only a drain that the host has made.
        only_host: bool,
    },
    /// Set a quota.
    SetQuota(Quota),
    /// Remove a quota.
    RemoveQuota(QuotaKey),
}

/// What a worker says of itself and of all attempts it knows when it connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Name.
    pub node: NodeName,
    /// Chosen by the caller, larger than all before.
    pub session: u64,
    /// Kernel's boot id.
    pub boot_id: String,
    /// Which worker of that name it is.
    pub instance: Instance,
    /// What it offers.
    pub capacity: Capacity,
    /// All attempts that run there, and all that have ended and are not forgotten.
    pub attempts: Vec<ReportedAttempt>,
}

/// An attempt that a worker knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedAttempt {
    /// Job.
    pub job: JobId,
    /// Attempt.
    pub attempt: Attempt,
    /// How far it is.
    pub state: ReportedState,
}

/// How far an attempt is, as its worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportedState {
    /// Its shim lives.
    Running,
    /// No process of it lives.
    Ended(Outcome),
}

/// What a running attempt has done so far, as one node sees it. Counts never fall within an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps completed since the beginning of the run.
    pub step: u64,
    /// Step of the newest committed checkpoint.
    pub saved_step: u64,
    /// What that save took, from the request to the commit.
    pub save_ms: u64,
    /// Operations begun outside steps (loading, evaluating, saving): moving counts as life.
    pub operations: u64,
}
