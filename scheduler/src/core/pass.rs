//! The pass over a group: which waiting job gets which free nodes.
//!
//! Jobs are looked at by priority, then in order of submission. A job that cannot be placed stands first in line.
//! Behind it, smaller jobs fill what it cannot use (backfill), until it has waited for `patience_ms`; from then on only
//! those that are over, by their own declared run time, before the first in line could start anyway. Higher
//! priorities also take nodes from lower ones, see `preempt.rs`.

use super::planted::planted;
use super::preempt::Victims;
use super::queue::Group;
use super::timers::Timer;
use super::{Job, NodeId, QuotaKey, Scheduler, Time};
use lampyris_proto::JobId;

/// The first job in line that could not be placed, or the first of them that has lost its patience.
struct FirstInLine {
    job: JobId,
    /// When it could start by what running jobs say of their run time, and how many nodes will be free beyond what it
    /// wants; `None` while others may pass it freely.
    bound: Option<Bound>,
}

struct Bound {
    start: Option<Time>,
    spare: u32,
}

/// Work of one pass.
pub(super) struct Pass {
    pub(super) group: String,
    first: Option<FirstInLine>,
    pub(super) victims: Option<Victims>,
    /// Earliest time at which a pass may do more though nothing happens.
    pub(super) wakeup: Option<Time>,
}

impl Pass {
    pub(super) fn wake_at(&mut self, at: Time) {
        self.wakeup = Some(self.wakeup.map_or(at, |earlier| earlier.min(at)));
    }
}

impl Scheduler {
    /// Runs the passes that are due; a step places at most `max_placements` jobs.
    pub(super) fn place_waiting_jobs(&mut self) {
        if self.recovery.is_some() {
            return;
        }
        let mut placements = self.policy.max_placements;
        while placements > 0 {
            let Some(group) = self.dirty.pop_first() else { break };
            self.pass(group.clone(), &mut placements);
            if placements > 0 {
                // What the pass itself has changed, it has also looked at.
                self.dirty.remove(&group);
            } else {
                self.dirty.insert(group);
            }
        }
    }

    fn pass(&mut self, name: String, placements: &mut u32) {
        self.place_claimants(&name, placements);
        let mut pass = Pass { group: name, first: None, victims: None, wakeup: None };
        if self.may_place_any(&mut pass) {
            for id in self.candidates(&pass.group) {
                // Beyond the bound the rest follows in the next step.
                if *placements == 0 || !self.may_place_more(&mut pass, id) {
                    break;
                }
                match self.try_place(&mut pass, id) {
                    true => *placements -= 1,
                    false => self.stand_in_line(&mut pass, id),
                }
            }
        }
        let first = pass.first.map(|first| first.job);
        self.group_mut(&pass.group).first_in_line = first;
        if let Some(at) = pass.wakeup {
            let group = self.group_mut(&pass.group);
            if group.wakeup.is_none_or(|earlier| at < earlier) {
                group.wakeup = Some(at);
                self.arm(at, Timer::Pass(pass.group));
            }
        }
    }

    /// Waiting jobs in order that have quota for at least their smallest size.
    fn candidates(&self, group: &str) -> Vec<JobId> {
        let Some(group) = self.groups.get(group) else { return Vec::new() };
        let limit = self.policy.max_candidates as usize;
        group.lanes.in_order(limit, |id| {
            let job = self.get(id);
            let smallest = job.spec.nodes.last().copied().unwrap_or(u32::MAX);
            self.fits_quota(&self.quota_key(id), job.amount(smallest))
                && !group.claims.contains_key(&id)
                && smallest <= self.in_service_for(group, job)
        })
    }

    fn may_place_any(&mut self, pass: &mut Pass) -> bool {
        let Some(group) = self.groups.get(&pass.group) else { return false };
        match group.lanes.highest() {
            Some(_) if group.free.is_empty() && group.claims.is_empty() => {
                self.victims(pass).any_below_highest()
            }
            highest => highest.is_some(),
        }
    }

