//! `lampyris replay`: the ledger agrees with what the ranks consumed, over attempts with another batch.

use lampyris_tests::desk::Desk;
use serde_json::Value;
use std::collections::BTreeSet;

fn replay(desk: &Desk, step: u64, more: &[&str]) -> Value {
    let step = step.to_string();
    let mut arguments = vec!["replay", "run", "--step", &step, "--json"];
    arguments.extend(more);
    let ended = desk.run(&arguments);
    assert_eq!(ended.code, 0, "step {step}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).expect("JSON")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// Samples that the run had consumed after the checkpoint of `step`, as the rank counted them.
fn consumed(desk: &Desk, checkpoint: &str) -> u64 {
    let ended =
        desk.run(&["checkpoint", "show", &format!("run/checkpoints/{checkpoint}"), "--json"]);
    let shown: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    number(&shown["manifest"]["state"], "samples")
}

#[test]
fn the_ledger_of_every_step_follows_the_attempts_and_their_plans() {
    let desk = Desk::new();
    let sets = ["schedule.total_tokens=6_144", "eval.every_steps=0", "checkpoint.every_steps=2"];
    let ended = desk.train("debug_llama", "run", &sets);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let first_steps = desk.losses("run").len() as u64;
    // On from the end with twice the batch: earlier steps keep their ledger.
    let before = replay(&desk, 3, &[]);
    let recipe = lampyris_tests::repository("recipes/debug_llama.toml").display().to_string();
    let mut arguments =
        vec!["resume", "run", "--allow-change", "schedule,batch", "--recipe", &recipe];
    let sets = [
        "schedule.total_tokens=16_384",
        "batch.global_batch=16",
        "eval.every_steps=0",
        "checkpoint.every_steps=1",
        "checkpoint.keep=9",
        "parallel.threads_per_rank=1",
        "output.tensorboard=false",
    ];
    arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
    let ended = desk.run(&arguments);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(replay(&desk, 3, &[]), before);

    let last = *desk.losses("run").keys().next_back().expect("steps");
    assert!(last > first_steps, "the second attempt has steps of its own");
    let (mut position, mut seen) = (0, BTreeSet::new());
    for step in 1..=last {
        let ledger = replay(&desk, step, &[]);
        let attempt = if step <= first_steps { 1 } else { 2 };
        assert_eq!(number(&ledger, "attempt"), attempt, "step {step}");
        for sample in ledger["samples"].as_array().expect("samples") {
            assert_eq!(number(sample, "position"), position);
            position += 1;
            assert!(seen.insert((number(sample, "epoch"), number(sample, "window"))), "{sample}");
            let tokens = sample["documents"].as_array().expect("documents").iter();
            let tokens: u64 = tokens
                .map(|d| {
                    d["tokens"][1].as_u64().expect("end") - d["tokens"][0].as_u64().expect("start")
                })
                .sum();
            assert_eq!(tokens, number(&ledger, "sequence_length"));
        }
        if step > first_steps {
            assert_eq!(position, consumed(&desk, &format!("step-{step}.attempt-2")), "step {step}");
        }
    }
    let none = desk.run(&["replay", "run", "--step", &(last + 1).to_string()]);
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains(&format!("has no step {}", last + 1)), "{}", none.stderr);
}

#[test]
fn the_printed_text_is_that_of_the_named_document() {
    let desk = Desk::new();
    let sets = ["schedule.total_tokens=6_144", "eval.every_steps=0"];
    assert_eq!(desk.train("debug_llama", "run", &sets).code, 0);
    let ledger = replay(&desk, 1, &["--print"]);
    let document = &ledger["samples"][0]["documents"][0];
    let text = document["text"].as_str().expect("text");
    assert!(!text.is_empty());
    let plain = desk.run(&["replay", "run", "--step", "1", "--print"]);
    assert_eq!(plain.code, 0, "{}", plain.stderr);
    let line = text.lines().next().expect("a line");
    assert!(plain.stdout.contains(&format!("    | {line}")), "{}", plain.stdout);
    // Without its record an attempt is taken to have had the plan that the run has now, and that is said.
    std::fs::remove_file(desk.path("run/attempts/1.json")).expect("a record");
    let old = desk.run(&["replay", "run", "--step", "1", "--print"]);
    assert_eq!(old.stdout, plain.stdout);
    assert!(old.stderr.contains("attempt 1 kept no record"), "{}", old.stderr);
}
