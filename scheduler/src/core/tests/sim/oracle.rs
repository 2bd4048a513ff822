//! What must never happen, judged from what lives on the nodes and from what the core shows.

use super::world::World;
use crate::core::{
    Action, Amount, Event, Job, JobState, NodeState, QuotaKey, Reason, Record, Snapshot, Subject,
    Time, Wanted,
};
use lampyris_proto::{Attempt, JobId};
use std::collections::{BTreeMap, BTreeSet};

/// What the oracle remembers.
#[derive(Default)]
pub(super) struct Oracle {
    /// When jobs began to run, by what the core announced.
    running_since: BTreeMap<JobId, u64>,
    /// Jobs whose submission was answered.
    pub(super) accepted: BTreeSet<JobId>,
    /// Newest committed checkpoint of each job.
    pub(super) committed: BTreeMap<JobId, u64>,
    /// The first job in line that has waited too long to be passed, before the step.
    overdue: Option<(JobId, String)>,
    /// Jobs for which nodes were kept before the step: whom they passed was not in line then.
    claimants: BTreeSet<JobId>,
}

impl Oracle {
    /// Looks at the core before a step.
    pub(super) fn before(&mut self, world: &World) {
        let claims = |job: &&Job| matches!(job.reason, Reason::WaitsForSuspends { .. });
        let jobs = world.scheduler.jobs_after(JobId(0));
        self.claimants = jobs.filter(claims).map(|job| job.id).collect();
        self.overdue = world.scheduler.jobs_after(JobId(0)).find_map(|job| overdue(world, job));
    }