    /// Whether anything at all is left for `id` and those behind it.
    fn may_place_more(&mut self, pass: &mut Pass, id: JobId) -> bool {
        let priority = self.get(id).spec.priority;
        let something = |group: &Group| !group.free.is_empty() || !group.claims.is_empty();
        if self.groups.get(&pass.group).is_some_and(something) {
            return true;
        }
        self.victims(pass).nodes_below(priority) > 0
    }

    /// Places claimants all of whose nodes are free by now.
    fn place_claimants(&mut self, name: &str, placements: &mut u32) {
        let Some(group) = self.groups.get(name) else { return };
        let ready: Vec<(JobId, Vec<NodeId>)> = group
            .claims
            .iter()
            .filter(|(id, nodes)| {
                let devices = self.get(**id).spec.devices_per_node;
                nodes.iter().all(|node| {
                    let node = self.at(*node);
                    node.free_devices() >= devices.unwrap_or(node.capacity.devices)
                })
            })
            .map(|(id, nodes)| (*id, nodes.iter().copied().collect()))
            .collect();
        for (id, nodes) in ready {
            let amount = self.get(id).amount(nodes.len() as u32);
            if !self.fits_quota(&self.quota_key(id), amount) || !self.may_cross(&nodes) {
                self.drop_claim(id);
            } else if *placements > 0 {
                *placements -= 1;
                self.start(id, nodes);
            }
        }
    }

    /// Whether these nodes may be one job's: in one zone, or no other job runs across zones.
    pub(super) fn may_cross(&self, nodes: &[NodeId]) -> bool {
        let zone = |node: &NodeId| &self.at(*node).capacity.place.zone;
        self.cross_zone.is_none()
            || planted!(self, ManyCrossZone)
            || nodes.windows(2).all(|pair| zone(&pair[0]) == zone(&pair[1]))
    }

    /// Places a job, or has nodes vacated for it; `false` if it must wait in line.
    fn try_place(&mut self, pass: &mut Pass, id: JobId) -> bool {
        let job = self.get(id);
        let key = self.quota_key(id);
        let (wished, per_node) = (job.spec.nodes[0], job.spec.devices_per_node);
        let shrink_at = job.waiting_since + self.policy.shrink_after_ms;
        let smaller = job.spec.nodes[1..].to_vec();
        if self.fits_quota(&key, job.amount(wished)) {
            if self.place_on_free(pass, id, wished) {
                return true;
            }
            if self.may_pass(pass, id, wished) {
                if self.take_lower_claims(&pass.group, id, wished, per_node)
                    && self.place_on_free(pass, id, wished)
                {
                    return true;
                }
                if self.vacate(pass, id, wished, per_node) {
                    return false;
                }
            }
        }
        if smaller.is_empty() {
            return false;
        }
        if shrink_at > self.now {
            pass.wake_at(shrink_at);
            return false;
        }
        smaller.into_iter().any(|nodes| {
            let amount = self.get(id).amount(nodes);
            self.fits_quota(&key, amount) && self.place_on_free(pass, id, nodes)
        })
    }

    fn place_on_free(&mut self, pass: &Pass, id: JobId, nodes: u32) -> bool {
        if !self.may_pass(pass, id, nodes) {
            return false;
        }
        let across = self.cross_zone.is_none() || planted!(self, ManyCrossZone);
        let job = self.get(id);
        let per_node = job.spec.devices_per_node;
        let Some(group) = self.groups.get(&pass.group) else { return false };
        match group.free.without(&job.unsuited).choose(nodes as usize, per_node, across) {
            Some(nodes) => {
                self.start(id, nodes);
                true
            }
            None => false,
        }
    }

