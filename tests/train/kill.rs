//! Rank processes killed with signal 9 at chosen operations of a save, and one that is stopped, replaced and goes on.
//! (`LAMPYRIS_FAIL_POINT`, which only debug builds know.)

use lampyris_tests::desk::{Desk, Ended, rank_pids, signal};
use rustix::process::Signal;
use std::process::{Child, Command};

const FAIL_POINT: &str = "LAMPYRIS_FAIL_POINT";

/// 24 steps, a save after each.
const SETS: [&str; 3] =
    ["schedule.total_tokens=12_288", "eval.every_steps=0", "checkpoint.every_steps=1"];

/// The disk operation of a rank at which it is killed, counted from its start. 1 to 4 open the run directory, 5 to 8
/// keep what the attempt is started with, 9 and 10 record it. Then, in the first save: folder 11, data file 12 to 15,
/// index 16 to 18, manifest 19 to 21, sync of the folder 22, rename 23, its sync 24. From the third checkpoint on, removal of
/// the oldest follows: rename 25, its sync 26, files 27 to 29, folder 30; later saves come after that.
const KILLED_AT: [usize; 14] = [5, 11, 12, 14, 15, 16, 18, 20, 22, 23, 24, 25, 28, 30];

fn ended(command: &mut Command) -> Ended {
    let output = command.output().expect("lampyris runs");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

#[test]
fn a_rank_killed_at_any_operation_of_a_save_resumes_bit_for_bit() {
    let desk = Desk::new();
    let whole = desk.train("debug_llama", "undisturbed", &SETS);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    let want = desk.losses("undisturbed");
    for (nth, killed_at) in KILLED_AT.into_iter().enumerate() {
        let mut command = match nth {
            0 => desk.train_command("debug_llama", "killed", &SETS),
            _ => desk.command(&["resume", "killed"]),
        };
        let killed = ended(command.env(FAIL_POINT, format!("0 any {killed_at} kill")));
        assert_eq!(killed.code, 1, "operation {killed_at}: {}", killed.stderr);
        assert!(killed.stderr.contains("SIGKILL"), "operation {killed_at}: {}", killed.stderr);
        for (step, loss) in desk.losses("killed") {
            assert_eq!(want.get(&step), Some(&loss), "operation {killed_at}, step {step}");
        }
    }
    let last = desk.run(&["resume", "killed"]);
    assert_eq!(last.code, 0, "{}", last.stderr);
    assert_eq!(desk.losses("killed"), want);
    desk.assert_same_state("killed", "undisturbed");
    let left = std::fs::read_dir(desk.path("killed/checkpoints")).expect("lists");
    let names: Vec<String> =
        left.map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8")).collect();
    assert!(names.iter().all(|name| name.starts_with("step-")), "nothing is left over: {names:?}");
}

/// Starts a run whose rank stops at `point`, and waits until it has.
fn stopped_at(desk: &Desk, point: &str) -> (Child, u32) {
    let mut train = desk.train_command("debug_llama", "run", &SETS);
    let child = train.env(FAIL_POINT, point).spawn().expect("lampyris starts");
    let mut rank = None;
    desk.wait("a stopped rank", || {
        rank = rank_pids(child.id()).into_iter().find(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
            status.unwrap_or_default().contains("State:\tT")
        });
        rank.is_some()
    });
    (child, rank.expect("it was found"))
}

#[test]
fn a_rank_that_was_stopped_and_replaced_is_never_chosen() {
    // Stopped while it writes, and right before the rename that commits: the successor has swept its files away. (That a
    // commit which comes late all the same is never chosen is a test of the crate `checkpoint`.)
    for point in ["0 write 6 stop", "0 rename 2 stop"] {
        let desk = Desk::new();
        let (zombie, rank) = stopped_at(&desk, point);
        // As if the successor ran on another machine, where this lock is not seen.
        std::fs::remove_file(desk.path("run/control/lock")).expect("a lock");
        let successor = desk.run(&["resume", "run"]);
        assert_eq!(successor.code, 0, "{}", successor.stderr);
        let want = desk.newest("run").manifest().clone();
        assert_eq!((want.id.step.0, want.id.attempt.0), (24, 2));

        signal(rank, Signal::CONT);
        let output = zombie.wait_with_output().expect("waits");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("superseded by attempt 2"), "{text}");
        assert!(!desk.path("run/checkpoints/step-2.attempt-1").exists(), "{point}");
        assert_eq!(*desk.newest("run").manifest(), want);
    }
}
