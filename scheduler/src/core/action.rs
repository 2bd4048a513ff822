//! What a scheduler wants done, after the step that wanted it is durable.

use super::{JobSpec, NodeName, Reason, Refusal};
use lampyris_proto::{Attempt, JobId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What to do. Messages to nodes may get lost: what still matters is said again when the node registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start one node of an attempt. A worker that knows the attempt, or a newer one of the job, starts nothing.
    Start {
        /// To whom.
        node: NodeName,
        /// Job.
        job: JobId,
        /// Attempt.
        attempt: Attempt,
        /// All nodes of the attempt, in the order of node numbers.
        nodes: Arc<[NodeName]>,
        /// Which of them this one is.
        index: u32,
        /// What was asked for.
        spec: Arc<JobSpec>,
    },
    /// Ask an attempt to checkpoint and exit with 86. Said twice it is one request.
    Suspend {
        /// To whom.
        node: NodeName,
        /// Job.
        job: JobId,
        /// Attempt.
        attempt: Attempt,
        /// Why.
        reason: Reason,
    },
    /// Kill an attempt. A worker that does not know it answers that it has ended.
    Kill {
        /// To whom.
        node: NodeName,
        /// Job.
        job: JobId,
        /// Attempt.
        attempt: Attempt,
        /// Why.
        reason: Reason,
    },
    /// The end of an attempt is known here; the worker need not say it again.
    Forget {
        /// To whom.
        node: NodeName,
        /// Job.
        job: JobId,
        /// Attempt.
        attempt: Attempt,
    },
    /// A heartbeat of a session that is none, or a registration that is refused: close the connection.
    Reject {
        /// To whom.
        node: NodeName,
        /// Which connection.
        session: u64,
        /// Why.
        reason: Reason,
    },
    /// The answer to a command.
    Answer {
        /// Of [`super::Event::Command`].
        ticket: u64,
        /// The job or node spoken of, or why nothing was done.
        answer: Result<Answer, Refusal>,
    },
    /// A line of the history: what was decided, about what, why.
    Record(Record),
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The job that was submitted, now or by an earlier request with the same id, or changed.
    Job(JobId),
    /// Done.
    Done,
}

/// A line of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// About what.
    pub subject: Subject,
    /// What was decided or has happened, and why.
    pub reason: Reason,
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A job.
    Job(JobId),
    /// A node.
    Node(NodeName),
}
