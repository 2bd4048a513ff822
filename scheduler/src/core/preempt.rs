//! Whom to suspend for a job of higher priority.
//!
//! Stopping a job costs what its devices did since its last checkpoint (lost if the suspend fails) and what they stand
//! idle while it saves: `devices x (time since the last save + duration of the last save)`, all measured. Victims are
//! taken from the lowest priority up, cheapest per node first, none before its quantum, and only as many as are
//! needed. Nodes that are being vacated anyway cost nothing.
//!
//! The nodes are *claimed*: kept for the job until all of them are free.

use super::pass::Pass;
use super::planted::planted;
use super::{Job, JobState, MemberState, NodeId, Priority, Reason, Scheduler, StopReason, Time};
use lampyris_proto::JobId;
use std::collections::{BTreeMap, BTreeSet};

/// Plans made in one pass, at most: each looks at all running jobs of lower priority.
const MAX_PLANS: u32 = 16;

/// Running jobs of a group that may be suspended now, in the order in which they would be.
#[derive(Debug)]
pub(super) struct Victims {
    list: Vec<Victim>,
    /// Nodes of the victims by priority.
    nodes: BTreeMap<Priority, u32>,
    /// End of the quantum of the job that is next to end it, by priority.
    quantum_ends: BTreeMap<Priority, Time>,
    highest_waiting: Option<Priority>,
    plans: u32,
}

#[derive(Debug, Clone)]
struct Victim {
    job: JobId,
    /// `None` if it is being stopped already.
    priority: Option<Priority>,
    /// Device-milliseconds.
    cost: u64,
    nodes: u32,
}

/// What a job needs that others are suspended for.
struct Need {
    priority: Priority,
    nodes: usize,
    per_node: Option<u32>,
    /// Not these.
    unsuited: BTreeSet<NodeId>,
}

/// What to do for one job.
struct Plan {
    suspend: Vec<(JobId, u64)>,
    nodes: Vec<NodeId>,
    worst: Option<Priority>,
    cost: u64,
}

impl Victims {
    /// Nodes held by jobs below `priority` that may be suspended now.
    pub(super) fn nodes_below(&self, priority: Priority) -> u32 {
        self.nodes.range(..priority).map(|(_, nodes)| nodes).sum()
    }

    /// Whether the first job in line could gain anything.
    pub(super) fn any_below_highest(&self) -> bool {
        self.highest_waiting.is_some_and(|priority| self.nodes_below(priority) > 0)
    }
}

/// Device-milliseconds that stopping a job costs.
fn cost_to_stop(job: &Job, devices: u64, now: Time) -> u64 {
    devices.saturating_mul((now - job.saved).saturating_add(job.progress.save_ms))
}

