//! The start of a run: its directory, what is refused because it would go wrong hours later, what a failed or interrupted
//! start leaves behind.

use crate::desk::{Desk, Ended, Started, shipped};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const GOOD: &str = "ready steps=1 finish";

fn train(desk: &Desk, sets: &[&str]) -> Ended {
    let llama = shipped("debug_llama");
    let mut arguments = vec!["train", llama.as_str()];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    desk.run(&arguments)
}

/// What was said of a start that is refused before there is a run directory.
fn refused(desk: &Desk, sets: &[&str]) -> String {
    let ended = train(desk, sets);
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(!desk.dir.path().join("runs").exists(), "nothing was started");
    ended.stderr
}

#[test]
fn runs_of_one_recipe_that_start_together_have_directories_of_their_own() {
    let desk = Desk::new(GOOD);
    let llama = shipped("debug_llama");
    let all: Vec<Started> = (0..6).map(|_| desk.start(&["train", llama.as_str()])).collect();
    for started in all {
        let ended = started.end();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
    let runs: Vec<PathBuf> =
        fs::read_dir(desk.dir.path().join("runs")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(runs.len(), 6, "{runs:?}");
    assert!(runs.iter().all(|run| run.join("attempts/1").exists()), "{runs:?}");
}

#[test]
fn a_prompt_that_the_tokenizer_cannot_read_is_refused_before_training() {
    let desk = Desk::new(GOOD);
    let char = "tokenizer.kind=\"char\"";
    let vocabulary = "model.vocab_size=128";
    let said = refused(&desk, &[char, vocabulary, "output.sample_prompt=\"a☃b\""]);
    for part in ["output.sample_prompt", "☃", "hint: write it with characters of the text"] {
        assert!(said.contains(part), "{part:?} in\n{said}");
    }
    let none = [char, vocabulary, "output.sample_prompt=\"a☃b\"", "output.sample_tokens=0"];
    assert_eq!(train(&desk, &none).code, 0, "no sample is asked for");
}

#[test]
fn held_out_text_that_fills_no_batch_is_refused_with_figures_and_none_is_said() {
    let desk = Desk::new(GOOD);
    desk.file("text.txt", &"a line of text\n".repeat(100));
    let text = ["data.path=\"text.txt\"", "data.validation_fraction=0.02"];
    let said = refused(&desk, &text);
    for part in [
        "the held-out text has 31 tokens",
        "needs 128 (batch.micro_batch 2 x batch.sequence_length 64)",
        "hint: raise data.validation_fraction",
    ] {
        assert!(said.contains(part), "{part:?} in\n{said}");
    }
    let ended = train(&desk, &["data.path=\"text.txt\"", "data.validation_fraction=0"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("nothing is evaluated").count(), 1, "{}", ended.stderr);
}

#[test]
fn a_model_that_this_machine_cannot_hold_is_refused_with_both_figures() {
    let desk = Desk::new(GOOD);
    let said = refused(&desk, &["model.hidden=1048576", "model.ffn_hidden=1048576"]);
    let line = said.lines().find(|line| line.starts_with("error: 1 rank needs about ")).unwrap();
    assert!(line.contains(" GiB on this machine, which has "), "{line}");
    let many =
        refused(&desk, &["parallel.data=65536", "batch.leaves=65536", "batch.global_batch=131072"]);
    assert!(many.contains("error: 65536 ranks need about "), "{many}");
}

/// A plan is a file, and files are edited.
#[test]
fn an_edited_plan_is_checked_before_it_is_continued() {
    let desk = Desk::new("ready steps=1 commit wait");
    let mut started = desk.start(&["train", &shipped("debug_llama"), "--run-dir", "run"]);
    started.wait_for("checkpoint of ");
    assert_eq!(desk.run(&["suspend", "run"]).code, 0);
    assert_eq!(started.end().code, 86);
    let path = desk.dir.path().join("run/plan.toml");
    let plan = fs::read_to_string(&path).unwrap();
    for (was, is, said) in [
        ("threads_per_rank = 0", "threads_per_rank = 1000000", "must be 0 to 1024"),
        ("hidden = 64", "hidden = 16777216", "1 rank needs about"),
        ("sequence_length = 64", "sequence_length = 16777216", ""),
        ("micro_batch = 2", "micro_batch = 16777216", "batch.micro_batch"),
        ("leaves = 4", "leaves = 16777216", "batch.leaves"),
    ] {
        assert!(plan.contains(was), "{was} in\n{plan}");
        fs::write(&path, plan.replacen(was, is, 1)).unwrap();
        let ended = desk.run(&["resume", "run"]);
        assert_eq!(ended.code, 78, "{is}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{is}: {}", ended.stderr);
    }
}

#[test]
fn a_start_that_fails_before_any_rank_leaves_no_run_directory() {
    let desk = Desk::new(GOOD);
    let secret = desk.file("secret", "0123456789abcdef0123456789abcdef");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&secret, private).unwrap();
    let llama = shipped("debug_llama");
    // An address of documentation, which no machine has (RFC 5737).
    let there = ["--rendezvous", "192.0.2.1:9", "--node-rank", "0", "--secret-file", "secret"];
    let arguments = [&["train", llama.as_str(), "--run-dir", "here"], &there[..]].concat();
    for _ in 0..2 {
        let ended = desk.run(&arguments);
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("192.0.2.1:9"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("exists already"), "{}", ended.stderr);
        assert!(!desk.dir.path().join("here").exists());
    }
    assert_eq!(desk.run(&arguments[..4]).code, 0);
}

#[test]
fn a_folder_with_a_long_path_holds_a_cluster_and_its_first_words_are_no_riddle() {
    let desk = Desk::new(GOOD);
    let long = desk.dir.path().join("a-rather-long-name/".repeat(8));
    fs::create_dir_all(&long).unwrap();
    let mut command = desk.command(&["run", &shipped("debug_llama"), "--run-dir", "here"]);
    let output = command.env("TMPDIR", &long).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("no node"), "{said}");
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0, "nothing is left there");

    let socket = format!("unix:{}", long.join("socket").display());
    let looks: [&[&str]; 2] =
        [&["list", "--scheduler", &socket], &["scheduler", "--listen", &socket]];
    for look in looks {
        let ended = desk.run(look);
        assert_eq!(ended.code, 1);
        for part in ["the path of the socket", "bytes, and the system takes 107 at most", "hint: "]
        {
            assert!(ended.stderr.contains(part), "{part:?} in\n{}", ended.stderr);
        }
    }
}

