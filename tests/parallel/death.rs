//! A rank that dies or stops during a step: the others end, the culprit is named, and the run resumes.

use lampyris_tests::desk::{Desk, rank_pids, signal};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const RECIPE: [&str; 6] = [
    "batch.micro_batch=1",
    "batch.leaves=8",
    "schedule.total_tokens=12_288",
    "eval.every_steps=0",
    "checkpoint.every_steps=4",
    "parallel.data=2",
];

/// Trains with two ranks, does `harm` to one of them after a few steps, and returns how the run ended.
fn harmed(desk: &Desk, more: &[&str], harm: Signal) -> (i32, String, Duration) {
    let sets = [&RECIPE[..], more].concat();
    let mut command = desk.train_command("debug_moe", "run", &sets);
    let child = command.spawn().expect("lampyris starts");
    desk.wait_for_step("run", 5);
    let ranks = rank_pids(child.id());
    assert_eq!(ranks.len(), 2, "two ranks");
    let victim = ranks[1];
    let since = Instant::now();
    signal(victim, harm);
    let output = child.wait_with_output().expect("waits");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), stderr, since.elapsed())
}

fn resumes_as_undisturbed(desk: &Desk) {
    let ended = desk.run(&["resume", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let one = [&RECIPE[..], &["parallel.data=1"]].concat();
    let ended = desk.train("debug_moe", "undisturbed", &one);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(desk.losses("run"), desk.losses("undisturbed"));
    desk.assert_same_state("run", "undisturbed");
}

#[test]
fn a_killed_rank_is_named_and_ends_the_run() {
    let desk = Desk::new();
    let (code, stderr, took) = harmed(&desk, &[], Signal::KILL);
    assert!(code != 0 && took < Duration::from_secs(5), "{code} after {took:?}: {stderr}");
    assert!(stderr.contains("rank ") && stderr.contains("killed by SIGKILL"), "{stderr}");
    resumes_as_undisturbed(&desk);
}

/// Nobody has died: the operation's deadline ends the run and says who has not come.
#[test]
fn a_stopped_rank_is_named_at_the_deadline() {
    let desk = Desk::new();
    let (code, stderr, took) = harmed(&desk, &["parallel.operation_timeout_s=3"], Signal::STOP);
    assert!(code != 0, "{stderr}");
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(9), "{took:?}: {stderr}");
    assert!(stderr.contains("did not finish within 3000 ms"), "{stderr}");
}
