//! The life of an attempt: placed on nodes, started by their workers, asked to stop, ended node by node.

use super::planted::planted;
use super::timers::Timer;
use super::{
    Action, Failure, FailureClass, JobState, Member, MemberState, NodeId, NodeName, Outcome,
    QuotaKey, Reason, Scheduler, StopReason,
};
use crate::limits;
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Scheduler {
    /// Starts the next attempt of a waiting job on `nodes`, all of which have what it needs.
    pub(super) fn start(&mut self, id: JobId, mut nodes: Vec<NodeId>) {
        if planted!(self, PartialGang) && nodes.len() > 1 {
            nodes.pop();
        }
        self.leave_queue(id);
        self.drop_claim(id);
        nodes.sort_by(|a, b| {
            let (a, b) = (self.at(*a), self.at(*b));
            (&a.capacity.place, a.id).cmp(&(&b.capacity.place, b.id))
        });
        let now = self.now;
        let job = self.edit(id);
        job.attempt = Attempt(job.attempt.0 + 1);
        job.members = nodes.iter().map(|node| Member::new(*node)).collect();
        job.state = JobState::Starting;
        job.stop = None;
        job.failed_before = job.failure.take().or(job.failed_before.take());
        job.placed = now;
        job.running_since = None;
        // Steps since the last checkpoint are done again: that is progress too.
        job.progress.step = job.progress.saved_step;
        job.progress.operations = 0;
        (job.progressed, job.saved) = (now, now);
        let (attempt, spec) = (job.attempt, job.spec.clone());
        self.take_quota(id);
        for node in &nodes {
            let devices = self.at(*node).capacity.devices;
            let devices = spec.devices_per_node.unwrap_or(devices);
            self.at_mut(*node).held.insert(id, devices);
            self.refresh(*node);
        }
        let reason = self.placed(id, &nodes);
        self.note(id, reason);
        let names: Arc<[NodeName]> = nodes.iter().map(|node| self.name(*node)).collect();
        let spec = Arc::new(spec);
        for (index, node) in (0..).zip(names.iter()) {
            let (nodes, spec) = (names.clone(), spec.clone());
            self.actions.push(Action::Start {
                node: node.clone(),
                job: id,
                attempt,
                nodes,
                index,
                spec,
            });
        }
        self.arm(now + self.policy.start_deadline_ms, Timer::Start(id, attempt));
    }

    fn placed(&mut self, id: JobId, nodes: &[NodeId]) -> Reason {
        let places = nodes.iter().map(|node| &self.at(*node).capacity.place);
        let switches = places.clone().collect::<BTreeSet<_>>().len() as u32;
        let zones = places.map(|place| &place.zone).collect::<BTreeSet<_>>().len() as u32;
        if zones > 1 {
            self.cross_zone = Some(id);
        }
        let job = self.get(id);
        let nodes = nodes.len() as u32;
        let shrunk_from = job.spec.nodes.first().copied().filter(|wished| *wished > nodes);
        Reason::Placed { attempt: job.attempt, nodes, switches, zones, shrunk_from }
    }

    /// Key of the quota against which a job counts.
    pub(super) fn quota_key(&self, id: JobId) -> QuotaKey {
        let spec = &self.get(id).spec;
        QuotaKey { user: spec.user.clone(), priority: spec.priority, group: spec.group.clone() }
    }

    pub(super) fn take_quota(&mut self, id: JobId) {
        let job = self.get(id);
        let amount = job.amount(job.members.len() as u32);
        let key = self.quota_key(id);
        self.held.entry(key.clone()).or_default().add(amount);
        self.refresh_lane(&key);
    }

    pub(super) fn release_quota(&mut self, id: JobId) {
        let job = self.get(id);
        let amount = job.amount(job.members.len() as u32);
        let key = self.quota_key(id);
        if let Some(held) = self.held.get_mut(&key) {
            held.sub(amount);
            if *held == super::Amount::default() {
                self.held.remove(&key);
            }
        }
        self.refresh_lane(&key);
        self.dirty.insert(key.group);
    }

    /// A worker has started an attempt.
    pub(super) fn attempt_started(&mut self, node: NodeId, id: JobId, attempt: Attempt) {
        let Some(index) = self.member(node, id, attempt) else {
            return self.unknown_attempt(node, id, attempt);
        };
        let job = self.edit(id);
        if job.members[index].state == MemberState::Assigned {
            job.members[index].state = MemberState::Running;
        }
        let all = job.members.iter().all(|m| m.state == MemberState::Running);
        if job.state == JobState::Starting && all {
            self.all_started(id);
        }
    }

    fn all_started(&mut self, id: JobId) {
        let now = self.now;
        let job = self.edit(id);
        job.state = JobState::Running;
        job.running_since = Some(now);
        (job.progressed, job.saved) = (now, now);
        let (attempt, hang) = (job.attempt, job.spec.hang_timeout_ms);
        let (group, entry) = (job.spec.group.clone(), (job.spec.priority, id));
        self.group_mut(&group).running.insert(entry);
        if let Some(timeout_ms) = hang {
            self.arm(now + timeout_ms, Timer::Hang(id, attempt));
        }
        // Waiting jobs of higher priority may want to know when its quantum ends.
        self.dirty.insert(group);
        self.note(id, Reason::Started { attempt });
    }

    /// Position of a node among the members of a job whose current attempt is `attempt` and not over there.
    pub(super) fn member(&self, node: NodeId, id: JobId, attempt: Attempt) -> Option<usize> {
        let fenced = |job: &&super::Job| job.attempt == attempt || planted!(self, NoFence);
        let job = self.jobs.get(&id).filter(fenced)?;
        job.members.iter().position(|m| m.node == node && !matches!(m.state, MemberState::Ended(_)))
    }

    /// A worker speaks of an attempt that should not live there.
    pub(super) fn unknown_attempt(&mut self, node: NodeId, id: JobId, attempt: Attempt) {
        let newest = self.jobs.get(&id).map_or(Attempt(0), |job| job.attempt);
        let reason = Reason::StaleAttempt { newest };
        let name = self.name(node);
        self.actions.push(Action::Kill { node: name, job: id, attempt, reason });
        // With so many it gets nothing new anyway until all are gone.
        if self.at(node).foreign.len() < limits::FOREIGN_ATTEMPTS
            && self.at_mut(node).foreign.insert((id, attempt))
        {
            self.refresh(node);
        }
    }

    /// An attempt is over on a node, as its worker says.
    pub(super) fn attempt_ended(
        &mut self,
        node: NodeId,
        id: JobId,
        attempt: Attempt,
        outcome: Outcome,
    ) {
        let name = self.name(node);
        self.actions.push(Action::Forget { node: name, job: id, attempt });
        if self.at_mut(node).foreign.remove(&(id, attempt)) {
            self.refresh(node);
        }
        if self.member(node, id, attempt).is_some() {
            self.end_member(node, id, outcome);
        }
    }

    /// The current attempt of a job is over on a node. The first failure decides; the rest of the gang is killed for it.
    pub(super) fn end_member(&mut self, node: NodeId, id: JobId, outcome: Outcome) {
        let now = self.now;
        let unfit_until = now + self.policy.unfit_ms;
        let attempt = self.get(id).attempt;
        let Some(index) = self.member(node, id, attempt) else { return };
        if let Outcome::Failed(Failure { class: FailureClass::NodeUnfit, message, .. }) = &outcome {
            let reason = Reason::NodeUnfit { message: message.clone() };
            self.at_mut(node).unfit_until = unfit_until;
            self.at_mut(node).unfit_for.clone_from(message);
            self.changes.nodes.insert(node);
            self.arm(unfit_until, Timer::Unfit(node));
            self.record(super::Subject::Node(self.name(node)), reason);
        }
        let job = self.edit(id);
        if let Outcome::Failed(Failure { class: FailureClass::Unsuited, .. }) = &outcome {
            job.unsuited.insert(node);
        }
        job.members[index].state = MemberState::Ended(outcome.clone());
        let is_first = job.failure.is_none() && job.state != JobState::Stopping;
        self.release_devices(node, id);
        match outcome {
            Outcome::Failed(failure) if is_first => {
                let job = self.edit(id);
                job.failure = Some(failure.clone());
                job.stop.get_or_insert(StopReason::Failed);
                let reason = Reason::MemberFailed { node: self.name(node), failure };
                self.note(id, reason.clone());
                self.kill(id, reason);
            }
            _ => {}
        }
        let ended = |m: &Member| matches!(m.state, MemberState::Ended(_));
        if self.get(id).members.iter().all(ended) {
            self.conclude(id);
        }
    }

    fn release_devices(&mut self, node: NodeId, id: JobId) {
        self.at_mut(node).held.remove(&id);
        if self.at(node).draining && self.at(node).held.is_empty() {
            self.record(super::Subject::Node(self.name(node)), Reason::NodeFree);
        }
        self.refresh(node);
    }

    /// Asks the current attempt to checkpoint and stop.
    pub(super) fn suspend(&mut self, id: JobId, stop: StopReason, reason: Reason) {
        let now = self.now;
        let grace_ms = self.grace_ms(self.get(id));
        let job = self.edit(id);
        job.state = JobState::Suspending;
        job.stop = Some(stop);
        let attempt = job.attempt;
        self.set_leaving(id);
        self.note(id, reason);
        for node in self.live_members(id) {
            self.say_stop(id, node);
        }
        self.arm(now + grace_ms, Timer::Grace(id, attempt));
    }

    /// Kills what is left of the current attempt.
    pub(super) fn kill(&mut self, id: JobId, reason: Reason) {
        let job = self.edit(id);
        job.state = JobState::Stopping;
        let attempt = job.attempt;
        self.set_leaving(id);
        for node in self.live_members(id) {
            let (node, reason) = (self.name(node), reason.clone());
            self.actions.push(Action::Kill { node, job: id, attempt, reason });
        }
    }

    /// Tells a node (again) how the current attempt of a job is to stop.
    pub(super) fn say_stop(&mut self, id: JobId, node: NodeId) {
        let job = self.get(id);
        let (node, attempt, reason) = (self.name(node), job.attempt, job.reason.clone());
        match job.state {
            JobState::Suspending => {
                self.actions.push(Action::Suspend { node, job: id, attempt, reason });
            }
            JobState::Stopping => {
                self.actions.push(Action::Kill { node, job: id, attempt, reason });
            }
            _ => {}
        }
    }

    fn live_members(&self, id: JobId) -> Vec<NodeId> {
        let members = self.get(id).members.iter();
        members.filter(|m| !matches!(m.state, MemberState::Ended(_))).map(|m| m.node).collect()
    }

    fn set_leaving(&mut self, id: JobId) {
        let spec = &self.get(id).spec;
        let (group, entry) = (spec.group.clone(), (spec.priority, id));
        let group = self.group_mut(&group);
        group.running.remove(&entry);
        group.leaving.insert(id);
        if planted!(self, EarlyRelease) {
            for node in self.live_members(id) {
                self.release_devices(node, id);
            }
        }
    }
}
