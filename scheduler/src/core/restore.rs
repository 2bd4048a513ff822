//! State from durable rows: what changed, and how a restarted scheduler takes up the work.
//!
//! Durable are jobs, nodes, quotas and the next job number. What workers say anyway when they connect is not: sessions,
//! what attempts are where they should be, progress. After a restart nothing is placed until all nodes that were not lost
//! have reported, or a lease has passed; and no node is lost before it has been silent for a whole term since the restart.

use super::timers::Timer;
use super::{
    Amount, Job, JobState, MemberState, Node, NodeId, NodeState, Policy, Quota, QuotaKey,
    Scheduler, Time,
};
use lampyris_proto::JobId;
use std::collections::BTreeSet;

/// What has changed since the last [`Scheduler::take_changes`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Jobs to be written.
    pub jobs: BTreeSet<JobId>,
    /// Jobs to be removed.
    pub removed_jobs: BTreeSet<JobId>,
    /// Nodes to be written.
    pub nodes: BTreeSet<NodeId>,
    /// Quotas to be written, or removed if they are gone.
    pub quotas: BTreeSet<QuotaKey>,
}

impl Changes {
    /// Nothing to be written.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && self.removed_jobs.is_empty()
            && self.nodes.is_empty()
            && self.quotas.is_empty()
    }
}

/// All that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Number of the next job.
    pub next_job: u64,
    /// All jobs, in any order.
    pub jobs: Vec<Job>,
    /// All nodes, in any order; their ids are 0, 1, 2, ...
    pub nodes: Vec<Node>,
    /// All quotas.
    pub quotas: Vec<Quota>,
}

impl Snapshot {
    /// Whether the rows fit each other, so that nothing is looked up that is not there; else what is wrong.
    ///
    /// # Errors
    /// The table and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        const ATTEMPTS: u64 = 1 << 62;
        let nodes: BTreeSet<u32> = self.nodes.iter().map(|node| node.id.0).collect();
        let count = self.nodes.len();
        if nodes.len() != count || nodes.last().is_some_and(|last| *last as usize >= count) {
            return Err(("nodes", format!("the {count} nodes are not numbered 0, 1, 2, ...")));
        }
        let names: BTreeSet<_> = self.nodes.iter().map(|node| &node.name).collect();
        if names.len() != count {
            return Err(("nodes", "two nodes have one name".to_owned()));
        }
        for job in &self.jobs {
            let id = job.id;
            if let Some(member) = job.members.iter().find(|m| !nodes.contains(&m.node.0)) {
                let node = member.node.0;
                return Err(("jobs", format!("job {id} runs on node {node} of {count}")));
            }
            if job.attempt.0 > ATTEMPTS || job.id.0 >= self.next_job || self.next_job > ATTEMPTS {
                return Err(("jobs", format!("job {id} or its attempt has an impossible number")));
            }
            if job.spec.nodes.is_empty() {
                return Err(("jobs", format!("job {id} asks for no nodes")));
            }
        }
        let jobs: BTreeSet<JobId> = self.jobs.iter().map(|job| job.id).collect();
        if jobs.len() != self.jobs.len() {
            return Err(("jobs", "two jobs have one number".to_owned()));
        }
        Ok(())
    }
}

/// Waiting for nodes to report after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recovery {
    unreported: BTreeSet<NodeId>,
}

