//! Real kill -9: a writer process dies at a chosen operation on a real disk, again and again in one run directory; every
//! successor finds the last committed checkpoint whole.

use super::fixture::{self, Layout, id, save};
use super::hooked_disk::HookedDisk;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::{CheckpointId, Ranks, Retention, Run};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const DIR: &str = "LAMPYRIS_TEST_RUN_DIR";
const KILL_AT: &str = "LAMPYRIS_TEST_KILL_AT";
const KEEP: Retention = Retention { last: 2, every_steps: 0, best: false };
const OPERATION: &str = "LAMPYRIS_TEST_OPERATION";
const SIGKILL: i32 = 9;

/// What the hook does at the chosen operation.
const SIGNAL: &str = "LAMPYRIS_TEST_SIGNAL";

/// The writer. Under a plain test run it has no folder and nothing to do.
#[test]
#[ignore = "the process that the test below starts"]
fn writer() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let kill_at: usize = std::env::var(KILL_AT).unwrap().parse().unwrap();
    let stop = std::env::var(SIGNAL).is_ok_and(|name| name == "stop");
    let signal = if stop { Signal::STOP } else { Signal::KILL };
    let counter = AtomicUsize::new(0);
    let hook = move |operation: &'static str, path: &Path| {
        // A stop waits for the operation that the test named, in the second save.
        let due = !stop
            || std::env::var(OPERATION).is_ok_and(|name| name == operation)
                && path.to_string_lossy().contains("step-2.");
        if due && counter.fetch_add(1, Ordering::Relaxed) == kill_at {
            kill_process(getpid(), signal).unwrap();
            // The other threads stop at once, this one within moments: it must not go on before the successor is done.
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        Ok(())
    };
    let disk = HookedDisk { inner: Arc::new(RealDisk), hook: Arc::new(hook) };
    let run = Run::open(Arc::new(disk), Path::new(&dir)).unwrap();
    let attempt = run.claim_next().unwrap();
    let loaded = run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 2)).unwrap();
    assert_eq!(loaded.quarantined, []);
    let parent = loaded.found.map(|(id, ())| id);
    println!("loaded {}", parent.map_or("nothing".to_string(), |id| id.to_string()));
    run.record(attempt, parent).unwrap();
    let first = parent.map_or(0, |id| id.step.0) + 1;
    for step in first.. {
        let id = id(step, attempt.0);
        let done = save(&run, id, &Layout::random(step, 2)).and_then(|_| {
            println!("committed {id}");
            run.prune(KEEP, Some(attempt), false)
        });
        if let Err(e) = done {
            return println!("stopped: {e}");
        }
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
    let found =
        run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 2)).unwrap().found;
    assert!(found.map(|(id, ())| id.step) >= last.map(|id| id.step));
    assert!(last.is_some_and(|id| id.step.0 > 10), "{last:?}");
}

#[test]
fn a_process_that_was_stopped_and_replaced_is_never_chosen() {
    // Stopped while it writes its shard, it notices; stopped right before the rename, its commit comes too late.
    for (operation, words) in
        [("reserve", "superseded by attempt 2"), ("rename", "committed step-2")]
    {
        let dir = tempfile::tempdir().unwrap();
        let zombie = Command::new(std::env::current_exe().unwrap())
            .args(["kill::writer", "--exact", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .env(KILL_AT, "0")
            .env(SIGNAL, "stop")
            .env(OPERATION, operation)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(zombie.id()).unwrap()).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped());

        let run = Run::open(Arc::new(RealDisk), dir.path()).unwrap();
        let attempt = run.claim_next().unwrap();
        let loaded =
            run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1)).unwrap().found;
        assert_eq!(loaded.map(|(id, ())| id), Some(id(1, 1)));
        run.record(attempt, Some(id(1, 1))).unwrap();
        save(&run, id(2, 2), &Layout::random(9, 3)).unwrap();

        kill_process(pid, Signal::CONT).unwrap();
        let output = zombie.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(words) && text.contains("superseded by attempt 2"), "{text}");
        let loaded =
            run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1)).unwrap().found;
        assert_eq!(loaded.map(|(id, ())| id), Some(id(2, 2)), "{operation}");
    }
}
