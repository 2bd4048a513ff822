//! A rank that dies or stops during a step: the others end, the culprit is named, and the run resumes.

use lampyris_tests::desk::{Desk, rank_pids, signal};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
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
fn harmed(desk: &Desk, more: &[&str], harm: impl FnOnce(u32)) -> (i32, String, Duration) {
    let sets = [&RECIPE[..], more].concat();
    let mut command = desk.train_command("debug_moe", "run", &sets);
    let child = command.spawn().expect("lampyris starts");
    desk.wait_for_step("run", 5);
    let ranks = rank_pids(child.id());
    assert_eq!(ranks.len(), 2, "two ranks");
    let victim = ranks[1];
    let since = Instant::now();
    harm(victim);
    let output = child.wait_with_output().expect("waits");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), stderr, since.elapsed())
}

fn resumes_as_undisturbed(desk: &Desk, more: &[&str]) {
    let ended = desk.run(&["resume", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let one = [&RECIPE[..], more, &["parallel.data=1"]].concat();
    let ended = desk.train("debug_moe", "undisturbed", &one);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(desk.losses("run"), desk.losses("undisturbed"));
    desk.assert_same_state("run", "undisturbed");
}

#[test]
fn a_killed_rank_is_named_and_ends_the_run() {
    let desk = Desk::new();
    let (code, stderr, took) = harmed(&desk, &[], |rank| signal(rank, Signal::KILL));
    assert!(code != 0 && took < Duration::from_secs(5), "{code} after {took:?}: {stderr}");
    assert!(stderr.contains("rank ") && stderr.contains("killed by SIGKILL"), "{stderr}");
    resumes_as_undisturbed(&desk, &[]);
}

/// Nobody has died: the operation's deadline ends the run and says who has not come.
#[test]
fn a_stopped_rank_is_named_at_the_deadline() {
    let desk = Desk::new();
    let sets = ["parallel.operation_timeout_s=3"];
    let (code, stderr, took) = harmed(&desk, &sets, |rank| signal(rank, Signal::STOP));
    assert!(code != 0, "{stderr}");
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(9), "{took:?}: {stderr}");
    assert!(stderr.contains("did not finish within 3000 ms"), "{stderr}");
    resumes_as_undisturbed(&desk, &sets);
}

/// From now on the kernel gives this process no more memory: its next request fails.
fn without_memory(rank: u32) {
    let pid = i32::try_from(rank).ok().and_then(Pid::from_raw).expect("a process number");
    let nothing = Rlimit { current: Some(1), maximum: Some(1) };
    prlimit(Some(pid), Resource::As, nothing).expect("the limit of a child can be lowered");
}

/// A step needs more memory than what the one before it gave back, since freed activations return to the kernel.
#[test]
fn a_rank_without_memory_is_named_and_ends_the_run() {
    let desk = Desk::new();
    let (code, stderr, took) = harmed(&desk, &["batch.sequence_length=256"], without_memory);
    assert!(code != 0 && took < Duration::from_secs(10), "{code} after {took:?}: {stderr}");
    assert!(stderr.contains("rank 1"), "{stderr}");
    assert!(stderr.contains("memory"), "{stderr}");
    resumes_as_undisturbed(&desk, &["batch.sequence_length=256"]);
}
