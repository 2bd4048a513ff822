//! Runs whose records are lost, damaged or from elsewhere: they stop before anything is written, say why, and go on after
//! `lampyris checkpoint repair`.

use crate::desk::{Desk, Ended, shipped};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// A finished run with checkpoints after steps 2 and 4.
fn desk() -> (Desk, PathBuf) {
    let desk = Desk::new("ready steps=2 commit steps=2 commit finish");
    let ended = desk.run(&["train", &shipped("debug_llama"), "--run-dir", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let run = desk.dir.path().join("run");
    (desk, run)
}

fn resume(desk: &Desk) -> Ended {
    let mut command = desk.command(&["resume", "run"]);
    let output = command
        .env("FAKE_RANK", "ready from=4 steps=2 commit finish")
        .output()
        .expect("lampyris runs");
    Ended {
        code: output.status.code().expect("it exits"),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(files.insert(path.clone(), fs::read(&path).expect("a file"))),
            }
        }
    }
    files
}

fn names(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).expect("checkpoints");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_run_without_its_records_stops_until_it_is_repaired() {
    let (desk, run) = desk();
    fs::write(run.join("lineage.jsonl"), "").unwrap();
    let before = files(&run);
    let stopped = resume(&desk);
    assert_eq!(stopped.code, 1, "{}", stopped.stderr);
    for words in [
        "no record in lineage.jsonl says where step-4.attempt-1, step-2.attempt-1 came from",
        "nothing was changed",
        "`lampyris checkpoint repair run`",
    ] {
        assert!(stopped.stderr.contains(words), "{words:?} in {}", stopped.stderr);
    }
    let pruned = desk.run(&["checkpoint", "prune", "run", "--keep", "1"]);
    assert_eq!(pruned.code, 1, "{}", pruned.stdout);
    let listed = desk.run(&["checkpoint", "list", "run"]);
    assert!(listed.stdout.contains("`lampyris checkpoint repair run`"), "{}", listed.stdout);
    let dry = desk.run(&["checkpoint", "repair", "run", "--dry-run"]);
    assert_eq!(
        dry.stdout,
        "step-4.attempt-1 would be adopted\nrecorded: attempt 1 began from nothing\n"
    );
    assert_eq!(files(&run), before);

    let repaired = desk.run(&["checkpoint", "repair", "run", "--json"]);
    let value: Value = serde_json::from_str(&repaired.stdout).unwrap();
    assert_eq!(value["adopted"], serde_json::json!({ "step": 4, "attempt": 1 }), "{value}");
    assert!(run.join("lineage.jsonl.before-repair-1").exists());
    let again = desk.run(&["checkpoint", "repair", "run"]);
    assert_eq!(again.stdout, "nothing to mend: the run goes on from step-4.attempt-1\n");
    let resumed = resume(&desk);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("continuing from step-4.attempt-1"), "{}", resumed.stderr);
    assert_eq!(names(&run), ["step-2.attempt-1", "step-4.attempt-1", "step-6.attempt-2"]);
}

#[test]
fn a_copy_without_empty_files_and_folders_goes_on() {
    let (desk, run) = desk();
    let found = Command::new("find").arg(&run).args(["-empty", "-delete"]).status().unwrap();
    assert!(found.success());
    assert!(!run.join("attempts/1").exists() && !run.join("control").exists());
    let resumed = resume(&desk);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert_eq!(names(&run), ["step-2.attempt-1", "step-4.attempt-1", "step-6.attempt-2"]);
}

#[test]
fn a_run_that_runs_here_or_elsewhere_is_not_repaired() {
    let desk = Desk::new("ready steps=5 commit wait");
    let mut started = desk.start(&["train", &shipped("debug_llama"), "--run-dir", "run"]);
    started.wait_for("checkpoint of ");
    let refused = desk.run(&["checkpoint", "repair", "run"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("run is running on this machine"), "{}", refused.stderr);
    assert_eq!(desk.run(&["suspend", "run"]).code, 0);
    assert_eq!(started.end().code, 86);
    // As another machine would leave it, a moment ago.
    let path = desk.dir.path().join("run/status.json");
    let mut status: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    status["exit_code"] = Value::Null;
    status["state"] = "running".into();
    status["host"] = "elsewhere".into();
    status["process"]["boot_id"] = "of another machine".into();
    status["written_ms"] = now.into();
    fs::write(&path, status.to_string()).unwrap();
    let refused = desk.run(&["checkpoint", "repair", "run"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("run is running on elsewhere"), "{}", refused.stderr);
    status["written_ms"] = (now - 60_000).into();
    fs::write(&path, status.to_string()).unwrap();
    assert_eq!(desk.run(&["checkpoint", "repair", "run"]).code, 0);
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_named_and_nobody_waits() {
    for name in ["plan.toml", "dataset.json", "control/lock", "lineage.jsonl"] {
        let (desk, run) = desk();
        let path = run.join(name);
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let stopped = resume(&desk);
        assert_eq!(stopped.code, 1, "{name}: {}", stopped.stderr);
        let words = "it is a named pipe, a regular file is expected";
        assert!(stopped.stderr.contains(words), "{name}: {}", stopped.stderr);
        assert!(stopped.stderr.contains(name), "{name}: {}", stopped.stderr);
        assert_eq!(names(&run), ["step-2.attempt-1", "step-4.attempt-1"]);
    }
}

#[test]
fn a_number_that_no_attempt_has_is_refused_before_anything_starts() {
    for number in ["4294967295", "18446744073709551615"] {
        let (desk, run) = desk();
        fs::write(run.join("attempts").join(number), "").unwrap();
        let stopped = resume(&desk);
        assert_eq!(stopped.code, 1, "{}", stopped.stderr);
        let words = format!("run/attempts/{number} names attempt {number}");
        assert!(stopped.stderr.contains(&words), "{}", stopped.stderr);
    }
}