/// The folders in which text is being prepared.
fn being_made(desk: &Desk) -> Vec<PathBuf> {
    let entries = fs::read_dir(desk.dir.path().join("cache/data")).into_iter().flatten().flatten();
    let making = |path: &PathBuf| {
        path.file_name().unwrap().to_string_lossy().starts_with("making-") && path.is_dir()
    };
    entries.map(|entry| entry.path()).filter(making).collect()
}

/// Text on which a vocabulary is not trained at once.
fn much_text(path: &Path) {
    let mut text = String::new();
    let mut state = 1_u64;
    for _ in 0..600_000 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(&format!("{:x} ", state >> 24));
    }
    fs::write(path, text).unwrap();
}

#[test]
fn a_signal_while_text_is_prepared_leaves_nothing_in_the_cache() {
    let desk = Desk::new(GOOD);
    much_text(&desk.dir.path().join("text.txt"));
    let sets = [
        "data.path=\"text.txt\"",
        "data.validation=\"tail\"",
        "tokenizer.kind=\"bpe\"",
        "tokenizer.vocab_size=60000",
        "tokenizer.train_bytes=16777216",
    ];
    let llama = shipped("debug_llama");
    let mut arguments = vec!["train", llama.as_str()];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2), (Signal::HUP, 1)] {
        let started = desk.start(&arguments);
        let until = Instant::now() + Duration::from_secs(60);
        while being_made(&desk).is_empty() {
            assert!(Instant::now() < until, "the text is being prepared");
            std::thread::sleep(Duration::from_millis(2));
        }
        kill_process(Pid::from_raw(started.pid() as i32).unwrap(), signal).unwrap();
        let ended = started.end();
        assert_eq!(ended.code, 128 + number, "{}", ended.stderr);
        assert!(!ended.stderr.contains("error"), "{}", ended.stderr);
        assert_eq!(being_made(&desk), [] as [PathBuf; 0]);
    }
    assert!(!desk.dir.path().join("runs").exists());
}
