//! Time per step of the core on 10,000 full nodes with 100,000 waiting jobs, per class of event.

use super::print_row;
use anyhow::{Result, ensure};
use lampyris_proto::{Attempt, JobId};
use lampyris_scheduler::core::{
    Action, Amount, Capacity, Command, Event, Instance, JobSpec, JobState, NodeName, NodeState,
    Outcome, Place, Policy, Priority, Progress, Quota, QuotaKey, Registration, Scheduler, Time,
};
use std::time::Instant;

const NODES: u64 = 10_000;
const WAITING: u64 = 100_000;
const USERS: u64 = 200;
const GROUP: &str = "main";

struct Bench {
    core: Scheduler,
    now: u64,
    seed: u64,
    requests: u64,
    /// Attempts that were told to start and have not answered.
    starts: Vec<(NodeName, JobId, Attempt)>,
}

impl Bench {
    fn draw(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.seed >> 33) % below
    }

    /// One step; microseconds.
    fn step(&mut self, event: Event) -> f64 {
        let begun = Instant::now();
        let actions = self.core.step(Time(self.now), event);
        let micros = begun.elapsed().as_secs_f64() * 1e6;
        self.core.take_changes();
        for action in actions {
            if let Action::Start { node, job, attempt, .. } = action {
                self.starts.push((node, job, attempt));
            }
        }
        micros
    }

    /// Lets everything that was placed start, and the core place all it can.
    fn settle(&mut self) {
        loop {
            for (node, job, attempt) in std::mem::take(&mut self.starts) {
                let session = session(&node);
                self.step(Event::AttemptStarted { node, session, job, attempt });
            }
            if self.core.next_wakeup().is_none_or(|at| at > Time(self.now)) {
                return;
            }
            self.step(Event::Tick);
        }
    }

    fn submit(&mut self, priority: Priority, nodes: u32) -> f64 {
        self.requests += 1;
        let spec = JobSpec {
            name: "train".to_owned(),
            user: format!("user-{}", self.draw(USERS)),
            group: GROUP.to_owned(),
            priority,
            nodes: vec![nodes],
            devices_per_node: None,
            max_runtime_ms: None,
            max_retries: 10,
            hang_timeout_ms: Some(1_800_000),
            restart_on_hang: true,
        };
        let command = Command::Submit { request_id: self.requests.to_string(), spec };
        self.step(Event::Command { ticket: 0, command })
    }

    fn running(&mut self) -> JobId {
        let running: Vec<JobId> = self
            .core
            .jobs_after(JobId(0))
            .filter(|job| job.state == JobState::Running)
            .map(|job| job.id)
            .collect();
        running[self.draw(running.len() as u64) as usize]
    }

    fn end_job(&mut self, id: JobId, outcome: &Outcome, times: &mut Vec<f64>) {
        let Some(job) = self.core.job(id) else { return };
        let (attempt, members) = (job.attempt, self.core.members(job));
        for node in members {
            let (session, outcome) = (session(&node), outcome.clone());
            let event = Event::AttemptEnded { node, session, job: id, attempt, outcome };
            times.push(self.step(event));
        }
    }

    fn heartbeat(&mut self, node: u64) -> f64 {
        let name = name(node);
        let Some(known) = self.core.node(&name) else { return 0.0 };
        let held: Vec<JobId> = known.held.keys().copied().collect();
        let step = self.now / 1000;
        let progress = held.into_iter().filter_map(|id| {
            let attempt = self.core.job(id)?.attempt;
            Some((id, attempt, Progress { step, saved_step: step / 50, ..Progress::default() }))
        });
        let progress = progress.collect();
        let session = session(&name);
        self.step(Event::Heartbeat { node: name, session, progress })
    }
}

fn name(index: u64) -> NodeName {
    NodeName(format!("node-{index:05}"))
}

fn session(node: &NodeName) -> u64 {
    node.0.trim_start_matches("node-").parse::<u64>().unwrap_or(0) + 1
}

fn register(index: u64) -> Event {
    let zone = if index < NODES / 2 { "east" } else { "west" };
    let place = Place { zone: zone.to_owned(), switch: format!("{zone}-{:03}", index / 40) };
    Event::Registered(Registration {
        node: name(index),
        session: index + 1,
        boot_id: "b".to_owned(),
        instance: Instance::default(),
        capacity: Capacity { group: GROUP.to_owned(), devices: 8, shared: false, place },
        attempts: Vec::new(),
    })
}

