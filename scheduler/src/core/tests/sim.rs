//! A seeded simulation: the real core, simulated workers, network, database, people and clock, everything from one
//! number. After every step the oracle compares what the core says with what really lives on the nodes.
//!
//! A seed that fails is run alone, with its history, by
//!
//!     LAMPYRIS_SIM_SEED=17 cargo test -p lampyris-scheduler one_seed -- --nocapture

mod oracle;
mod people;
mod rng;
mod run;
mod worker;
mod world;

use super::super::Bug;
use world::{Outcome, World};

/// Seeds of `make test`.
const SEEDS: u64 = 2_400;

fn run(seed: u64, bug: Option<Bug>) -> Result<Outcome, String> {
    World::new(seed, bug).run()
}

#[test]
fn one_seed() {
    let seed = std::env::var("LAMPYRIS_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut world = World::new(seed.unwrap_or(1), None);
    world.talkative = seed.is_some();
    if let Err(violation) = world.run() {
        panic!("{violation}");
    }
}

#[test]
fn thousands_of_seeds_keep_every_promise() {
    let failed = std::sync::Mutex::new(Vec::new());
    let totals = std::sync::Mutex::new(Outcome::default());
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (failed, totals) = (&failed, &totals);
            scope.spawn(move || {
                let mut sum = Outcome::default();
                for seed in (1..=SEEDS).filter(|seed| seed % 2 == part) {
                    match run(seed, None) {
                        Ok(outcome) => sum.add(&outcome),
                        Err(violation) => failed.lock().expect("no panic").push((seed, violation)),
                    }
                }
                totals.lock().expect("no panic").add(&sum);
            });
        }
    });
    let mut failed = failed.into_inner().expect("no panic");
    failed.sort();
    let totals = totals.into_inner().expect("no panic");
    println!("{} of {SEEDS} seeds failed; {totals:?}", failed.len());
    if let Some((seed, violation)) = failed.first() {
        panic!(
            "{violation}\nagain: LAMPYRIS_SIM_SEED={seed} cargo test -p lampyris-scheduler one_seed -- --nocapture"
        );
    }
    // A simulation in which nothing happens proves nothing.
    for (what, count) in totals.list() {
        assert!(count > SEEDS / 4, "{what} happened only {count} times");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 1..=20 {
        let (a, b) = (run(seed, None), run(seed, None));
        assert_eq!(a.map(|o| o.history_hash), b.map(|o| o.history_hash), "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    let bugs = [
        Bug::NoLease,
        Bug::PartialGang,
        Bug::NoQuota,
        Bug::NoQuantum,
        Bug::ForgetsLostJobs,
        Bug::NoPatience,
        Bug::ManyCrossZone,
        Bug::LosesPreemptedJobs,
        Bug::EarlyRelease,
        Bug::ResumesByItself,
        Bug::SecondStart,
        Bug::NeverHung,
        Bug::NoFence,
    ];
    let missed: Vec<_> = bugs
        .into_iter()
        .filter(|bug| {
            let found = (1..=400).find_map(|seed| run(seed, Some(*bug)).err().map(|v| (seed, v)));
            if let Some((seed, violation)) = &found {
                println!("{bug:?}: seed {seed}: {}", violation.lines().next().unwrap_or(""));
            }
            found.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
