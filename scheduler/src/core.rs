//! The decisions of the scheduler, pure: `step(now, event) -> actions`, on whole clusters, in memory.
//!
//! The caller owns clock, network and database: it hands in what happened and when, makes [`Scheduler::take_changes`]
//! durable, and then carries the actions out. The same events give the same state and the same actions, in the same
//! order. What lies between two calls is plain data: no clock, no thread, no hash order, no random number.
//!
//! | file | what |
//! |---|---|
//! | `commands.rs` | what people ask: submit, cancel, suspend, resume, drain, quotas |
//! | `nodes.rs` | registrations, heartbeats, silence, loss |
//! | `attempts.rs`, `conclude.rs` | the life of an attempt, and what follows from its end |
//! | `pass.rs` | which waiting job gets which nodes: order, backfill, shrinking |
//! | `preempt.rs` | whom to suspend for it |
//! | `queue.rs`, `free.rs` | indexes: waiting jobs by priority and user, free nodes by zone and switch |
//! | `timers.rs`, `restore.rs`, `explain.rs` | what happens by itself; state from durable rows; why a job waits |

mod action;
mod attempts;
mod commands;
mod conclude;
mod event;
mod explain;
mod failure;
mod free;
mod job;
mod node;
mod nodes;
mod pass;
mod planted;
mod policy;
mod preempt;
mod queue;
mod quota;
mod reason;
mod restore;
mod time;
mod timers;

#[cfg(test)]
mod tests;

pub use action::{Action, Answer, Record, Subject};
pub use event::{Command, Event, Progress, Registration, ReportedAttempt, ReportedState};
pub use failure::{Failure, FailureClass, Outcome};
pub use job::{Job, JobSpec, JobState, Member, MemberState, Priority, StopReason, Wanted};
pub use node::{Capacity, Instance, Node, NodeId, NodeName, NodeState, Place};
#[cfg(test)]
pub(crate) use planted::Bug;
pub use policy::Policy;
pub use quota::{Amount, Quota, QuotaKey};
pub use reason::{Reason, Refusal};
pub use restore::{Changes, Snapshot};
pub use time::Time;

use lampyris_proto::JobId;
use queue::Group;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use timers::Timer;

/// The scheduler of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduler {
    policy: Policy,
    now: Time,
    jobs: BTreeMap<JobId, Job>,
    next_job: u64,
    /// Jobs that are not terminal.
    live_jobs: u32,
    requests: BTreeMap<String, JobId>,
    /// Terminal jobs, oldest first.
    finished: VecDeque<JobId>,
    nodes: Vec<Node>,
    names: BTreeMap<NodeName, NodeId>,
    groups: BTreeMap<String, Group>,
    quotas: BTreeMap<QuotaKey, Amount>,
    /// What running attempts hold.
    held: BTreeMap<QuotaKey, Amount>,
    /// The job that runs across zones, if any.
    cross_zone: Option<JobId>,
    timers: BTreeSet<(Time, Timer)>,
    /// Groups in which something has changed for the better since their last pass.
    dirty: BTreeSet<String>,
    recovery: Option<restore::Recovery>,
    changes: Changes,
    actions: Vec<Action>,
    planted: planted::Planted,
}

impl Scheduler {
    /// A scheduler of an empty cluster.
    pub fn new(policy: Policy) -> Scheduler {
        Scheduler {
            policy,
            now: Time::default(),
            jobs: BTreeMap::new(),
            next_job: 1,
            live_jobs: 0,
            requests: BTreeMap::new(),
            finished: VecDeque::new(),
            nodes: Vec::new(),
            names: BTreeMap::new(),
            groups: BTreeMap::new(),
            quotas: BTreeMap::new(),
            held: BTreeMap::new(),
            cross_zone: None,
            timers: BTreeSet::new(),
            dirty: BTreeSet::new(),
            recovery: None,
            changes: Changes::default(),
            actions: Vec::new(),
            planted: planted::Planted::default(),
        }
    }

