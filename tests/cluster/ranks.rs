//! Jobs of the real rank program on several nodes: whatever the cluster does to them, they end with the weights of the run
//! that nobody disturbed.

use crate::desk::{Desk, signal};
use lampyris_tests::desk::assert_same_state;
use lampyris_tests::repository;
use rustix::process::Signal;

/// At 8 ms each on quick cores, so that what happens to a job happens before its end.
const STEPS: u64 = 240;

/// 8 micro-batches in 8 leaves, so that 1, 2 and 4 ranks share them evenly; a save every 8 steps.
const SETS: [&str; 7] = [
    "batch.micro_batch=1",
    "batch.leaves=8",
    "parallel.threads_per_rank=1",
    "output.tensorboard=false",
    "output.sample_tokens=0",
    "eval.every_steps=0",
    "checkpoint.every_steps=8",
];

fn sets() -> Vec<&'static str> {
    SETS.iter().flat_map(|set| ["--set", set]).collect()
}

fn submit(desk: &Desk, name: &str, more: &[&str]) -> String {
    desk.submit(name, STEPS, &[&sets()[..], more].concat())
}

/// One rank, one node, no scheduler.
fn train_undisturbed(desk: &Desk) {
    let recipe = repository("recipes/debug_llama.toml").display().to_string();
    let tokens = format!("schedule.total_tokens={}", STEPS * 512);
    let arguments = ["train", &recipe, "--run-dir", "undisturbed", "--set", &tokens];
    desk.run(&[&arguments[..], &sets()].concat());
}

/// `name` ended with the weights and moments of the undisturbed run, bit for bit.
fn ends_undisturbed(desk: &Desk, name: &str) {
    assert_same_state(&desk.path(name), &desk.path("undisturbed"));
}

#[test]
fn two_nodes_of_two_ranks_lose_one_of_them_and_end_undisturbed() {
    let mut desk = Desk::of_real_ranks();
    train_undisturbed(&desk);
    desk.start_all(2);
    let layout = ["--nodes", "2", "--ranks-per-node", "2", "--max-retries", "5"];
    let job = submit(&desk, "one", &layout);
    desk.wait_step(&job, 10);
    assert_eq!(desk.show(&job).unwrap()["ranks"].as_array().unwrap().len(), 4);
    let ranks = desk.processes("--socket-fd");
    assert_eq!(ranks.len(), 4, "{ranks:?}");
    signal(desk.processes("--rank 3 ")[0], Signal::KILL);
    desk.wait_for("a second attempt", |desk| Some(desk.show(&job)?["attempt"].as_u64()? >= 2));
    let shown = desk.run(&["show", &job]);
    // Its own node's word or that of a peer, whoever is heard first.
    assert!(shown.contains("rank 3 was killed") || shown.contains("rank 3 died"), "{shown}");
    desk.wait_phase(&job, "succeeded");
    ends_undisturbed(&desk, "one");
    let secrets = |name: &str| desk.path(&format!("one/control/{name}")).exists();
    assert!(!secrets("meeting.attempt-1.json") && !secrets("meeting.attempt-2.json"));
}

/// Nobody dies, but one rank does not come: its peers give up and say whom they missed.
#[test]
fn a_rank_that_does_not_enter_an_operation_is_named_and_the_job_goes_on() {
    let mut desk = Desk::of_real_ranks();
    desk.start_all(2);
    let layout = ["--nodes", "2", "--ranks-per-node", "1", "--max-retries", "5"];
    let patience = ["--set", "parallel.operation_timeout_s=2"];
    let job = submit(&desk, "one", &[&layout[..], &patience].concat());
    desk.wait_step(&job, 10);
    let stopped = desk.processes("--rank 1 ")[0];
    signal(stopped, Signal::STOP);
    desk.wait_for("a second attempt", |desk| Some(desk.show(&job)?["attempt"].as_u64()? >= 2));
    let shown = desk.run(&["show", &job]);
    let failure = shown.lines().find(|line| line.starts_with("failure")).unwrap_or_default();
    let named = failure.contains("did not finish within 2000 ms") && failure.contains("rank 1");
    assert!(named, "{shown}");
    desk.wait_phase(&job, "succeeded");
}

#[test]
fn up_shares_three_nodes_and_the_suspended_job_ends_undisturbed() {
    let desk = Desk::of_real_ranks();
    train_undisturbed(&desk);
    let up = desk.start_up(3);
    // Two nodes, one, two: the first must make room for the third.
    let low = submit(&desk, "low", &["--priority", "low", "--nodes", "2", "--ranks-per-node", "1"]);
    let normal = submit(&desk, "normal", &["--ranks-per-node", "2"]);
    desk.wait_step(&low, 4);
    let layout = ["--nodes", "2", "--ranks-per-node", "1"];
    let high = submit(&desk, "high", &[&["--priority", "high"], &layout[..]].concat());
    desk.wait_phase(&low, "suspended");
    for job in [&high, &normal, &low] {
        desk.wait_phase(job, "succeeded");
    }
    for name in ["high", "normal", "low"] {
        ends_undisturbed(&desk, name);
    }
    let attempts = |job| desk.show(job).unwrap()["attempt"].as_u64().unwrap();
    let events = desk.run(&["events", "--job", &low]);
    assert_eq!((attempts(&high), attempts(&normal), attempts(&low)), (1, 1, 2), "{events}");
    assert!(events.contains(&format!("suspended for job {high} of priority high")), "{events}");
    // The same as a person finds it out.
    desk.run(&["checkpoint", "diff", "low", "undisturbed"]);
    up.stop(&desk);
}
