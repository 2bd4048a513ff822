//! What people do in the simulation, and what befalls machines: drawn from the seed.

use super::rng::Rng;
use crate::core::{
    Amount, Capacity, Command, JobSpec, NodeName, Place, Policy, Priority, Quota, QuotaKey,
};
use lampyris_proto::JobId;

/// A fault or a wish.
#[derive(Debug, Clone)]
pub(super) enum Happens {
    Ask(Command),
    /// A node is cut off for so long.
    Partition(usize, u64),
    /// The connection breaks; the worker connects again at once.
    Break(usize),
    /// The daemon says that it leaves, and comes back after so long.
    Leaves(usize, u64),
    /// The daemon dies, or is stopped, and comes back after so long; ranks live on.
    DaemonDies(usize, u64),
    /// Everything on the node dies; it is back after so long.
    Reboots(usize, u64),
    /// A rank of some live attempt fails.
    RankFails(u64),
    /// Some live attempt hangs.
    Hangs(u64),
    /// The scheduler is killed, and back after so long.
    SchedulerDies(u64),
}

pub(super) fn policy() -> Policy {
    Policy {
        lease_ms: 3_000,
        stop_grace_ms: 500,
        margin_ms: 300,
        start_deadline_ms: 4_000,
        min_quantum_ms: 3_000,
        suspend_grace_ms: 2_000,
        save_factor: 4,
        backoff_ms: 50,
        max_backoff_ms: 3_000,
        unfit_ms: 2_000,
        patience_ms: 6_000,
        shrink_after_ms: 2_000,
        max_placements: 3,
        ..Policy::default()
    }
}

/// Nodes of the simulated cluster: `main` with whole nodes in two zones, `desk` with two shared ones.
pub(super) fn cluster(rng: &mut Rng) -> Vec<(NodeName, Capacity)> {
    let mut nodes = Vec::new();
    for index in 0..rng.within(4, 7) {
        let zone = if index % 2 == 0 { "east" } else { "west" };
        let place = Place { zone: zone.to_owned(), switch: format!("{zone}-{}", index / 4) };
        let capacity = Capacity { group: "main".to_owned(), devices: 8, shared: false, place };
        nodes.push((NodeName(format!("main-{index}")), capacity));
    }
    for index in 0..2 {
        let place = Place { zone: "east".to_owned(), switch: "desk".to_owned() };
        let capacity = Capacity { group: "desk".to_owned(), devices: 4, shared: true, place };
        nodes.push((NodeName(format!("desk-{index}")), capacity));
    }
    nodes
}

pub(super) fn spec(rng: &mut Rng, nodes: u64) -> JobSpec {
    let desk = rng.chance(25);
    let size = if desk { rng.within(1, 2) } else { rng.within(1, nodes - 2) } as u32;
    let mut sizes = vec![size];
    if rng.chance(30) {
        sizes.extend((1..size).rev().filter(|smaller| size.is_multiple_of(*smaller)));
    }
    JobSpec {
        name: "train".to_owned(),
        user: (*rng.pick(&["ann", "ben", "cy"])).to_owned(),
        group: if desk { "desk" } else { "main" }.to_owned(),
        priority: *rng.pick(&[Priority::Low, Priority::Low, Priority::Normal, Priority::High]),
        nodes: sizes,
        devices_per_node: desk.then(|| rng.within(1, 4) as u32),
        max_runtime_ms: rng.chance(30).then(|| rng.within(2_000, 8_000)),
        max_retries: 40,
        hang_timeout_ms: rng.chance(70).then_some(3_500),
        restart_on_hang: true,
    }
}

/// One more thing that happens.
pub(super) fn something(rng: &mut Rng, nodes: &[NodeName], jobs: u64) -> Happens {
    let node = (rng.next() % nodes.len() as u64) as usize;
    let job = JobId(rng.within(1, jobs.max(1)));
    match rng.within(0, 99) {
        0..=14 => Happens::Partition(node, rng.within(300, 9_000)),
        15..=24 => Happens::Break(node),
        25..=31 => Happens::DaemonDies(node, rng.within(100, 7_000)),
        32..=34 => Happens::Leaves(node, rng.within(100, 7_000)),
        35..=41 => Happens::Reboots(node, rng.within(500, 6_000)),
        42..=51 => Happens::RankFails(rng.next()),
        52..=56 => Happens::Hangs(rng.next()),
        57..=66 => Happens::SchedulerDies(rng.within(50, 4_000)),
        67..=74 => Happens::Ask(Command::Suspend { job }),
        75..=84 => Happens::Ask(Command::Resume { job }),
        85..=87 => Happens::Ask(Command::Cancel { job }),
        88..=91 => {
            let suspend_jobs = rng.chance(50);
            let by_host = rng.chance(30);
            Happens::Ask(Command::Drain { node: nodes[node].clone(), suspend_jobs, by_host })
        }
        92..=95 => {
            let only_host = rng.chance(30);
            Happens::Ask(Command::ResumeNode { node: nodes[node].clone(), only_host })
        }
        _ => Happens::Ask(Command::SetQuota(quota(rng))),
    }
}

pub(super) fn quota(rng: &mut Rng) -> Quota {
    let user = (*rng.pick(&["ann", "ben", "cy"])).to_owned();
    let priority = *rng.pick(&[Priority::Low, Priority::Normal, Priority::High]);
    let group = (*rng.pick(&["main", "desk"])).to_owned();
    let nodes = rng.within(0, 4) as u32;
    Quota { key: QuotaKey { user, priority, group }, limit: Amount { nodes, slots: nodes } }
}