    pub(super) fn after(&mut self, world: &World, actions: &[Action]) -> Result<(), String> {
        self.at_most_one_live_attempt(world)?;
        at_most_one_cross_zone(world)?;
        for action in actions {
            match action {
                Action::Start { job, attempt, nodes, index: 0, .. } => {
                    self.started(world, *job, *attempt, nodes.len())?;
                }
                Action::Record(record) => self.recorded(world, record)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Per job at most one attempt with processes, per node no more devices taken than it has.
    fn at_most_one_live_attempt(&self, world: &World) -> Result<(), String> {
        let mut live: BTreeMap<JobId, Attempt> = BTreeMap::new();
        for ((job, attempt), _) in world.runs.iter().filter(|(_, run)| run.is_live()) {
            if let Some(other) = live.insert(*job, *attempt) {
                return Err(format!("attempts {other} and {attempt} of job {job} live at once"));
            }
        }
        for worker in &world.workers {
            let taken: u32 = worker
                .journal
                .iter()
                .filter(|(_, outcome)| outcome.is_none())
                .map(|(key, _)| {
                    let job = world.specs.get(&key.0);
                    job.and_then(|spec| spec.devices_per_node).unwrap_or(worker.capacity.devices)
                })
                .sum();
            if taken > worker.capacity.devices {
                let devices = worker.capacity.devices;
                return Err(format!("{taken} of {devices} devices taken on {}", worker.name));
            }
        }
        Ok(())
    }

    fn started(
        &self,
        world: &World,
        id: JobId,
        attempt: Attempt,
        nodes: usize,
    ) -> Result<(), String> {
        let job = world.scheduler.job(id).ok_or(format!("job {id} was started and is unknown"))?;
        if !job.spec.nodes.contains(&(nodes as u32)) {
            return Err(format!("job {id} started on {nodes} nodes, not on {:?}", job.spec.nodes));
        }
        if job.wanted != Wanted::Run {
            return Err(format!("job {id} started though a person wants it {:?}", job.wanted));
        }
        if job.attempt != attempt || world.runs.contains_key(&(id, Attempt(attempt.0 + 1))) {
            return Err(format!("attempt {attempt} of job {id} started, the newest is another"));
        }
        if job.members.iter().all(|m| m.state == crate::core::MemberState::Assigned) {
            self.within_quota(world, job)?;
            self.nobody_overdue_was_passed(world, job)?;
        }
        Ok(())
    }

    fn within_quota(&self, world: &World, job: &Job) -> Result<(), String> {
        let key = |job: &Job| QuotaKey {
            user: job.spec.user.clone(),
            priority: job.spec.priority,
            group: job.spec.group.clone(),
        };
        let key_of_job = key(job);
        let Some(limit) = world.scheduler.quota(&key_of_job) else { return Ok(()) };
        if job.placed != Time(world.now) {
            return Ok(());
        }
        let mut held = Amount::default();
        for other in world.scheduler.jobs_after(JobId(0)).filter(|job| key(job) == key_of_job) {
            let more = other.amount(other.members.len() as u32);
            held.nodes += more.nodes;
            held.slots += more.slots;
        }
        if held.nodes > limit.nodes || held.slots > limit.slots {
            return Err(format!("{} holds {held}, the quota is {limit}", key_of_job.user));
        }
        Ok(())
    }

    fn nobody_overdue_was_passed(&self, world: &World, job: &Job) -> Result<(), String> {
        let Some((first, group)) = &self.overdue else { return Ok(()) };
        let Some(waits) = world.scheduler.job(*first) else { return Ok(()) };
        let behind = (std::cmp::Reverse(job.spec.priority), job.id)
            > (std::cmp::Reverse(waits.spec.priority), *first);
        let still_waits = waits.is_waiting() && overdue(world, waits).is_some();
        let passes = behind
            && job.spec.group == *group
            && job.spec.max_runtime_ms.is_none()
            && job.placed == Time(world.now)
            && !self.claimants.contains(&job.id)
            && still_waits;
        match passes {
            true => Err(format!(
                "job {} passed job {first}, which has waited too long ({:?} and {:?})",
                job.id, job.spec, waits.spec
            )),
            false => Ok(()),
        }
    }

    fn recorded(&mut self, world: &World, record: &Record) -> Result<(), String> {
        let Subject::Job(id) = &record.subject else { return Ok(()) };
        match &record.reason {
            Reason::Started { .. } => {
                self.running_since.insert(*id, world.now);
            }
            Reason::PreemptedBy { priority, .. } => {
                let since = self.running_since.get(id).copied().unwrap_or(0);
                let quantum = world.scheduler.policy().min_quantum_ms;
                if world.now - since < quantum {
                    return Err(format!("job {id} was suspended within its quantum"));
                }
                let own = world.scheduler.job(*id).map(|job| job.spec.priority);
                if own >= Some(*priority) {
                    return Err(format!("job {id} was suspended for a job of no higher priority"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A checkpoint was committed.
    pub(super) fn commits(&mut self, id: JobId, step: u64) -> Result<(), String> {
        let before = self.committed.insert(id, step).unwrap_or(0);
        match before > step {
            true => Err(format!("job {id} committed step {step} after step {before}")),
            false => Ok(()),
        }
    }

    /// Once faults have stopped and time has passed, everything has ended.
    pub(super) fn at_the_end(&self, world: &World) -> Result<(), String> {
        for id in &self.accepted {
            let Some(job) = world.scheduler.job(*id) else {
                return Err(format!("job {id} was accepted and is lost"));
            };
            if !job.state.is_terminal() {
                let why = world.scheduler.explain(job);
                return Err(format!("job {id} is still {}: {why}", job.state));
            }
            let committed = self.committed.get(id).copied().unwrap_or(0);
            if job.state == JobState::Succeeded && committed != world.total_steps(*id) {
                return Err(format!("job {id} succeeded at step {committed}"));
            }
        }
        Ok(())
    }
}

fn at_most_one_cross_zone(world: &World) -> Result<(), String> {
    let crosses = |job: &&Job| {
        let members = world.scheduler.members(job);
        let zones = members.iter().filter_map(|name| world.scheduler.node(name));
        zones.map(|node| &node.capacity.place.zone).collect::<BTreeSet<_>>().len() > 1
    };
    let count = world.scheduler.jobs_after(JobId(0)).filter(crosses).count();
    (count <= 1).then_some(()).ok_or(format!("{count} jobs run across zones"))
}

/// Whether nobody may pass `job`: it waits for longer than the policy's patience and could run if others ended.
fn overdue(world: &World, job: &Job) -> Option<(JobId, String)> {
    let scheduler = &world.scheduler;
    let policy = scheduler.policy();
    let group = &job.spec.group;
    let since = job.waiting_since + policy.patience_ms + policy.shrink_after_ms;
    if !job.is_waiting() || job.not_before > Time(world.now) || since > Time(world.now) {
        return None;
    }
    if matches!(job.reason, Reason::WaitsForSuspends { .. }) || scheduler.is_recovering() {
        return None;
    }
    let limited = scheduler.quotas().any(|quota| quota.key.group == *group);
    // Where running jobs say when they end, others may pass on what is to spare.
    let says = |other: &Job| !other.members.is_empty() && other.spec.max_runtime_ms.is_some();
    let limited = limited || scheduler.jobs_after(JobId(0)).any(says);
    let size = job.spec.nodes[0] as usize;
    let serves = |zone: &str| {
        let nodes = scheduler.nodes().iter();
        nodes
            .filter(|node| node.is_in_service(Time(world.now)) && node.state == NodeState::Online)
            .filter(|node| node.capacity.group == *group && node.capacity.place.zone == zone)
            .filter(|node| !job.unsuited.contains(&node.id))
            .count()
    };
    let fits = ["east", "west"].iter().any(|zone| serves(zone) >= size);
    (fits && !limited).then(|| (job.id, group.clone()))
}

/// Events replayed from a snapshot give the same state.
pub(super) fn replay(
    mut from: crate::core::Scheduler,
    events: &[(Time, Event)],
    now: &crate::core::Scheduler,
) -> Result<(), String> {
    for (at, event) in events {
        from.step(*at, event.clone());
        from.take_changes();
    }
    (from == *now).then_some(()).ok_or("the recorded events give another state".to_owned())
}

/// What is on disk is what the core would write now, but for what workers report anyway.
pub(super) fn durable(disk: &Snapshot, now: &Snapshot) -> Result<(), String> {
    let plain = |snapshot: &Snapshot| {
        let mut snapshot = snapshot.clone();
        snapshot.jobs.sort_by_key(|job| job.id);
        for job in &mut snapshot.jobs {
            job.progress = crate::core::Progress::default();
            (job.progressed, job.saved, job.retries) = (Time(0), Time(0), 0);
            for member in &mut job.members {
                member.reported = crate::core::Progress::default();
            }
        }
        let nodes: Vec<_> = snapshot
            .nodes
            .into_iter()
            .map(|n| (n.id, n.name, n.boot_id, n.capacity, n.draining, n.unfit_until))
            .collect();
        (snapshot.next_job, snapshot.jobs, nodes, snapshot.quotas)
    };
    let (disk, now) = (plain(disk), plain(now));
    if disk == now {
        return Ok(());
    }
    let job = disk.1.iter().zip(&now.1).find(|(a, b)| a != b);
    Err(format!("the disk does not hold what the core decided: {job:?}"))
}
