//! Jobs: what was asked for, and where it stands.

use super::{Amount, Failure, NodeId, Outcome, Progress, Reason, Time};
use lampyris_proto::{Attempt, JobId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Levels of priority; a job may suspend jobs of lower levels, never of its own.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Priority {
    Low,
    BelowNormal,
    #[default]
    Normal,
    AboveNormal,
    High,
    VeryHigh,
    ExtremeHigh,
}

impl Priority {
    /// All levels, lowest first.
    pub const ALL: [Priority; 7] = [
        Priority::Low,
        Priority::BelowNormal,
        Priority::Normal,
        Priority::AboveNormal,
        Priority::High,
        Priority::VeryHigh,
        Priority::ExtremeHigh,
    ];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::BelowNormal => "below_normal",
            Priority::Normal => "normal",
            Priority::AboveNormal => "above_normal",
            Priority::High => "high",
            Priority::VeryHigh => "very_high",
            Priority::ExtremeHigh => "extreme_high",
        }
    }

    /// The level of a word.
    pub fn parse(word: &str) -> Option<Priority> {
        Priority::ALL.into_iter().find(|priority| priority.as_str() == word)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a person asks for. What is to run is not here: the caller keeps it beside the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Name for people; need not be unique.
    pub name: String,
    /// Whose quota it counts against.
    pub user: String,
    /// Node group.
    pub group: String,
    /// Level.
    pub priority: Priority,
    /// Numbers of nodes that it can run on, the wished one first, then smaller ones in falling order.
    pub nodes: Vec<u32>,
    /// Devices on each node, for shared nodes; `None` takes whole nodes.
    pub devices_per_node: Option<u32>,
    /// How long one attempt runs at most, if known: lets a short job fill a gap before a waiting large one.
    pub max_runtime_ms: Option<u64>,
    /// Attempts after a failure that may pass by itself, without progress in between.
    pub max_retries: u32,
    /// Without progress for so long the job counts as hung; `None` never.
    pub hang_timeout_ms: Option<u64>,
    /// Start a hung job again (within `max_retries`), instead of failing it.
    pub restart_on_hang: bool,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for nodes, and has not run or is to be tried again.
    Queued,
    /// All its nodes were told to start.
    Starting,
    /// All its nodes have started.
    Running,
    /// Asked to checkpoint and stop.
    Suspending,
    /// Being killed.
    Stopping,
    /// Checkpointed and off its nodes: waits for nodes, or for a person if [`Job::wanted`] says so.
    Suspended,
    /// Complete.
    Succeeded,
    /// Will not be tried again.
    Failed,
    /// Taken back by a person.
    Cancelled,
}

impl JobState {
    /// Nothing will change any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Starting => "starting",
            JobState::Running => "running",
            JobState::Suspending => "suspending",
            JobState::Stopping => "stopping",
            JobState::Suspended => "suspended",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What people want of a job; the scheduler works towards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// To run when there is room.
    Run,
    /// To stay suspended until resumed.
    Suspended,
    /// To end.
    Cancelled,
}

/// Why an attempt is being stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A job of higher priority takes the nodes.
    Preempted {
        /// That job.
        by: JobId,
    },
    /// A person asked for a suspend.
    UserSuspend,
    /// A person cancelled it.
    UserCancel,
    /// One of its nodes is being drained.
    Drain,
    /// A part of it has failed.
    Failed,
}

/// One node of a running attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node; members stand in the order of node numbers of the job.
    pub node: NodeId,
    /// How far it is.
    pub state: MemberState,
    /// What its ranks last reported. Kept in memory; the worker says it again after a restart.
    #[serde(skip)]
    pub reported: Progress,
}

impl Member {
    /// One that is told to start.
    pub(super) fn new(node: NodeId) -> Member {
        Member { node, state: MemberState::Assigned, reported: Progress::default() }
    }
}

/// How far one node of an attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Told to start; until it answers it may run or not.
    Assigned,
    /// The worker says that it runs.
    Running,
    /// Over on this node, whose devices are free again.
    Ended(Outcome),
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// Key of idempotent submission; unique.
    pub request_id: String,
    /// Where it stands.
    pub state: JobState,
    /// Why it stands there.
    pub reason: Reason,
    /// What people want of it.
    pub wanted: Wanted,
    /// When it was submitted.
    pub submitted: Time,
    /// Not to be started before, after a failure.
    pub not_before: Time,
    /// When it began to wait for nodes, the last time; of a job that has ended, when it did.
    pub waiting_since: Time,
    /// Its last attempt; 0 before the first.
    pub attempt: Attempt,
    /// Nodes of the current attempt; empty between attempts.
    pub members: Vec<Member>,
    /// Why the current attempt is being stopped, if it is.
    pub stop: Option<StopReason>,
    /// The failure that ends the current attempt, or that ended the last one.
    pub failure: Option<Failure>,
    /// The failure of the newest attempt before the current one that failed.
    #[serde(default)]
    pub failed_before: Option<Failure>,
    /// Nodes that were not the ones for it; it is not placed on them.
    #[serde(default)]
    pub unsuited: BTreeSet<NodeId>,
    /// When the current attempt was placed.
    pub placed: Time,
    /// When the current attempt was running on all nodes, if it is.
    pub running_since: Option<Time>,
    /// Failures since the last progress.
    pub retries: u32,
    /// What ranks last reported. Kept in memory; workers say it again after a restart.
    pub progress: Progress,
    /// When `progress` last moved.
    pub progressed: Time,
    /// When the saved step of `progress` last moved, or the attempt began to run.
    pub saved: Time,
}

impl Job {
    /// What `nodes` nodes of it count against a quota.
    pub fn amount(&self, nodes: u32) -> Amount {
        match self.spec.devices_per_node {
            None => Amount { nodes, slots: 0 },
            Some(devices) => Amount { nodes: 0, slots: nodes.saturating_mul(devices) },
        }
    }

    /// Whether it waits for nodes now or after its backoff.
    pub fn is_waiting(&self) -> bool {
        self.wanted == Wanted::Run && matches!(self.state, JobState::Queued | JobState::Suspended)
    }
}
