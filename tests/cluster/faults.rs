//! Processes that stop instead of dying, and clocks that jump.

use crate::desk::{Desk, kill, signal};
use crate::history::check;
use rustix::process::Signal;

#[test]
fn a_worker_that_is_stopped_past_its_lease_has_no_ranks_when_it_wakes() {
    let desk = Desk::up("20 5", 2);
    let job = desk.submit("one", 150, &["--max-retries", "5"]);
    desk.wait_step(&job, 10);
    let node = desk.show(&job).unwrap()["node_names"][0].as_str().unwrap().to_string();
    let index: usize = node.trim_start_matches('n').parse().unwrap();
    let stopped = desk.workers[index].as_ref().unwrap().id();
    signal(stopped, Signal::STOP);
    // The shim holds the lease, worker alive or not: its ranks end, and the job goes on elsewhere.
    desk.wait_for("the job on the other node", |desk| {
        let now = desk.show(&job)?;
        Some(now["attempt"].as_u64()? >= 2 && now["node_names"][0].as_str()? != node)
    });
    signal(stopped, Signal::CONT);
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", 150);
}

#[test]
fn a_scheduler_that_is_stopped_past_the_lease_finds_its_jobs_again() {
    let desk = Desk::up("20 5", 1);
    let job = desk.submit("one", 150, &["--max-retries", "5"]);
    desk.wait_step(&job, 10);
    let scheduler = desk.scheduler.as_ref().unwrap().id();
    signal(scheduler, Signal::STOP);
    desk.wait_for("the lease to pass", |desk| Some(desk.processes("--socket-fd").is_empty()));
    signal(scheduler, Signal::CONT);
    desk.wait_phase(&job, "succeeded");
    let lines = check(&desk, "one", 150);
    assert!(lines.last().unwrap().attempt >= 2, "{lines:?}");
}

#[test]
fn a_scheduler_that_is_away_for_less_than_a_lease_disturbs_nothing() {
    let mut desk = Desk::up("20 5", 1);
    let job = desk.submit("one", 100, &[]);
    desk.wait_step(&job, 10);
    kill(&mut desk.scheduler);
    desk.start_scheduler(&[]);
    desk.wait_phase(&job, "succeeded");
    let lines = check(&desk, "one", 100);
    assert!(lines.iter().all(|line| line.attempt == 1), "{lines:?}");
}

#[test]
fn a_wall_clock_that_is_an_hour_ahead_changes_nothing() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    // .ci/run installs it; a person without it loses this test only.
    let there = std::path::Path::new(library).exists();
    assert!(there || std::env::var_os("CI").is_none(), "CI installs faketime");
    if !there {
        return;
    }
    let jump =
        [("LD_PRELOAD", library), ("FAKETIME", "+1h"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let mut desk = Desk::new("20 5");
    desk.start_scheduler(&[]);
    desk.start_worker(0, &[]);
    let job = desk.submit("one", 100, &[]);
    desk.wait_step(&job, 10);
    // The worker wakes up an hour later by the wall clock, and takes its ranks over.
    kill(&mut desk.workers[0]);
    desk.start_worker(0, &jump);
    desk.wait_step(&job, 40);
    desk.wait_phase(&job, "succeeded");
    let lines = check(&desk, "one", 100);
    assert!(lines.iter().all(|line| line.attempt == 1), "{lines:?}");
}
