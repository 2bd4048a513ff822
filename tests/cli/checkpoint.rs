//! `lampyris checkpoint list|show|verify|diff|prune` on real checkpoints of a fake rank.

use crate::desk::{Desk, shipped};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;

/// A finished run with checkpoints after steps 2, 4 and 6.
fn desk() -> Desk {
    let desk = Desk::new("ready steps=2 commit steps=2 commit steps=2 commit finish");
    let ended = desk.run(&["train", &shipped("debug_llama"), "--run-dir", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    desk
}

fn json(desk: &Desk, arguments: &[&str]) -> Value {
    let ended = desk.run(&[&["checkpoint"], arguments, &["--json"]].concat());
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"))
}

/// Flips one bit in the middle of a checkpoint's data.
fn damage(desk: &Desk, checkpoint: &str) {
    let path = desk.dir.path().join("run/checkpoints").join(checkpoint).join("rank-00000.data");
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    let middle = file.metadata().unwrap().len() / 2;
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

#[test]
fn list_has_a_line_per_checkpoint() {
    let desk = desk();
    let list = desk.run(&["checkpoint", "list", "run"]);
    assert_eq!(list.code, 0, "{}", list.stderr);
    let lines: Vec<&str> = list.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", list.stdout);
    for (line, step) in lines[1..].iter().zip(["2", "4", "6"]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..2], [step, "1"], "{line}");
        assert!(line.contains(" MiB "), "{line}");
    }
    let value = json(&desk, &["list", "run"]);
    let steps: Vec<u64> = value["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|checkpoint| checkpoint["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [2, 4, 6]);
}

#[test]
fn show_takes_the_newest_a_step_or_a_folder() {
    let desk = desk();
    let show = |arguments: &[&str]| {
        let ended = desk.run(&[&["checkpoint", "show"], arguments].concat());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stdout
    };
    assert!(
        show(&["run"]).starts_with("run/checkpoints/step-6.attempt-1\n  step              6\n")
    );
    assert!(show(&["run", "--step", "4"]).ends_with("samples           4\n"));
    let folder = show(&["run/checkpoints/step-2.attempt-1"]);
    for part in
        ["continues         a fresh start", "weight            125,376", "cpu               fake"]
    {
        assert!(folder.contains(part), "{part:?} in\n{folder}");
    }
    let missing = desk.run(&["checkpoint", "show", "run", "--step", "3"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("run has no checkpoint of step 3 in its lineage"));
}

#[test]
fn verify_finds_one_flipped_bit() {
    let desk = desk();
    let good = desk.run(&["checkpoint", "verify", "run"]);
    assert_eq!(good.code, 0, "{}", good.stderr);
    assert_eq!(good.stdout.matches("all well").count(), 3, "{}", good.stdout);
    damage(&desk, "step-4.attempt-1");
    let bad = desk.run(&["checkpoint", "verify", "run"]);
    assert_eq!(bad.code, 1);
    assert!(bad.stdout.contains("step-4.attempt-1: damaged\n"), "{}", bad.stdout);
    assert!(bad.stderr.contains("error: 1 of 3 checkpoints are damaged"), "{}", bad.stderr);
    let value = json(&desk, &["verify", "run/checkpoints/step-4.attempt-1"]);
    assert!(value[0]["problems"][0].as_str().unwrap().contains("checksum"), "{value}");
}

#[test]
fn diff_names_tensors_and_answers_by_its_exit_code() {
    let desk = desk();
    let same = desk.run(&["checkpoint", "diff", "run", "run/checkpoints/step-6.attempt-1"]);
    assert_eq!(same.code, 0, "{}", same.stderr);
    assert!(same.stdout.starts_with("0 tensors differ, "), "{}", same.stdout);
    let differs = desk.run(&["checkpoint", "diff", "run/checkpoints/step-4.attempt-1", "run"]);
    assert_eq!(differs.code, 1);
    assert!(differs.stderr.is_empty(), "{}", differs.stderr);
    let value = json(&desk, &["diff", "run/checkpoints/step-4.attempt-1", "run"]);
    let first = &value["tensors"][0];
    assert_eq!((&first["max_difference"], &first["max_b"]), (&1.0.into(), &3.0.into()));
}

#[test]
fn prune_says_what_would_go_and_then_removes_it() {
    let desk = desk();
    let prune = |more: &[&str]| {
        let ended = desk.run(&[&["checkpoint", "prune", "run", "--keep", "1"], more].concat());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stdout
    };
    let dry = "would remove step-2.attempt-1\nkept step-4.attempt-1\nkept step-6.attempt-1\n";
    assert_eq!(prune(&["--every-steps", "4", "--dry-run"]), dry);
    assert_eq!(fs::read_dir(desk.dir.path().join("run/checkpoints")).unwrap().count(), 3);
    let done = "removed step-2.attempt-1\nremoved step-4.attempt-1\nkept step-6.attempt-1\n";
    assert_eq!(prune(&[]), done);
    assert_eq!(fs::read_dir(desk.dir.path().join("run/checkpoints")).unwrap().count(), 1);
}
