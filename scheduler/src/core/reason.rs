//! Why: every decision carries one, in words for people.

use super::{Amount, Failure, Instance, NodeName, Priority};
use lampyris_proto::{Attempt, JobId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a job stands where it stands, or why something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "`Display` below says each in words, with its fields")]
pub enum Reason {
    Submitted,
    WaitsForNodes {
        group: String,
        wanted: u32,
        free: u32,
        capacity: u32,
    },
    WaitsForTurn {
        behind: JobId,
    },
    WaitsForSuspends {
        jobs: Vec<JobId>,
    },
    WaitsForQuantum {
        job: JobId,
        left_ms: u64,
    },
    WaitsForNodeReports,
    OverQuota {
        user: String,
        priority: Priority,
        group: String,
        held: Amount,
        limit: Amount,
    },
    TooLarge {
        group: String,
        wanted: u32,
        capacity: u32,
    },
    NoSuchGroup {
        group: String,
    },
    CrossZoneTaken {
        by: JobId,
    },
    BacksOff {
        failure: Failure,
        retry: u32,
        max_retries: u32,
        wait_ms: u64,
    },
    Placed {
        attempt: Attempt,
        nodes: u32,
        switches: u32,
        zones: u32,
        shrunk_from: Option<u32>,
    },
    Started {
        attempt: Attempt,
    },
    PreemptedBy {
        job: JobId,
        priority: Priority,
        cost_device_s: u64,
    },
    PreemptionEnded {
        by: JobId,
    },
    SuspendedByUser,
    SuspendedInRunDirectory,
    SuspendedByNode,
    ResumedByUser,
    CancelledByUser,
    NodeDrained {
        node: NodeName,
    },
    SuspendOverran {
        grace_ms: u64,
    },
    MemberFailed {
        node: NodeName,
        failure: Failure,
    },
    FailedForGood {
        failure: Failure,
    },
    RetriesSpent {
        failure: Failure,
        retries: u32,
    },
    StartOverran {
        deadline_ms: u64,
        missing: u32,
    },
    Hung {
        timeout_ms: u64,
        step: u64,
    },
    Finished {
        attempt: Attempt,
    },
    NodeRegistered {
        devices: u32,
    },
    NodeSilent {
        silent_ms: u64,
    },
    NodeDisconnected,
    NodeLost {
        silent_ms: u64,
        jobs: u32,
    },
    NodeUnfit {
        message: String,
    },
    NodeUnfitFor {
        left_ms: u64,
        message: String,
    },
    NodesUnfit {
        group: String,
        wanted: u32,
        capacity: u32,
        node: NodeName,
        left_ms: u64,
        message: String,
    },
    UnsuitedEverywhere {
        failure: Failure,
        nodes: u32,
    },
    TriedElsewhere {
        failure: Failure,
    },
    NodeLeft,
    NodeResumed,
    NodeFree,
    StaleAttempt {
        newest: Attempt,
    },
    StaleSession,
    TooManyNodes {
        max_nodes: u32,
    },
    NameTaken {
        node: NodeName,
        holder: Instance,
        other: Instance,
    },
    NotYetSilent {
        node: NodeName,
        holder: Instance,
        other: Instance,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Reason as R;
        match self {
            R::Submitted => f.write_str("submitted"),
            R::Placed { .. } => self.placed(f),
            R::Started { attempt } => write!(f, "attempt {attempt} runs on all its nodes"),
            R::PreemptedBy { job, priority, cost_device_s } => write!(
                f,
                "suspended for job {job} of priority {priority}; it cost least to stop \
                 ({cost_device_s} device-seconds)"
            ),
            R::PreemptionEnded { by } => {
                write!(f, "suspended for job {by}; goes on when there is room")
            }
            R::SuspendedByUser => f.write_str("suspended by a person; stays so until resumed"),
            R::SuspendedInRunDirectory => {
                f.write_str("suspended by a request in its run directory; stays so until resumed")
            }
            R::SuspendedByNode => {
                f.write_str("checkpointed on a signal; goes on when there is room")
            }
            R::ResumedByUser => f.write_str("resumed by a person"),
            R::CancelledByUser => f.write_str("cancelled by a person"),
            R::NodeDrained { node } => write!(f, "node {node} is being drained"),
            R::SuspendOverran { grace_ms } => write!(
                f,
                "killed: asked to suspend and not done after {}; goes on from its last checkpoint",
                Span(*grace_ms)
            ),
            R::MemberFailed { node, failure } => write!(f, "failed on node {node}: {failure}"),
            R::FailedForGood { failure } => write!(f, "failed: {failure}"),
            R::RetriesSpent { failure, retries } => {
                write!(f, "failed after {retries} retries without progress: {failure}")
            }
            R::UnsuitedEverywhere { failure, nodes } => {
                write!(f, "failed: {nodes} nodes are not the ones for it; the last: {failure}")
            }
            R::TriedElsewhere { failure } => write!(f, "tried on another node after {failure}"),
            R::StartOverran { deadline_ms, missing } => {
                write!(f, "{missing} nodes had not started after {}", Span(*deadline_ms))
            }
            R::Hung { timeout_ms, step } => {
                write!(f, "no rank made progress for {} after step {step}", Span(*timeout_ms))
            }
            R::Finished { attempt } => write!(f, "finished in attempt {attempt}"),
            _ => self.of_wait(f),
        }
    }
}

