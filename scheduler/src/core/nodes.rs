//! Nodes come, live, fall silent, and are lost.
//!
//! A worker's attempts may run for `lease_ms` after it sent the last heartbeat that was answered. The scheduler hears a
//! heartbeat after it was sent, so `lease + grace + margin` after hearing the last one nothing runs there any more.

use super::planted::planted;
use super::timers::Timer;
use super::{
    Action, Capacity, Failure, FailureClass, JobState, MemberState, Node, NodeId, NodeName,
    NodeState, Outcome, Progress, Reason, Registration, ReportedState, Scheduler, Subject,
};
use lampyris_proto::{Attempt, JobId};
use std::collections::{BTreeMap, BTreeSet};

impl Scheduler {
    pub(super) fn registered(&mut self, registration: Registration) {
        if let Some(reason) = self.why_refused(&registration) {
            let Registration { node, session, .. } = registration;
            return self.actions.push(Action::Reject { node, session, reason });
        }
        let Registration { node: name, session, boot_id, instance, capacity, attempts } =
            registration;
        let known = self.names.get(&name).copied();
        let id = known.unwrap_or_else(|| self.add_node(&name, &boot_id, &capacity));
        self.withdraw(id);
        let now = self.now;
        let node = self.at_mut(id);
        let changed = node.boot_id != boot_id
            || node.instance != instance
            || node.capacity != capacity
            || node.state == NodeState::Lost
            || known.is_none();
        (node.boot_id, node.instance, node.capacity) = (boot_id, instance, capacity);
        node.session = Some(session);
        node.heard = now;
        node.state = NodeState::Online;
        node.left = false;
        node.foreign.clear();
        let devices = node.capacity.devices;
        self.refresh(id);
        if changed {
            self.changes.nodes.insert(id);
            self.record(Subject::Node(name), Reason::NodeRegistered { devices });
        }
        self.start_watching(id);
        self.reconcile(id, attempts);
        self.node_reported(id);
    }

    /// Why a registration is refused, if it is. Two workers of one name would cut each other off for ever, and what the
    /// first one runs would be started again beside it: a second one gets in only once nothing of the first can live.
    pub fn why_refused(&self, new: &Registration) -> Option<Reason> {
        let Some(known) = self.names.get(&new.node).map(|id| self.at(*id)) else {
            let max_nodes = self.policy.max_nodes;
            let full = self.nodes.len() >= max_nodes as usize;
            return full.then_some(Reason::TooManyNodes { max_nodes });
        };
        if known.session.is_some_and(|newest| newest >= new.session) {
            return Some(Reason::StaleSession);
        }
        let same_boot = known.boot_id == new.boot_id;
        // Rows of earlier releases name none.
        let same_worker = known.instance.id.is_empty() || known.instance.id == new.instance.id;
        let connected = known.session.is_some() && known.state == NodeState::Online;
        let may_run = known.state != NodeState::Lost && !known.held.is_empty();
        let (node, holder, other) =
            (new.node.clone(), known.instance.clone(), new.instance.clone());
        match (same_worker, same_boot) {
            (true, true) => None,
            // Nothing survives a boot; but two machines may have been made from one image.
            (true, false) => connected.then_some(Reason::NotYetSilent { node, holder, other }),
            (false, _) => {
                (connected || may_run).then_some(Reason::NameTaken { node, holder, other })
            }
        }
    }

    /// Which of its job's nodes a node is in an attempt; nothing if it has no part in it.
    pub fn place_in(&self, name: &NodeName, job: JobId, attempt: Attempt) -> Option<usize> {
        let node = *self.names.get(name)?;
        let members = &self.jobs.get(&job).filter(|job| job.attempt == attempt)?.members;
        members.iter().position(|member| member.node == node)
    }

