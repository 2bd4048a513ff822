//! What a run does when something is broken: a damaged checkpoint, numbers that are not finite, a full disk, a
//! vocabulary that does not fit.

use lampyris_tests::desk::Desk;
use std::path::Path;
use std::process::Command;

const SHORT: [&str; 2] = ["schedule.total_tokens=6_144", "eval.every_steps=0"]; // 12 steps

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let desk = Desk::new();
    let sets = [SHORT[0], SHORT[1], "checkpoint.every_steps=4", "checkpoint.keep=5"];
    assert_eq!(desk.train("debug_moe", "run", &sets).code, 0);
    let want = desk.losses("run");
    let data = newest_data_file(&desk.path("run/checkpoints/step-12.attempt-1"));
    let mut bytes = std::fs::read(&data).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).expect("writes");

    let ended = desk.run(&["resume", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("step-12.attempt-1"), "{}", ended.stderr);
    assert!(ended.stderr.contains("damaged"), "{}", ended.stderr);
    assert!(desk.path("run/checkpoints/quarantine.step-12.attempt-1").exists());
    assert!(desk.path("run/checkpoints/step-12.attempt-2").exists());
    assert_eq!(desk.losses("run"), want, "steps 9 to 12 were done again with the same bits");
}

/// Whole to the last byte, and nonsense: its name and the trainer's own values tell different steps.
#[test]
fn a_checkpoint_that_contradicts_itself_is_set_aside_like_a_damaged_one() {
    let desk = Desk::new();
    let sets = [SHORT[0], SHORT[1], "checkpoint.every_steps=4", "checkpoint.keep=5"];
    assert_eq!(desk.train("debug_llama", "run", &sets).code, 0);
    let want = desk.losses("run");
    let path = desk.path("run/checkpoints/step-12.attempt-1/manifest.json");
    let text = std::fs::read_to_string(&path).expect("reads");
    let (_, body) = text.split_once("\"body\":").expect("a body");
    let body = body.strip_suffix('}').expect("its end");
    let (before, state) = body.split_once("\"state\":").expect("a state");
    let body = format!("{before}\"state\":{}", state.replacen("\"step\":12", "\"step\":11", 1));
    let seal = lampyris_checkpoint::format::Checksum::of(body.as_bytes());
    std::fs::write(&path, format!("{{\"xxh3\":\"{seal}\",\"body\":{body}}}")).expect("writes");

    let ended = desk.run(&["resume", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("its state is that after step 11"), "{}", ended.stderr);
    assert!(desk.path("run/checkpoints/quarantine.step-12.attempt-1").exists());
    assert_eq!(desk.losses("run"), want, "steps 9 to 12 were done again with the same bits");
}

fn newest_data_file(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
    files.max_by_key(|path| path.metadata().expect("metadata").len()).expect("files")
}

#[test]
fn numbers_that_are_not_finite_stop_the_run_with_step_and_tensor() {
    let desk = Desk::new();
    let sets = [SHORT[0], SHORT[1], "schedule.peak_lr=1e30", "optimizer.clip_norm=0.0"];
    let ended = desk.train("debug_llama", "run", &sets);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("is not finite"), "{}", ended.stderr);
    assert!(ended.stderr.contains("step "), "{}", ended.stderr);
}

#[test]
fn a_vocabulary_that_is_too_small_is_refused_before_training() {
    let desk = Desk::new();
    let ended = desk.train("debug_llama", "run", &["model.vocab_size=200"]);
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(ended.stderr.contains("257") && ended.stderr.contains("200"), "{}", ended.stderr);
}

#[test]
fn a_full_disk_while_saving_keeps_the_earlier_checkpoint() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs this test as root");
        eprintln!("skipped: a small file system needs root");
        return;
    }
    let desk = Desk::new();
    let disk = desk.path("disk");
    std::fs::create_dir(&disk).expect("creates");
    // A checkpoint of debug_llama has about 1.5 MiB: one fits beside the logs, two do not.
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2500k", "tmpfs"])
        .arg(&disk)
        .status()
        .expect("mount runs");
    assert!(mounted.success(), "mounting a tmpfs");
    let sets = [SHORT[0], SHORT[1], "checkpoint.every_steps=4", "checkpoint.keep=5"];
    let ended = desk.train("debug_llama", "disk/run", &sets);
    let step = desk.newest("disk/run").manifest().id.step.0;
    Command::new("umount").arg("-l").arg(&disk).status().expect("umount runs");
    assert_eq!(ended.code, 75, "{}", ended.stderr);
    assert!(ended.stderr.contains("space"), "{}", ended.stderr);
    assert_eq!(step, 4, "the first checkpoint is whole");
}

/// Each sync takes longer than dozens of steps; whatever happens to periodic saves, the last one is whole.
#[test]
fn a_slow_disk_leaves_saves_out_says_so_and_changes_no_bit() {
    let desk = Desk::new();
    let sets = [SHORT[0], SHORT[1], "checkpoint.every_steps=1", "checkpoint.keep=50"];
    assert_eq!(desk.train("debug_llama", "fast", &sets).code, 0);
    let sets = [&sets[..], &["checkpoint.while_saving=\"skip\""]].concat();
    let mut slow = desk.train_command("debug_llama", "slow", &sets);
    let output = slow.env("LAMPYRIS_FAIL_POINT", "0 sync 4 slow").output().expect("lampyris runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("no checkpoint after step"), "{text}");
    assert!(text.contains("is still being written"), "{text}");
    let metrics = std::fs::read_to_string(desk.path("slow/metrics.jsonl")).expect("metrics");
    assert!(metrics.contains(r#""save_left_out":{"saving":"#), "{metrics}");
    let saved = |name: &str| std::fs::read_dir(desk.path(name)).expect("lists").count();
    assert_eq!(saved("fast/checkpoints"), 12);
    assert!(saved("slow/checkpoints") < 12, "{text}");
    assert_eq!(desk.losses("slow"), desk.losses("fast"));
    desk.assert_same_state("slow", "fast");
}
