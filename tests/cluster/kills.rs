//! kill -9 of each process at each point of a job's life. Whatever dies comes back, nothing is lost and nothing runs twice.

use crate::desk::{Desk, kill, signal, wait_death};
use crate::history::check;
use lampyris_tests::steady::read;
use rustix::process::Signal;
use std::process::{Child, Stdio};

const STEPS: u64 = 40;

/// Of a job that must still run after something has died and come back: 4 s.
const LONG_STEPS: u64 = 250;

/// `lampyris submit` in the background: its client asks again, with the same request id, until a scheduler answers.
fn submit(desk: &Desk, steps: u64) -> Child {
    let recipe = lampyris_tests::repository("recipes/debug_llama.toml").display().to_string();
    let tokens = format!("schedule.total_tokens={}", steps * 512);
    let arguments = ["submit", &recipe, "--run-dir", "one", "--set", &tokens, "--json"];
    desk.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The scheduler dies at a line of history, before or after it is durable, and starts again.
fn scheduler_dies_at(point: &str, disturb: &[&str]) {
    let steps = if disturb.is_empty() { STEPS } else { LONG_STEPS };
    let mut desk = Desk::new("15 5");
    desk.start_scheduler(&["--fail-point", point]);
    desk.start_worker(0, &[]);
    desk.wait_for("the node", |desk| {
        Some(!desk.json(&["nodes", "--json"])?.as_array()?.is_empty())
    });
    let mut submitted = submit(&desk, steps);
    if !disturb.is_empty() {
        desk.wait_step("1", 5);
        // It may die before it answers.
        desk.command(disturb).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    }
    let mut scheduler = desk.scheduler.take();
    wait_death(&mut scheduler, &|| desk.logs());
    desk.start_scheduler(&[]);
    assert!(submitted.wait().unwrap().success(), "{point}\n{}", desk.logs());
    if disturb.contains(&"suspend") {
        // Said again to a scheduler that may not have it: the same as once.
        desk.wait_for("an answer", |desk| {
            Some(desk.command(disturb).stderr(Stdio::null()).status().ok()?.success())
        });
        desk.wait_phase("1", "suspended");
        desk.run(&["resume", "1"]);
    }
    desk.wait_phase("1", "succeeded");
    let jobs = desk.json(&["list", "--all", "--json"]).unwrap();
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{point}: one wish, one job");
    check(&desk, "one", steps);
}

#[test]
fn the_scheduler_dies_while_a_job_is_submitted() {
    scheduler_dies_at("submitted", &[]);
    scheduler_dies_at("submitted:after", &[]);
}

#[test]
fn the_scheduler_dies_while_a_job_is_assigned_and_started() {
    scheduler_dies_at("placed", &[]);
    scheduler_dies_at("placed:after", &[]);
    scheduler_dies_at("started:after", &[]);
}

#[test]
fn the_scheduler_dies_while_a_job_is_suspended() {
    scheduler_dies_at("suspended_by_user", &["suspend", "1"]);
    scheduler_dies_at("suspended_by_user:after", &["suspend", "1"]);
}

#[test]
fn the_scheduler_dies_while_a_job_is_resumed() {
    for point in ["resumed_by_user", "resumed_by_user:after"] {
        let mut desk = Desk::new("15 5");
        desk.start_scheduler(&["--fail-point", point]);
        desk.start_worker(0, &[]);
        let job = desk.submit("one", 100, &[]);
        desk.run(&["suspend", &job]);
        desk.wait_phase(&job, "suspended");
        // It may die before it answers.
        desk.command(&["resume", &job]).stderr(Stdio::null()).status().unwrap();
        let mut scheduler = desk.scheduler.take();
        wait_death(&mut scheduler, &|| desk.logs());
        desk.start_scheduler(&[]);
        // Said again to a scheduler that may have it: then it refuses.
        desk.command(&["resume", &job]).stderr(Stdio::null()).status().unwrap();
        desk.wait_phase(&job, "succeeded");
        check(&desk, "one", 100);
    }
}

#[test]
fn worker_and_shim_die_while_a_job_is_resumed() {
    let mut desk = Desk::up("15 5", 1);
    let job = desk.submit("one", LONG_STEPS, &["--max-retries", "5"]);
    desk.wait_step(&job, 5);
    for point in ["worker_assign", "worker_start", "start", "ranks"] {
        desk.run(&["suspend", &job]);
        desk.wait_phase(&job, "suspended");
        let before = desk.show(&job).unwrap()["attempt"].as_u64().unwrap();
        kill(&mut desk.workers[0]);
        desk.start_worker(0, &[("LAMPYRIS_FAIL_POINT", point)]);
        desk.wait_online(1);
        desk.run(&["resume", &job]);
        if point.starts_with("worker") {
            let mut worker = desk.workers[0].take();
            wait_death(&mut worker, &|| desk.logs());
        } else {
            desk.wait_for("a second try", |desk| {
                Some(desk.show(&job)?["attempt"].as_u64()? >= before + 2)
            });
            kill(&mut desk.workers[0]);
        }
        desk.start_worker(0, &[]);
        desk.wait_phase(&job, "running");
    }
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", LONG_STEPS);
}

#[test]
fn the_scheduler_dies_while_a_job_finishes() {
    scheduler_dies_at("finished", &[]);
    scheduler_dies_at("finished:after", &[]);
}

/// The worker, or the shim under it, dies at a named point; the worker is started again if it was the one.
fn dies_at(point: &str, worker_dies: bool, disturb: &[&str]) -> Vec<lampyris_tests::steady::Line> {
    let mut desk = Desk::new("15 5");
    desk.start_scheduler(&[]);
    desk.start_worker(0, &[("LAMPYRIS_FAIL_POINT", point)]);
    let steps = if disturb.is_empty() { STEPS } else { LONG_STEPS };
    let job = desk.submit("one", steps, &["--max-retries", "5"]);
    if !disturb.is_empty() {
        desk.wait_step(&job, 5);
        desk.run(disturb);
    }
    if worker_dies {
        let mut worker = desk.workers[0].take();
        wait_death(&mut worker, &|| desk.logs());
    } else if disturb.contains(&"suspend") {
        // A failure of what is wanted suspended is as good as its suspend.
        desk.wait_phase(&job, "suspended");
        kill(&mut desk.workers[0]);
    } else {
        // Every attempt of this worker dies so, until another worker takes its place.
        desk.wait_for("an attempt to fail", |desk| Some(desk.show("1")?["attempt"].as_u64()? > 1));
        kill(&mut desk.workers[0]);
    }
    desk.start_worker(0, &[]);
    if disturb.contains(&"suspend") {
        desk.wait_phase(&job, "suspended");
        desk.run(&["resume", &job]);
    }
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", steps)
}

#[test]
fn the_worker_dies_at_each_point_and_its_ranks_do_not() {
    dies_at("worker_assign", true, &[]);
    // What was started is taken over: there is no second attempt.
    let lines = dies_at("worker_start", true, &[]);
    assert!(lines.iter().all(|line| line.attempt == 1), "{lines:?}");
    dies_at("worker_suspend", true, &["suspend", "1"]);
    let lines = dies_at("worker_finish", true, &[]);
    assert!(lines.iter().all(|line| line.attempt == 1), "{lines:?}");
}

#[test]
fn the_shim_dies_at_each_point_and_the_job_is_tried_again() {
    dies_at("start", false, &[]);
    dies_at("ranks", false, &[]);
    dies_at("suspend", false, &["suspend", "1"]);
    dies_at("finish", false, &[]);
}

#[test]
fn a_rank_dies_at_each_point_and_the_job_is_tried_again() {
    for point in ["start", "saved", "suspend", "suspended", "finish", "finished"] {
        let mut desk = Desk::new("15 5");
        desk.set("STEADY_DIES_AT", point);
        desk.start_all(1);
        let suspends = point.starts_with("suspend");
        let steps = if suspends { LONG_STEPS } else { STEPS };
        let job = desk.submit("one", steps, &["--max-retries", "5"]);
        if suspends {
            desk.wait_for("its rank", |desk| Some(!desk.processes("--socket-fd").is_empty()));
            desk.run(&["suspend", &job]);
            desk.wait_phase(&job, "suspended");
            desk.run(&["resume", &job]);
        }
        desk.wait_phase(&job, "succeeded");
        let lines = check(&desk, "one", steps);
        assert_eq!(lines.last().unwrap().attempt, 2, "{point}: {lines:?}");
        let events = desk.run(&["events", "--job", &job]);
        assert!(events.contains("SIGKILL"), "{point}: {events}");
    }
}

#[test]
fn a_worker_that_is_killed_again_and_again_loses_no_step() {
    let mut desk = Desk::up("20 5", 1);
    let job = desk.submit("one", 100, &[]);
    for step in [10, 30, 50] {
        desk.wait_step(&job, step);
        kill(&mut desk.workers[0]);
        desk.start_worker(0, &[]);
    }
    desk.wait_phase(&job, "succeeded");
    let lines = check(&desk, "one", 100);
    assert!(lines.iter().all(|line| line.attempt == 1), "one attempt, taken over: {lines:?}");
}

#[test]
fn a_shim_or_a_rank_that_is_killed_costs_the_steps_since_its_checkpoint() {
    let desk = Desk::up("20 5", 1);
    let job = desk.submit("one", 60, &["--max-retries", "5"]);
    desk.wait_step(&job, 10);
    let shims = desk.processes(" shim ");
    assert_eq!(shims.len(), 1, "{shims:?}");
    signal(shims[0], Signal::KILL);
    desk.wait_for("attempt 2", |desk| Some(desk.show(&job)?["attempt"].as_u64()? >= 2));
    desk.wait_for("its rank", |desk| Some(!desk.processes("--socket-fd").is_empty()));
    signal(desk.processes("--socket-fd")[0], Signal::KILL);
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", 60);
    let attempts = read(&desk.path("one")).last().unwrap().attempt;
    assert_eq!(attempts, 3);
}