    fn add_node(&mut self, name: &NodeName, boot_id: &str, capacity: &Capacity) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node {
            id,
            name: name.clone(),
            boot_id: boot_id.to_owned(),
            instance: super::Instance::default(),
            capacity: capacity.clone(),
            state: NodeState::Lost,
            draining: false,
            drained_by_host: false,
            unfit_until: super::Time::default(),
            unfit_for: String::new(),
            left: false,
            session: None,
            heard: self.now,
            held: BTreeMap::new(),
            foreign: BTreeSet::new(),
            claimed: None,
            indexed: None,
            serving: false,
            watched: false,
        });
        self.names.insert(name.clone(), id);
        id
    }

    /// Compares what a worker reports with what should be there, and says again what got lost on the way.
    fn reconcile(&mut self, node: NodeId, reported: Vec<super::ReportedAttempt>) {
        let mut there = BTreeSet::new();
        for attempt in reported {
            there.insert((attempt.job, attempt.attempt));
            match attempt.state {
                ReportedState::Running => {
                    self.attempt_started(node, attempt.job, attempt.attempt);
                    if self.member(node, attempt.job, attempt.attempt).is_some() {
                        self.say_stop(attempt.job, node);
                    }
                }
                ReportedState::Ended(outcome) => {
                    self.attempt_ended(node, attempt.job, attempt.attempt, outcome);
                }
            }
        }
        let held: Vec<JobId> = self.at(node).held.keys().copied().collect();
        for id in held {
            let attempt = self.get(id).attempt;
            if !there.contains(&(id, attempt)) {
                self.not_there(node, id, attempt);
            }
        }
    }

    /// A worker has come back without an attempt that should be there.
    fn not_there(&mut self, node: NodeId, id: JobId, attempt: Attempt) {
        let Some(index) = self.member(node, id, attempt) else { return };
        let job = self.get(id);
        let never_started = job.members[index].state == MemberState::Assigned;
        let stops = matches!(job.state, JobState::Suspending | JobState::Stopping);
        if never_started && stops {
            // The order to start was lost with the old connection, and is not given again.
            self.end_member(node, id, Outcome::Killed);
        } else if never_started {
            self.start_again(node, id, index);
        } else {
            let message = format!("node {} came back without it", self.at(node).name);
            self.end_member(node, id, lost(message));
        }
    }

    fn start_again(&mut self, node: NodeId, id: JobId, index: usize) {
        let job = self.get(id);
        let nodes = self.members(job).into();
        let (attempt, spec) = (job.attempt, job.spec.clone().into());
        let (node, index) = (self.name(node), index as u32);
        self.actions.push(Action::Start { node, job: id, attempt, nodes, index, spec });
    }

    /// The node of a session, if it is still the node's session. Being spoken to counts as a sign of life.
    pub(super) fn node_of_session(&mut self, name: &NodeName, session: u64) -> Option<NodeId> {
        let id = *self.names.get(name)?;
        if self.at(id).session != Some(session) {
            return None;
        }
        let now = self.now;
        let node = self.at_mut(id);
        node.heard = now;
        if node.state == NodeState::Silent {
            node.state = NodeState::Online;
            self.refresh(id);
        }
        Some(id)
    }

    pub(super) fn heartbeat(
        &mut self,
        name: NodeName,
        session: u64,
        progress: &[(JobId, Attempt, Progress)],
    ) {
        let Some(node) = self.node_of_session(&name, session) else {
            let reason = Reason::StaleSession;
            return self.actions.push(Action::Reject { node: name, session, reason });
        };
        let now = self.now;
        for (id, attempt, new) in progress {
            let Some(job) = self.jobs.get_mut(id).filter(|job| job.attempt == *attempt) else {
                continue;
            };
            let Some(member) = job.members.iter_mut().find(|member| member.node == node) else {
                continue;
            };
            if member.reported == *new && !planted!(self, NeverHung) {
                continue;
            }
            // Each node counts for itself: two that have stopped at different counts make no progress in turns.
            member.reported = *new;
            job.progressed = now;
            let known = &mut job.progress;
            known.step = known.step.max(new.step);
            known.operations = known.operations.max(new.operations);
            if new.save_ms > 0 {
                known.save_ms = new.save_ms;
            }
            if new.saved_step > known.saved_step {
                known.saved_step = new.saved_step;
                job.saved = now;
                job.retries = 0;
            }
        }
    }

    pub(super) fn disconnected(&mut self, name: &NodeName, session: u64) {
        let Some(id) = self.names.get(name).copied() else { return };
        let node = self.at_mut(id);
        if node.session != Some(session) {
            return;
        }
        node.session = None;
        if node.state == NodeState::Online {
            node.state = NodeState::Silent;
            self.refresh(id);
            self.record(Subject::Node(name.clone()), Reason::NodeDisconnected);
        }
        if planted!(self, NoLease) {
            self.lose(id);
        }
    }

    /// A worker leaves on purpose: its lease is over where nothing runs.
    pub(super) fn left(&mut self, name: &NodeName, session: u64) {
        let Some(id) = self.node_of_session(name, session) else { return };
        let node = self.at_mut(id);
        if !node.held.is_empty() || !node.foreign.is_empty() {
            return self.disconnected(name, session);
        }
        node.state = NodeState::Lost;
        node.session = None;
        node.left = true;
        self.changes.nodes.insert(id);
        self.refresh(id);
        self.record(Subject::Node(name.clone()), Reason::NodeLeft);
        self.node_reported(id);
    }

    pub(super) fn start_watching(&mut self, id: NodeId) {
        let due = self.at(id).heard + self.policy.lease_ms / 2;
        if !std::mem::replace(&mut self.at_mut(id).watched, true) {
            self.arm(due, Timer::Watch(id));
        }
    }

    /// Looks at a node that was last heard of half a lease ago, or so.
    pub(super) fn watch(&mut self, id: NodeId) {
        let (lost_after, silent_after) = (self.policy.lost_after_ms(), self.policy.lease_ms / 2);
        let now = self.now;
        let node = self.at_mut(id);
        let silent_ms = now - node.heard;
        let silent_after = match node.state {
            NodeState::Lost => {
                node.watched = false;
                return;
            }
            NodeState::Silent if silent_ms >= lost_after => {
                node.watched = false;
                return self.lose(id);
            }
            NodeState::Online if silent_ms >= silent_after => {
                node.state = NodeState::Silent;
                let name = node.name.clone();
                self.refresh(id);
                self.record(Subject::Node(name), Reason::NodeSilent { silent_ms });
                lost_after
            }
            NodeState::Silent => lost_after,
            NodeState::Online => silent_after,
        };
        let due = self.at(id).heard + silent_after;
        self.arm(due, Timer::Watch(id));
    }

    /// Nothing runs on a node any more, and nothing can be known of it.
    fn lose(&mut self, id: NodeId) {
        let silent_ms = self.now - self.at(id).heard;
        let node = self.at_mut(id);
        node.state = NodeState::Lost;
        node.session = None;
        node.foreign.clear();
        let (name, jobs): (_, Vec<JobId>) =
            (node.name.clone(), node.held.keys().copied().collect());
        self.changes.nodes.insert(id);
        self.refresh(id);
        let reason = Reason::NodeLost { silent_ms, jobs: jobs.len() as u32 };
        self.record(Subject::Node(name.clone()), reason);
        for job in jobs {
            if planted!(self, ForgetsLostJobs) {
                self.at_mut(id).held.remove(&job);
                continue;
            }
            self.end_member(id, job, lost(format!("node {name} was silent for {silent_ms} ms")));
        }
    }

    /// Takes a node out of all indexes, before its capacity changes.
    fn withdraw(&mut self, id: NodeId) {
        let node = self.at_mut(id);
        let (indexed, serving) = (node.indexed.take(), std::mem::take(&mut node.serving));
        let (name, place) = (node.capacity.group.clone(), node.capacity.place.clone());
        let Some(group) = self.groups.get_mut(&name) else { return };
        if let Some(free) = indexed {
            group.free.remove(&self.nodes[id.0 as usize], free);
        }
        if serving {
            group.in_service -= 1;
            if let Some(count) = group.zones.get_mut(&place.zone) {
                *count -= 1;
            }
        }
    }

    /// Brings all indexes up to what a node is now.
    pub(super) fn refresh(&mut self, id: NodeId) {
        let node = self.at(id);
        let serving = node.is_in_service(self.now);
        let free = node.free_devices();
        let indexed = (serving && free > 0 && node.claimed.is_none()).then_some(free);
        if (indexed, serving) == (node.indexed, node.serving) {
            // A node that is kept for a job may just have become free for it.
            if let Some(claimed) = node.claimed.filter(|_| serving && free > 0) {
                let group = node.capacity.group.clone();
                debug_assert!(self.jobs.contains_key(&claimed), "claims end with their jobs");
                self.dirty.insert(group);
            }
            return;
        }
        self.withdraw(id);
        let node = &mut self.nodes[id.0 as usize];
        (node.indexed, node.serving) = (indexed, serving);
        let (name, claimed) = (node.capacity.group.clone(), node.claimed);
        self.group_mut(&name);
        let node = &self.nodes[id.0 as usize];
        let Some(group) = self.groups.get_mut(&name) else { return };
        if let Some(free) = indexed {
            group.free.insert(node, free);
        }
        if serving {
            group.in_service += 1;
            *group.zones.entry(node.capacity.place.zone.clone()).or_default() += 1;
        }
        if let Some(claimed) = claimed.filter(|_| !serving) {
            self.drop_claim(claimed);
        }
        self.dirty.insert(name);
    }
}

fn lost(message: String) -> Outcome {
    let class = FailureClass::NodeLost;
    Outcome::Failed(Failure { class, exit_code: None, rank: None, message })
}