impl Scheduler {
    /// The victims of a group, gathered once per pass.
    pub(super) fn victims<'p>(&self, pass: &'p mut Pass) -> &'p mut Victims {
        if pass.victims.is_none() {
            let victims = self.gather_victims(&pass.group);
            let waiting = victims.highest_waiting;
            // Whoever waits above a job within its quantum wants to know when that ends.
            let due =
                waiting.and_then(|top| victims.quantum_ends.range(..top).map(|(_, at)| *at).min());
            if let Some(at) = due {
                pass.wake_at(at);
            }
            pass.victims = Some(victims);
        }
        pass.victims.as_mut().expect("just gathered")
    }

    fn gather_victims(&self, group: &str) -> Victims {
        let mut victims = Victims {
            list: Vec::new(),
            nodes: BTreeMap::new(),
            quantum_ends: BTreeMap::new(),
            highest_waiting: None,
            plans: 0,
        };
        let Some(group) = self.groups.get(group) else { return victims };
        victims.highest_waiting = group.lanes.highest();
        let Some(top) = victims.highest_waiting else { return victims };
        for id in &group.leaving {
            let nodes = self.get(*id).members.len() as u32;
            victims.list.push(Victim { job: *id, priority: None, cost: 0, nodes });
        }
        for (priority, id) in group.running.range(..(top, JobId(0))) {
            let job = self.get(*id);
            let quantum_end = job.running_since.unwrap_or(self.now) + self.policy.min_quantum_ms;
            if quantum_end > self.now && !planted!(self, NoQuantum) {
                let earliest = victims.quantum_ends.entry(*priority).or_insert(quantum_end);
                *earliest = quantum_end.min(*earliest);
                continue;
            }
            let nodes = job.members.len() as u32;
            *victims.nodes.entry(*priority).or_default() += nodes;
            let cost = cost_to_stop(job, self.devices_of(job), self.now);
            victims.list.push(Victim { job: *id, priority: Some(*priority), cost, nodes });
        }
        victims.list.sort_by_key(|v| (v.priority, v.cost / u64::from(v.nodes.max(1)), v.job));
        victims
    }

    fn devices_of(&self, job: &Job) -> u64 {
        let of = |node: NodeId| self.at(node).held.get(&job.id).copied().unwrap_or(0);
        job.members.iter().map(|member| u64::from(of(member.node))).sum()
    }

    /// Has nodes vacated for a job and keeps them for it. `false` if there are not enough.
    pub(super) fn vacate(
        &mut self,
        pass: &mut Pass,
        id: JobId,
        nodes: u32,
        per_node: Option<u32>,
    ) -> bool {
        let job = self.get(id);
        let priority = job.spec.priority;
        let Some(group) = self.groups.get(&pass.group) else { return false };
        let free = group.free.without(&job.unsuited).count(per_node) as u32;
        let victims = self.victims(pass);
        let leaving: u32 =
            victims.list.iter().filter(|v| v.priority.is_none()).map(|v| v.nodes).sum();
        let enough = free.saturating_add(leaving).saturating_add(victims.nodes_below(priority));
        if enough < nodes || victims.plans >= MAX_PLANS {
            return false;
        }
        victims.plans += 1;
        let unsuited = self.get(id).unsuited.clone();
        let need = Need { priority, nodes: nodes as usize, per_node, unsuited };
        let Some(plan) = self.best_plan(pass, &need) else {
            return false;
        };
        self.carry_out(pass, id, plan);
        true
    }

    /// What is kept for jobs of lower priority is free for this one, if that is what it takes.
    pub(super) fn take_lower_claims(
        &mut self,
        group: &str,
        id: JobId,
        nodes: u32,
        per_node: Option<u32>,
    ) -> bool {
        let Some(group) = self.groups.get(group) else { return false };
        let job = self.get(id);
        let (priority, nodes) = (job.spec.priority, nodes as usize);
        let free = group.free.without(&job.unsuited).count(per_node);
        let lower: Vec<(JobId, usize)> = group
            .claims
            .iter()
            .filter(|(claimant, _)| self.get(**claimant).spec.priority < priority)
            .map(|(claimant, nodes)| (*claimant, nodes.len()))
            .collect();
        let more: usize = lower.iter().map(|(_, nodes)| nodes).sum();
        if lower.is_empty() || free >= nodes || free + more < nodes {
            return false;
        }
        for (claimant, _) in lower {
            self.drop_claim(claimant);
        }
        true
    }

    /// The plan that stops the least important and cheapest jobs: within one zone, or across zones if that may be.
    fn best_plan(&self, pass: &Pass, need: &Need) -> Option<Plan> {
        let group = self.groups.get(&pass.group)?;
        let victims = pass.victims.as_ref()?;
        let zones = group.zones.iter().filter(|(_, count)| **count as usize >= need.nodes);
        let in_zones = zones.filter_map(|(zone, _)| self.plan(pass, victims, Some(zone), need));
        in_zones.min_by_key(|plan| (plan.worst, plan.cost)).or_else(|| {
            let may = self.cross_zone.is_none();
            may.then(|| self.plan(pass, victims, None, need)).flatten()
        })
    }

    fn plan(
        &self,
        pass: &Pass,
        victims: &Victims,
        zone: Option<&str>,
        need: &Need,
    ) -> Option<Plan> {
        let group = self.groups.get(&pass.group)?;
        let (wanted, per_node) = (need.nodes, need.per_node);
        let suited = group.free.without(&need.unsuited);
        let free = match zone {
            Some(zone) => suited.count_in(zone, per_node),
            None => suited.count(per_node),
        };
        let missing = wanted.saturating_sub(free);
        let mut yields = Yields { scheduler: self, zone, need, vacated: BTreeMap::new() };
        let mut taken: Vec<(&Victim, BTreeSet<NodeId>)> = Vec::new();
        let mut gained = BTreeSet::new();
        for victim in &victims.list {
            if gained.len() >= missing {
                break;
            }
            if victim.priority.is_some_and(|p| p >= need.priority) || !self.still_there(victim) {
                continue;
            }
            let new = yields.add(self.get(victim.job));
            gained.extend(new.iter().copied());
            taken.push((victim, new));
        }
        if gained.len() < missing {
            return None;
        }
        let gained = needed(&mut taken, gained, missing);
        let mut nodes: Vec<NodeId> = gained.into_iter().take(missing).collect();
        let from_free = suited.all(zone, per_node);
        nodes.extend(from_free.into_iter().take(wanted - nodes.len()));
        let stops = || taken.iter().filter(|(victim, _)| victim.priority.is_some());
        Some(Plan {
            suspend: stops().map(|(victim, _)| (victim.job, victim.cost)).collect(),
            worst: stops().filter_map(|(victim, _)| victim.priority).max(),
            cost: stops().map(|(victim, _)| victim.cost).sum(),
            nodes,
        })
    }

    /// Whether a victim is still what it was when the victims were gathered.
    fn still_there(&self, victim: &Victim) -> bool {
        let state = self.get(victim.job).state;
        match victim.priority {
            Some(_) => state == JobState::Running,
            None => matches!(state, JobState::Suspending | JobState::Stopping),
        }
    }

    fn carry_out(&mut self, pass: &mut Pass, id: JobId, plan: Plan) {
        let priority = self.get(id).spec.priority;
        for node in &plan.nodes {
            self.at_mut(*node).claimed = Some(id);
            self.refresh(*node);
        }
        let suspended: Vec<JobId> = plan.suspend.iter().map(|(job, _)| *job).collect();
        let nodes = plan.nodes.into_iter().collect();
        self.group_mut(&pass.group).claims.insert(id, nodes);
        for (victim, cost) in plan.suspend {
            let held = self.get(victim).members.len() as u32;
            let level = self.get(victim).spec.priority;
            if let Some(nodes) = pass.victims.as_mut().and_then(|v| v.nodes.get_mut(&level)) {
                *nodes = nodes.saturating_sub(held);
            }
            let cost_device_s = cost / 1000;
            let reason = Reason::PreemptedBy { job: id, priority, cost_device_s };
            self.suspend(victim, StopReason::Preempted { by: id }, reason);
        }
        self.note(id, Reason::WaitsForSuspends { jobs: suspended });
    }
}