impl Reason {
    fn placed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reason::Placed { attempt, nodes, switches, zones, shrunk_from } = self else {
            return Ok(());
        };
        write!(f, "attempt {attempt} placed on {nodes} nodes")?;
        match (zones, switches) {
            (1, 1) => f.write_str(" of one switch")?,
            (1, _) => write!(f, " under {switches} switches of one zone")?,
            _ => write!(f, " under {switches} switches of {zones} zones")?,
        }
        shrunk_from.map_or(Ok(()), |wished| write!(f, ", fewer than the {wished} it wishes"))
    }

    fn of_wait(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::WaitsForNodes { group, wanted, free, capacity } => write!(
                f,
                "waits for nodes: wants {wanted}, {free} of {capacity} in group {group} are free"
            ),
            Reason::WaitsForTurn { behind } => {
                write!(f, "waits for its turn: nodes are kept for job {behind}, which waits longer")
            }
            Reason::WaitsForSuspends { jobs } => {
                write!(f, "waits until {} have suspended", Jobs(jobs))
            }
            Reason::WaitsForQuantum { job, left_ms } => write!(
                f,
                "waits: job {job} could be suspended for it, but may run for another {}",
                Span(*left_ms)
            ),
            Reason::WaitsForNodeReports => f.write_str("waits: the scheduler has just started"),
            Reason::OverQuota { user, priority, group, held, limit } => write!(
                f,
                "waits for quota: {user} holds {held} of {limit} at priority {priority} in group \
                 {group}"
            ),
            Reason::TooLarge { group, wanted, capacity } => write!(
                f,
                "waits for more nodes: wants {wanted}, group {group} has {capacity} in service"
            ),
            Reason::NodesUnfit { group, wanted, capacity, node, left_ms, message } => write!(
                f,
                "waits for more nodes: wants {wanted}, group {group} has {capacity} in service; {node} is \
                 unfit for {}: {message}",
                Span(*left_ms)
            ),
            Reason::NoSuchGroup { group } => write!(f, "waits: no node of group {group} is known"),
            Reason::CrossZoneTaken { by } => {
                write!(f, "waits: would run across zones, as job {by} does; only one may")
            }
            Reason::BacksOff { failure, retry, max_retries, wait_ms } => write!(
                f,
                "tried again in {} (retry {retry} of {max_retries}) after {failure}",
                Span(*wait_ms)
            ),
            _ => self.of_node(f),
        }
    }

    fn of_node(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NodeRegistered { devices } => write!(f, "registered with {devices} devices"),
            Reason::NodeSilent { silent_ms } => write!(f, "not heard of for {}", Span(*silent_ms)),
            Reason::NodeDisconnected => f.write_str("its connection is gone"),
            Reason::NodeLost { silent_ms, jobs } => {
                write!(f, "lost after {} of silence, with {jobs} jobs", Span(*silent_ms))
            }
            Reason::NodeUnfit { message } => write!(f, "unfit: {message}"),
            Reason::NodeUnfitFor { left_ms, message } => {
                write!(f, "unfit for {}: {message}", Span(*left_ms))
            }
            Reason::NodeLeft => f.write_str("its worker was stopped"),
            Reason::NodeResumed => f.write_str("back in service"),
            Reason::NodeFree => f.write_str("drained: nothing runs there"),
            Reason::StaleAttempt { newest } => {
                write!(f, "not the job's current attempt; the newest is {newest}")
            }
            Reason::StaleSession => f.write_str("another connection of this node is newer"),
            Reason::TooManyNodes { max_nodes } => {
                write!(f, "the table of nodes is full ({max_nodes})")
            }
            Reason::NameTaken { node, holder, other } => write!(
                f,
                "node {node} is another worker, {holder}, which lives or whose jobs may still run; this one is \
                 {other}: give it another --name, or stop the other and wait until `lampyris nodes` \
                 shows it as lost"
            ),
            Reason::NotYetSilent { node, holder, other } => write!(
                f,
                "node {node} was heard of a moment ago from another boot, {holder}; this one is \
                 {other}: if the machine has just started again it gets in when the old connection is silent"
            ),
            _ => Ok(()),
        }
    }
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it, with the fields")]
pub enum Refusal {
    #[error("there is no job {0}")]
    NoSuchJob(JobId),
    #[error("there is no node {0}")]
    NoSuchNode(NodeName),
    #[error("job {job} has ended ({state})")]
    HasEnded { job: JobId, state: &'static str },
    #[error("job {0} is being cancelled")]
    BeingCancelled(JobId),
    #[error("job {0} is not suspended")]
    NotSuspended(JobId),
    #[error("{field}: {what}")]
    BadSpec { field: &'static str, what: String },
    #[error("the request id {request_id} was used for another job ({job})")]
    RequestIdTaken { request_id: String, job: JobId },
    #[error("{max_jobs} jobs wait or run already; try again when some have ended")]
    TooManyJobs { max_jobs: u32 },
    #[error("{max_quotas} quotas are set already; remove some first")]
    TooManyQuotas { max_quotas: usize },
    #[error("{max_groups} groups are known already; submit to one of them")]
    TooManyGroups { max_groups: usize },
    #[error("there is no quota for {user} at {priority} in {group}")]
    NoSuchQuota { user: String, priority: Priority, group: String },
}

/// At most a few job numbers.
struct Jobs<'j>(&'j [JobId]);

impl fmt::Display for Jobs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "job " } else { "jobs " })?;
        for (nth, job) in self.0.iter().take(5).enumerate() {
            write!(f, "{}{job}", if nth == 0 { "" } else { ", " })?;
        }
        match self.0.len() {
            0..=5 => Ok(()),
            many => write!(f, " and {} more", many - 5),
        }
    }
}

/// Milliseconds as people say them.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms @ 0..=9_999 => write!(f, "{}.{} s", ms / 1000, ms % 1000 / 100),
            ms @ 10_000..=119_999 => write!(f, "{} s", ms / 1000),
            ms @ 120_000..=7_199_999 => write!(f, "{} min", ms / 60_000),
            ms => write!(f, "{} h", ms / 3_600_000),
        }
    }
}