impl Scheduler {
    /// What must be made durable before the actions of the steps since the last call are carried out.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// All that is durable, as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            next_job: self.next_job,
            jobs: self.jobs.values().cloned().collect(),
            nodes: self.nodes.clone(),
            quotas: self.quotas().collect(),
        }
    }

    /// Number of the next job.
    pub fn next_job(&self) -> u64 {
        self.next_job
    }

    /// A node by position, for those who write changes.
    pub fn node_at(&self, id: NodeId) -> &Node {
        self.at(id)
    }

    /// A quota's limit, if there is one.
    pub fn quota(&self, key: &QuotaKey) -> Option<Amount> {
        self.quotas.get(key).copied()
    }

    /// A scheduler that takes up the work of an earlier one at `now`.
    pub fn restore(policy: Policy, now: Time, snapshot: Snapshot) -> Scheduler {
        let mut scheduler = Scheduler::new(policy);
        scheduler.now = now;
        scheduler.next_job = snapshot.next_job;
        for quota in snapshot.quotas {
            scheduler.quotas.insert(quota.key, quota.limit);
        }
        let mut nodes = snapshot.nodes;
        nodes.sort_by_key(|node| node.id);
        scheduler.restore_nodes(nodes);
        let mut jobs = snapshot.jobs;
        jobs.sort_by_key(|job| job.id);
        let mut finished: Vec<(Time, JobId)> = Vec::new();
        for job in jobs {
            if job.state.is_terminal() {
                finished.push((job.waiting_since, job.id));
            }
            scheduler.restore_job(job);
        }
        finished.sort_unstable();
        scheduler.finished = finished.into_iter().map(|(_, id)| id).collect();
        let unreported: BTreeSet<NodeId> = scheduler
            .nodes
            .iter()
            .filter(|node| node.state != NodeState::Lost)
            .map(|node| node.id)
            .collect();
        if !unreported.is_empty() {
            scheduler.recovery = Some(Recovery { unreported });
            scheduler.arm(now + scheduler.policy.lease_ms, Timer::Recovered);
        }
        scheduler.changes = super::Changes::default();
        scheduler
    }

    fn restore_nodes(&mut self, nodes: Vec<Node>) {
        for mut node in nodes {
            let id = node.id;
            if node.state == NodeState::Online {
                node.state = NodeState::Silent;
            }
            node.heard = self.now;
            (node.session, node.claimed, node.indexed) = (None, None, None);
            (node.serving, node.watched) = (false, false);
            node.held.clear();
            node.foreign.clear();
            let unfit_until = node.unfit_until;
            self.names.insert(node.name.clone(), id);
            self.group_mut(&node.capacity.group);
            self.nodes.push(node);
            if unfit_until > self.now {
                self.arm(unfit_until, Timer::Unfit(id));
            }
            if self.at(id).state == NodeState::Silent {
                self.at_mut(id).watched = true;
                self.arm(self.now + self.policy.lost_after_ms(), Timer::Watch(id));
            }
        }
    }

    fn restore_job(&mut self, mut job: Job) {
        let (id, now) = (job.id, self.now);
        job.progressed = now;
        self.requests.insert(job.request_id.clone(), id);
        self.live_jobs += u32::from(!job.state.is_terminal());
        let (state, attempt, not_before) = (job.state, job.attempt, job.not_before);
        let (group, entry) = (job.spec.group.clone(), (job.spec.priority, id));
        let (devices, hang) = (job.spec.devices_per_node, job.spec.hang_timeout_ms);
        let members = job.members.clone();
        self.jobs.insert(id, job);
        for member in &members {
            if !matches!(member.state, MemberState::Ended(_)) {
                let node = self.at_mut(member.node);
                node.held.insert(id, devices.unwrap_or(node.capacity.devices));
            }
        }
        if !members.is_empty() {
            let nodes: Vec<NodeId> = members.iter().map(|member| member.node).collect();
            let zone = |node: &NodeId| self.at(*node).capacity.place.zone.clone();
            if nodes.windows(2).any(|pair| zone(&pair[0]) != zone(&pair[1])) {
                self.cross_zone = Some(id);
            }
            self.take_quota(id);
        }
        match state {
            JobState::Queued | JobState::Suspended if not_before > now => {
                self.arm(not_before, Timer::Backoff(id));
            }
            JobState::Queued | JobState::Suspended => self.enter_queue(id),
            JobState::Starting => {
                self.arm(now + self.policy.start_deadline_ms, Timer::Start(id, attempt));
            }
            JobState::Running => {
                self.group_mut(&group).running.insert(entry);
                if let Some(ms) = hang {
                    self.arm(now + ms, Timer::Hang(id, attempt));
                }
            }
            JobState::Suspending => {
                self.group_mut(&group).leaving.insert(id);
                let grace_ms = self.grace_ms(self.get(id));
                self.arm(now + grace_ms, Timer::Grace(id, attempt));
            }
            JobState::Stopping => {
                self.group_mut(&group).leaving.insert(id);
            }
            _ => {}
        }
    }

    /// A node has registered.
    pub(super) fn node_reported(&mut self, id: NodeId) {
        let Some(recovery) = &mut self.recovery else { return };
        recovery.unreported.remove(&id);
        if recovery.unreported.is_empty() {
            self.end_recovery();
        }
    }

    pub(super) fn end_recovery(&mut self) {
        self.recovery = None;
        self.dirty.extend(self.groups.keys().cloned());
    }

    /// Whether nothing is placed yet because nodes may still report after a restart.
    pub fn is_recovering(&self) -> bool {
        self.recovery.is_some()
    }
}
