//! Real kill -9: a writer process dies at a chosen operation on a real disk, again and again in one run directory; every
//! successor finds the last committed checkpoint whole.

use super::fixture::{self, Layout, id, save};
use super::hooked_disk::HookedDisk;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::{CheckpointId, Retention, Run};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const DIR: &str = "LAMPYRIS_TEST_RUN_DIR";
const KILL_AT: &str = "LAMPYRIS_TEST_KILL_AT";
const KEEP: Retention = Retention { last: 2, every_steps: 0, best: false };
const SIGKILL: i32 = 9;

/// The writer. Under a plain test run it has no folder and nothing to do.
#[test]
#[ignore = "the process that the test below starts"]
fn writer() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let kill_at: usize = std::env::var(KILL_AT).unwrap().parse().unwrap();
    let counter = AtomicUsize::new(0);
    let hook = move |_: &'static str, _: &Path| {
        if counter.fetch_add(1, Ordering::Relaxed) == kill_at {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
        Ok(())
    };
    let disk = HookedDisk { inner: Arc::new(RealDisk), hook: Arc::new(hook) };
    let run = Run::open(Arc::new(disk), Path::new(&dir)).unwrap();
    let attempt = run.claim_next().unwrap();
    let loaded = run.load_latest(|reader| fixture::check(reader, 2)).unwrap();
    assert_eq!(loaded.quarantined, []);
    let parent = loaded.found.map(|(id, ())| id);
    println!("loaded {}", parent.map_or("nothing".to_string(), |id| id.to_string()));
    run.record(attempt, parent).unwrap();
    let first = parent.map_or(0, |id| id.step.0) + 1;
    for step in first.. {
        let id = id(step, attempt.0);
        save(&run, id, &Layout::random(step, 2)).unwrap();
        println!("committed {id}");
        run.prune(KEEP, Some(attempt), false).unwrap();
    }
}

/// What a line of the writer says about a checkpoint.
fn said<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.split_once(word).map(|(_, rest)| rest.trim())
}

#[test]
fn kill_9_at_any_operation_loses_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut last: Option<CheckpointId> = None;
    // Opening, claiming, recording, writing, committing, pruning: a save and a prune are about 30 operations.
    for kill_at in (0..16).chain((16..90).step_by(5)) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["kill::writer", "--exact", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .env(KILL_AT, kill_at.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.signal(), Some(SIGKILL), "{kill_at}: {text}");
        let loaded = text.lines().find_map(|line| said(line, "loaded "));
        let loaded: Option<CheckpointId> = loaded.and_then(|name| name.parse().ok());
        if text.contains("loaded ") {
            // The last commit that was reported, or one whose report the kill swallowed.
            assert!(loaded.map(|id| id.step) >= last.map(|id| id.step), "{loaded:?} {last:?}");
            last = loaded;
        }
        let mut committed = text.lines().rev().filter_map(|line| said(line, "committed "));
        last = committed.find_map(|name| name.parse().ok()).or(last);
    }
    let run = Run::open(Arc::new(RealDisk), dir.path()).unwrap();
    let found = run.load_latest(|reader| fixture::check(reader, 2)).unwrap().found;
    assert!(found.map(|(id, ())| id.step) >= last.map(|id| id.step));
    assert!(last.is_some_and(|id| id.step.0 > 10), "{last:?}");
}