/// Drops victims without which there are still enough nodes, the last taken first.
fn needed(
    taken: &mut Vec<(&Victim, BTreeSet<NodeId>)>,
    mut gained: BTreeSet<NodeId>,
    missing: usize,
) -> BTreeSet<NodeId> {
    let mut index = taken.len();
    while index > 0 {
        index -= 1;
        // A node that several victims share was counted for the last of them only.
        let shared = taken[index].0.nodes as usize != taken[index].1.len();
        if !shared && gained.len() - taken[index].1.len() >= missing {
            for node in &taken[index].1 {
                gained.remove(node);
            }
            taken.remove(index);
        }
    }
    gained
}

/// Which nodes become free when victims leave, one victim after the other.
struct Yields<'s> {
    scheduler: &'s Scheduler,
    zone: Option<&'s str>,
    need: &'s Need,
    vacated: BTreeMap<NodeId, u32>,
}

impl Yields<'_> {
    /// Nodes that `job` makes fit, beside those that left before it.
    fn add(&mut self, job: &Job) -> BTreeSet<NodeId> {
        let mut new = BTreeSet::new();
        for member in &job.members {
            let node = self.scheduler.at(member.node);
            let wrong_zone = self.zone.is_some_and(|zone| node.capacity.place.zone != zone);
            let over = matches!(member.state, MemberState::Ended(_));
            let unsuited = self.need.unsuited.contains(&node.id);
            if wrong_zone || over || unsuited || !node.serving || node.claimed.is_some() {
                continue;
            }
            let needs = self.need.per_node.unwrap_or(node.capacity.devices);
            if self.need.per_node.is_some() && !node.capacity.shared {
                continue;
            }
            let held = node.held.get(&job.id).copied().unwrap_or(0);
            let before = node.free_devices() + self.vacated.get(&node.id).copied().unwrap_or(0);
            *self.vacated.entry(node.id).or_default() += held;
            if before < needs && before + held >= needs {
                new.insert(node.id);
            }
        }
        new
    }
}