/// 10,000 nodes full of jobs, 100,000 jobs waiting.
fn full_cluster() -> Bench {
    let core = Scheduler::new(Policy::default());
    let mut bench = Bench { core, now: 1_000, seed: 1, requests: 0, starts: Vec::new() };
    for index in 0..NODES {
        bench.step(register(index));
    }
    let sizes = [1, 1, 1, 2, 4, 8, 16, 64];
    let levels = [Priority::Low, Priority::BelowNormal, Priority::Normal, Priority::AboveNormal];
    for _ in 0..WAITING + 2_500 {
        let (size, level) = (bench.draw(8) as usize, bench.draw(4) as usize);
        bench.submit(levels[level], sizes[size]);
    }
    bench.settle();
    // Everything has run for longer than the quantum, and everybody was heard of.
    bench.now += 1_000_000;
    for index in 0..NODES {
        bench.heartbeat(index);
    }
    bench.settle();
    bench
}

fn count(bench: &Bench, state: JobState) -> usize {
    bench.core.jobs_after(JobId(0)).filter(|job| job.state == state).count()
}

pub(super) fn run() -> Result<()> {
    let begun = Instant::now();
    let mut bench = full_cluster();
    let (running, queued) = (count(&bench, JobState::Running), count(&bench, JobState::Queued));
    println!(
        "{NODES} nodes, {running} jobs running, {queued} waiting (made in {:.1} s)",
        begun.elapsed().as_secs_f64()
    );
    ensure!(queued >= WAITING as usize, "the queue is too short");
    println!(
        "{:<24} {:>7} {:>12} {:>12} {:>12}",
        "event", "count", "median us", "p99 us", "max us"
    );
    let heartbeats = (0..20_000).map(|n| {
        bench.now += 1;
        bench.heartbeat(n % NODES)
    });
    print_row("heartbeat", heartbeats.collect());
    let submits = (0..2_000).map(|n| {
        bench.now += 1;
        bench.submit(Priority::Normal, 1 + n % 16)
    });
    print_row("submit", submits.collect());
    let mut ends = Vec::new();
    for _ in 0..600 {
        bench.now += 10;
        let id = bench.running();
        bench.end_job(id, &Outcome::Finished, &mut ends);
        bench.settle();
    }
    print_row("job end (per node)", ends);
    print_row("preempting submit", preempt(&mut bench));
    print_row("quota change", quotas(&mut bench));
    print_row("node loss", losses(&mut bench)?);
    Ok(())
}

/// A job above all others, for which others are suspended at once.
fn preempt(bench: &mut Bench) -> Vec<f64> {
    let mut times = Vec::new();
    for nodes in (0..300).map(|n| 1 << (n % 8)) {
        bench.now += 10;
        times.push(bench.submit(Priority::VeryHigh, nodes));
        let leaving: Vec<JobId> = bench
            .core
            .jobs_after(JobId(0))
            .filter(|job| job.state == JobState::Suspending)
            .map(|job| job.id)
            .collect();
        for id in leaving {
            let suspended = Outcome::Suspended { stay_stopped: true };
            bench.end_job(id, &suspended, &mut Vec::new());
        }
        bench.settle();
    }
    times
}

fn quotas(bench: &mut Bench) -> Vec<f64> {
    let mut times = Vec::new();
    for round in 0..1_000 {
        bench.now += 10;
        let user =
            if round % 10 == 0 { "*".to_owned() } else { format!("user-{}", bench.draw(USERS)) };
        let nodes = (round % 50) as u32;
        let key = QuotaKey { user, priority: Priority::Normal, group: GROUP.to_owned() };
        let quota = Quota { key, limit: Amount { nodes, slots: 0 } };
        times.push(bench.step(Event::Command { ticket: 0, command: Command::SetQuota(quota) }));
        bench.settle();
    }
    times
}

/// Nodes that are not heard of again: time of the step in which each is lost.
fn losses(bench: &mut Bench) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let silent_ms = bench.core.policy().lost_after_ms();
    for dead in (0..200).map(|n| n * 37 % NODES) {
        let node = name(dead);
        bench.step(Event::Disconnected { node: node.clone(), session: dead + 1 });
        bench.now += silent_ms + 1;
        for other in (0..NODES).filter(|other| *other != dead) {
            bench.heartbeat(other);
        }
        // The step that fires the timer of the dead node, and of whoever is due with it.
        while bench.core.node(&node).is_some_and(|node| node.state != NodeState::Lost) {
            times.push(bench.step(Event::Tick));
        }
        bench.settle();
        bench.step(register(dead));
        bench.settle();
    }
    ensure!(!times.is_empty(), "no node was lost");
    Ok(times)
}