    /// Whether a job may take free nodes though another stands first in line.
    fn may_pass(&self, pass: &Pass, id: JobId, nodes: u32) -> bool {
        let Some(FirstInLine { bound: Some(bound), .. }) = &pass.first else { return true };
        let over_before = |start: Time| {
            let runs = self.get(id).spec.max_runtime_ms;
            nodes <= bound.spare || runs.is_some_and(|ms| self.now + ms <= start)
        };
        bound.start.is_some_and(over_before)
    }

    fn stand_in_line(&mut self, pass: &mut Pass, id: JobId) {
        let holds = pass.first.as_ref().is_some_and(|first| first.bound.is_some());
        if holds || planted!(self, NoPatience) {
            return;
        }
        let job = self.get(id);
        let Some(group) = self.groups.get(&pass.group) else { return };
        let sizes = job.spec.nodes.iter().copied();
        let in_service = self.in_service_for(group, job);
        let Some(size) = sizes.clone().find(|size| *size <= in_service) else { return };
        // A job that can only run across zones waits for the one that does, and nobody waits for it.
        let one_zone = group.zones.iter().any(|(zone, nodes)| {
            let unsuited = self.unsuited_in_service(job, Some(zone));
            *nodes - unsuited >= size
        });
        let feasible = one_zone || self.cross_zone.is_none();
        let within_quota = self.fits_quota(&self.quota_key(id), job.amount(size));
        if !feasible || group.claims.contains_key(&id) || !within_quota {
            return;
        }
        let impatient = self.now - job.waiting_since >= self.policy.patience_ms;
        if pass.first.is_some() && !impatient {
            return;
        }
        let bound = impatient.then(|| self.bound(group, job, size));
        pass.first = Some(FirstInLine { job: id, bound });
    }

    /// When `job` could start on `wished` nodes if running jobs end when they say.
    fn bound(&self, group: &Group, job: &Job, wished: u32) -> Bound {
        let free = group.free.without(&job.unsuited);
        let mut free = free.count(job.spec.devices_per_node) as u32;
        let mut ends: Vec<(Time, u32)> = Vec::new();
        for (_, id) in &group.running {
            let job = self.get(*id);
            if let (Some(ms), Some(since)) = (job.spec.max_runtime_ms, job.running_since) {
                ends.push((since + ms, job.members.len() as u32));
            }
        }
        // A job that runs for longer than it said may run for ever.
        ends.retain(|(at, _)| *at > self.now);
        ends.sort_unstable();
        for (at, nodes) in ends {
            free += nodes;
            if free >= wished {
                return Bound { start: Some(at), spare: free - wished };
            }
        }
        Bound { start: None, spare: 0 }
    }

    /// Nodes of a group in service, save those that are not the ones for `job`.
    pub(super) fn in_service_for(&self, group: &Group, job: &Job) -> u32 {
        group.in_service - self.unsuited_in_service(job, None)
    }

    /// Nodes in service of a job's group (and zone) that are not the ones for it.
    fn unsuited_in_service(&self, job: &Job, zone: Option<&str>) -> u32 {
        let counts = |id: &&NodeId| {
            let node = self.at(**id);
            let there = zone.is_none_or(|zone| node.capacity.place.zone == zone);
            node.serving && node.capacity.group == job.spec.group && there
        };
        job.unsuited.iter().filter(counts).count() as u32
    }

    /// Ends the claim of a waiting job, if it has one.
    pub(super) fn drop_claim(&mut self, id: JobId) {
        let group = self.get(id).spec.group.clone();
        let Some(nodes) = self.group_mut(&group).claims.remove(&id) else { return };
        for node in nodes {
            self.at_mut(node).claimed = None;
            self.refresh(node);
        }
        self.dirty.insert(group);
    }

    /// Key under which a waiting job counts; used by reasons.
    pub(super) fn over_quota(&self, job: &Job) -> Option<QuotaKey> {
        let key = self.quota_key(job.id);
        let smallest = job.spec.nodes.last().copied().unwrap_or(u32::MAX);
        (!self.fits_quota(&key, job.amount(smallest))).then_some(key)
    }
}
