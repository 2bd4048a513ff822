//! `lampyris resume`: which checkpoint, which attempt, which recipe and which text a run continues with.

use crate::desk::{Desk, Ended, shipped};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;

const FIRST: &str = "ready steps=5 commit wait";

/// A run that was stopped after step 5.
fn stopped_run(desk: &Desk) {
    let mut started = desk.start(&["train", &shipped("debug_llama"), "--run-dir", "run"]);
    started.wait_for("checkpoint of ");
    assert_eq!(desk.run(&["suspend", "run"]).code, 0);
    assert_eq!(started.end().code, 86);
}

/// A second desk on the same folder with another script.
fn resume(desk: &Desk, script: &str, arguments: &[&str]) -> Ended {
    let mut command = desk.command(&[&["resume", "run"], arguments].concat());
    let output = command.env("FAKE_RANK", script).output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_stopped_run_continues_as_the_next_attempt_from_its_newest_checkpoint() {
    let desk = Desk::new(FIRST);
    stopped_run(&desk);
    let ended = resume(&desk, "log=again ready from=5 steps=3 commit finish", &[]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("continuing from step-5.attempt-1"), "{}", ended.stderr);
    assert!(ended.stdout.contains("checkpoints/step-8.attempt-2"), "{}", ended.stdout);
    let run = desk.dir.path().join("run");
    assert_eq!(fs::read_to_string(run.join("logs/rank-0.attempt-2.log")).unwrap(), "again\n");
    // The request was for the attempt before.
    assert!(!run.join("control/suspend.json").exists());
    let lineage = fs::read_to_string(run.join("lineage.jsonl")).unwrap();
    assert!(
        lineage.ends_with("{\"attempt\":2,\"parent\":{\"step\":5,\"attempt\":1}}\n"),
        "{lineage}"
    );
}

#[test]
fn a_run_without_a_checkpoint_says_that_it_starts_over() {
    let desk = Desk::new("ready steps=2 signal=KILL");
    assert_eq!(desk.run(&["train", &shipped("debug_llama"), "--run-dir", "run"]).code, 1);
    let ended = resume(&desk, "ready steps=1 finish", &[]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("there is no checkpoint yet: starting from the beginning"));
}

#[test]
fn a_run_that_runs_is_not_started_twice() {
    let desk = Desk::new(FIRST);
    let mut started = desk.start(&["train", &shipped("debug_llama"), "--run-dir", "run"]);
    started.wait_for("checkpoint of ");
    let ended = resume(&desk, "ready finish", &[]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("error: run is running on this machine"), "{}", ended.stderr);
    kill_process(Pid::from_raw(started.pid() as i32).unwrap(), Signal::TERM).unwrap();
    assert_eq!(started.end().code, 85);
}

#[test]
fn another_recipe_is_accepted_where_it_changes_no_number_or_the_change_is_named() {
    let desk = Desk::new(FIRST);
    stopped_run(&desk);
    let llama = shipped("debug_llama");
    let with = |sets: &[&str]| {
        let mut arguments = vec!["--recipe", llama.as_str()];
        arguments.extend(sets);
        resume(&desk, "ready finish", &arguments)
    };
    let harmless = with(&["--set", "checkpoint.keep=7"]);
    assert_eq!(harmless.code, 0, "{}", harmless.stderr);
    assert!(harmless.stderr.contains("\n  checkpoint.keep: 2 -> 7\n"), "{}", harmless.stderr);

    let sets = ["--set", "schedule.peak_lr=5e-4", "--set", "optimizer.beta2=0.9"];
    let refused = with(&sets);
    assert_eq!(refused.code, 78);
    for part in [
        "error: this run was made with other values:",
        "\n  optimizer.beta2: 0.95 -> 0.9\n",
        "\n  schedule.peak_lr: 0.003 -> 0.0005\n",
        "hint: --allow-change optimizer.beta2,schedule.peak_lr continues with the new ones",
    ] {
        assert!(refused.stderr.contains(part), "{part:?} in\n{}", refused.stderr);
    }
    let half = with(&[&sets[..], &["--allow-change", "schedule"]].concat());
    assert_eq!(half.code, 78);
    assert!(!half.stderr.contains("schedule.peak_lr"), "{}", half.stderr);
    let named = with(&[&sets[..], &["--allow-change", "schedule,optimizer.beta2"]].concat());
    assert_eq!(named.code, 0, "{}", named.stderr);
    let plan = fs::read_to_string(desk.dir.path().join("run/plan.toml")).unwrap();
    assert!(plan.contains("peak_lr = 0.0005"), "{plan}");
}

/// Whatever is allowed: the moments in the checkpoint are another optimizer's.
#[test]
fn another_optimizer_is_refused() {
    let desk = Desk::new(FIRST);
    stopped_run(&desk);
    let llama = shipped("debug_llama");
    let muon = ["--recipe", &llama, "--set", "optimizer.kind=muon", "--allow-change", "optimizer"];
    let refused = resume(&desk, "ready finish", &muon);
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    for part in ["optimizer.kind = \"muon\"", "hold the state of \"adamw\"", "or start a new run"] {
        assert!(refused.stderr.contains(part), "{part:?} in\n{}", refused.stderr);
    }
}

#[test]
fn changed_text_is_refused_unless_the_prepared_text_is_still_there() {
    let desk = Desk::new(FIRST);
    let text = "The quick brown fox jumps over the lazy dog.\n".repeat(200);
    let path = desk.file("text.txt", &text);
    let arguments = ["--set", "data.path=text.txt", "--run-dir", "run"];
    let llama = shipped("debug_llama");
    let mut started = desk.start(&[&["train", llama.as_str()], &arguments[..]].concat());
    started.wait_for("checkpoint of ");
    kill_process(Pid::from_raw(started.pid() as i32).unwrap(), Signal::TERM).unwrap();
    assert_eq!(started.end().code, 85);

    fs::write(path, text.replace("fox", "cat")).unwrap();
    assert_eq!(resume(&desk, "ready finish", &[]).code, 0, "the prepared text is what counts");
    fs::remove_dir_all(desk.dir.path().join("cache/data")).unwrap();
    let refused = resume(&desk, "ready finish", &[]);
    assert_eq!(refused.code, 78);
    assert!(refused.stderr.contains("is not the text it has read so far"), "{}", refused.stderr);
    let accepted = resume(&desk, "ready finish", &["--allow-change", "data"]);
    assert_eq!(accepted.code, 0, "{}", accepted.stderr);
}
