//! `lampyris train` from recipe to report, with a fake rank.

use crate::desk::{Desk, shipped};
use std::fs;

#[test]
fn a_run_from_recipe_to_report() {
    let desk = Desk::new("log=hello ready steps=8 eval=1.25 commit sample finish");
    let ended = desk.run(&["train", &shipped("debug_llama"), "--set", "seed=7"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let run = desk.only_run();
    let name = run.file_name().unwrap().to_str().unwrap().to_string();
    let (stem, stamp) = name.split_at("debug_llama-".len());
    assert_eq!(stem, "debug_llama-");
    let shape: String = stamp.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "00000000-000000");

    for part in ["Trained to step 8, 512 tokens", "this model  1.250", "| fn main() {}"] {
        assert!(ended.stdout.contains(part), "{part:?} in\n{}", ended.stdout);
    }
    assert!(ended.stdout.contains(&format!("Run         runs/{name}")), "{}", ended.stdout);
    let saved = format!("Checkpoint  runs/{name}/checkpoints/step-8.attempt-1");
    assert!(ended.stdout.contains(&saved), "{}", ended.stdout);
    for part in ["data: ", "step 1/1000  loss 5.0000", "step 8: validation 1.2500 bits per byte"] {
        assert!(ended.stderr.contains(part), "{part:?} in\n{}", ended.stderr);
    }
    let log = fs::read_to_string(run.join("logs/rank-0.attempt-1.log")).unwrap();
    assert_eq!(log, "hello\n");
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(recipe.ends_with("\n# --set seed=7"), "{recipe}");
    let plan = fs::read_to_string(run.join("plan.toml")).unwrap();
    assert!(plan.contains("seed = 7"), "{plan}");
    assert!(run.join("tokenizer/vocabulary.json").exists());
}

#[test]
fn the_compressors_stand_beside_the_model() {
    let desk = Desk::new("ready steps=1 eval=2 finish");
    let set = "eval.compare_compressors=true";
    let ended = desk.run(&["train", &shipped("debug_llama"), "--set", set, "--run-dir", "here"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for name in ["xz -9", "gzip -9"] {
        let line = ended.stdout.lines().find(|line| line.trim().starts_with(name)).unwrap();
        let figure: f64 = line.split_whitespace().last().unwrap().parse().unwrap();
        assert!((2.0..8.0).contains(&figure), "{line}");
    }
    assert!(desk.dir.path().join("here/plan.toml").exists());
}

#[test]
fn prepared_data_is_used_again() {
    let desk = Desk::new("ready steps=1 finish");
    let first = desk.run(&["train", &shipped("debug_llama")]);
    assert!(first.stderr.contains("tokenizing"), "{}", first.stderr);
    let second = desk.run(&["train", &shipped("debug_llama"), "--run-dir", "two"]);
    assert!(!second.stderr.contains("tokenizing"), "{}", second.stderr);
}

#[test]
fn a_rank_that_fails_is_reported_once_with_its_last_words() {
    let desk = Desk::new("ready log=one log=two steps=3 fail=4 exit=1");
    let ended = desk.run(&["train", &shipped("debug_llama")]);
    assert_eq!(ended.code, 1);
    let from = ended.stderr.find("error: ").unwrap();
    let log = desk.only_run().join("logs/rank-0.attempt-1.log");
    let log = log.strip_prefix(desk.dir.path()).unwrap().display();
    assert_eq!(
        &ended.stderr[from..],
        format!(
            "error: rank 0 failed (exit 1): the fake failed (after step 3)\nhint: mend the fake\n\
             log: {log}\n  | one\n  | two\n"
        )
    );
}

#[test]
fn a_killed_rank_is_explained() {
    let desk = Desk::new("ready steps=2 signal=KILL");
    let ended = desk.run(&["train", &shipped("debug_llama")]);
    assert_eq!(ended.code, 1);
    for part in ["error: rank 0 was killed by SIGKILL (after step 2)", "out-of-memory killer"] {
        assert!(ended.stderr.contains(part), "{part:?} in\n{}", ended.stderr);
    }
}

#[test]
fn the_codes_to_retry_and_to_give_up_pass_through() {
    for code in [75, 78] {
        let desk = Desk::new(&format!("ready fail=1 exit={code}"));
        assert_eq!(desk.run(&["train", &shipped("debug_llama")]).code, code);
    }
}