    /// Takes in what happened at `now` and says what to do, in order. Times that go back count as standing still.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        match event {
            Event::Command { ticket, command } => {
                let answer = self.command(command);
                self.actions.push(Action::Answer { ticket, answer });
            }
            Event::Registered(registration) => self.registered(registration),
            Event::Disconnected { node, session } => self.disconnected(&node, session),
            Event::Left { node, session } => self.left(&node, session),
            Event::Heartbeat { node, session, progress } => {
                self.heartbeat(node, session, &progress);
            }
            Event::AttemptStarted { node, session, job, attempt } => {
                if let Some(node) = self.node_of_session(&node, session) {
                    self.attempt_started(node, job, attempt);
                }
            }
            Event::AttemptEnded { node, session, job, attempt, outcome } => {
                if let Some(node) = self.node_of_session(&node, session) {
                    self.attempt_ended(node, job, attempt, outcome);
                }
            }
            Event::Tick => self.fire_timers(),
        }
        self.place_waiting_jobs();
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Tick`] is due, if ever.
    pub fn next_wakeup(&self) -> Option<Time> {
        if !self.dirty.is_empty() && self.recovery.is_none() {
            return Some(self.now);
        }
        self.timers.first().map(|(at, _)| *at)
    }

    /// A job.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs with numbers above `after`, in order of submission.
    pub fn jobs_after(&self, after: JobId) -> impl Iterator<Item = &Job> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.jobs.range((Excluded(after), Unbounded)).map(|(_, job)| job)
    }

    /// All jobs, the newest first.
    pub fn jobs_newest_first(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().rev()
    }

    /// The job that was submitted with a request id.
    pub fn job_of_request(&self, request_id: &str) -> Option<JobId> {
        self.requests.get(request_id).copied()
    }

    /// A node by name.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.names.get(name).map(|id| &self.nodes[id.0 as usize])
    }

    /// All nodes, in order of first registration.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Nodes with names above `after`, in order of name.
    pub fn nodes_by_name(&self, after: &str) -> impl Iterator<Item = &Node> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = NodeName(after.to_owned());
        self.names.range((Excluded(after), Unbounded)).map(|(_, id)| self.at(*id))
    }

    /// All quotas.
    pub fn quotas(&self) -> impl Iterator<Item = Quota> {
        self.quotas.iter().map(|(key, limit)| Quota { key: key.clone(), limit: *limit })
    }

    /// Names of the nodes of a job's current attempt, in the order of node numbers.
    pub fn members(&self, job: &Job) -> Vec<NodeName> {
        job.members.iter().map(|member| self.name(member.node)).collect()
    }

    /// The settings.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn at(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn at_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    fn name(&self, id: NodeId) -> NodeName {
        self.at(id).name.clone()
    }

    /// A job that is known to exist.
    fn get(&self, id: JobId) -> &Job {
        self.jobs.get(&id).expect("jobs are removed only once nothing speaks of them")
    }

    /// The same, to change it: it becomes part of the next durable change.
    fn edit(&mut self, id: JobId) -> &mut Job {
        self.changes.jobs.insert(id);
        self.jobs.get_mut(&id).expect("jobs are removed only once nothing speaks of them")
    }

    fn group_mut(&mut self, name: &str) -> &mut Group {
        if !self.groups.contains_key(name) {
            self.groups.insert(name.to_owned(), Group::default());
        }
        self.groups.get_mut(name).expect("just inserted")
    }

    /// Notes why a job stands where it stands.
    fn note(&mut self, job: JobId, reason: Reason) {
        self.edit(job).reason = reason.clone();
        self.record(Subject::Job(job), reason);
    }

    fn record(&mut self, subject: Subject, reason: Reason) {
        self.actions.push(Action::Record(Record { subject, reason }));
    }
}
