//! Kill and resume: the interrupted run has the bits of the undisturbed one.

use lampyris_tests::desk::{Desk, rank_pids, signal};
use rustix::process::Signal;

/// 24 steps; micro-batches per leaf follow from the leaves.
const STEPS: [&str; 2] = ["schedule.total_tokens=12_288", "eval.every_steps=0"];

/// SIGTERM in the middle, exit 85, resume: losses and final state as in one go. `leaves` of 4 micro-batches.
fn interrupted_equals_undisturbed(compute: &str, leaves: &str) {
    let desk = Desk::new();
    let (compute, leaves) = (format!("compute={compute}"), format!("batch.leaves={leaves}"));
    let sets = [STEPS[0], STEPS[1], &compute, &leaves];
    let ended = desk.train("debug_moe", "undisturbed", &sets);
    assert_eq!(ended.code, 0, "{}", ended.stderr);

    let mut child = desk.start("debug_moe", "interrupted", &sets);
    desk.wait_for_step("interrupted", 5);
    signal(child.id(), Signal::TERM);
    let code = child.wait().expect("waits").code();
    assert_eq!(code, Some(85));
    let stopped = desk.newest("interrupted").manifest().id.step.0;
    assert!((5..24).contains(&stopped), "stopped after step {stopped}");

    let ended = desk.run(&["resume", "interrupted"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(desk.losses("interrupted"), desk.losses("undisturbed"));
    assert_eq!(desk.losses("interrupted").len(), 24);
    desk.assert_same_state("interrupted", "undisturbed");
}

#[test]
fn fp32_with_one_micro_batch_per_leaf() {
    interrupted_equals_undisturbed("fp32", "4");
}

#[test]
fn fp32_with_two_micro_batches_per_leaf() {
    interrupted_equals_undisturbed("fp32", "2");
}

#[test]
fn fp32_with_four_micro_batches_per_leaf() {
    interrupted_equals_undisturbed("fp32", "1");
}

#[test]
fn bf16_with_one_micro_batch_per_leaf() {
    interrupted_equals_undisturbed("bf16", "4");
}

#[test]
fn bf16_with_two_micro_batches_per_leaf() {
    interrupted_equals_undisturbed("bf16", "2");
}

#[test]
fn bf16_with_four_micro_batches_per_leaf() {
    interrupted_equals_undisturbed("bf16", "1");
}

/// SIGKILL of the rank loses only what came after the last periodic save.
#[test]
fn a_killed_rank_resumes_from_its_last_checkpoint_bit_for_bit() {
    let desk = Desk::new();
    let sets = [STEPS[0], STEPS[1], "checkpoint.every_steps=4"];
    let ended = desk.train("debug_moe", "undisturbed", &sets);
    assert_eq!(ended.code, 0, "{}", ended.stderr);

    let mut child = desk.start("debug_moe", "killed", &sets);
    desk.wait_for_step("killed", 10);
    let ranks = rank_pids(child.id());
    assert_eq!(ranks.len(), 1, "one rank");
    signal(ranks[0], Signal::KILL);
    assert_eq!(child.wait().expect("waits").code(), Some(1));
    let ended = desk.run(&["resume", "killed"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(desk.losses("killed"), desk.losses("undisturbed"));
    desk.assert_same_state("killed", "undisturbed");
    // Every step once, for readers that know nothing of attempts.
    let text = std::fs::read_to_string(desk.path("killed/metrics.jsonl")).expect("metrics");
    assert_eq!(text.lines().filter(|line| line.contains("\"loss\"")).count(), 24, "{text}");
    assert_eq!(text.matches("\"resumed\":{\"attempt\":2,\"next_step\":9").count(), 1, "{text}");
}

/// Neither no held-out text nor a prompt that cannot be read makes a run fail that has trained to its end.
#[test]
fn a_run_without_evaluation_and_sample_ends_well() {
    let desk = Desk::new();
    let sets = ["schedule.total_tokens=2_048", "eval.every_steps=2", "data.validation_fraction=0"];
    let more = [
        "schedule.warmup_tokens=512",
        "tokenizer.kind=\"char\"",
        "model.vocab_size=128",
        "output.sample_prompt=\"a\"",
    ];
    let ended = desk.train("debug_llama", "run", &[&sets[..], &more].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(desk.validation("run").len(), 0);
    // As if the prompt had been changed in the plan of a run that was made before prompts were checked.
    let plan = desk.path("run/plan.toml");
    let text = std::fs::read_to_string(&plan).expect("a plan");
    let text = text.replace("sample_prompt = \"a\"", "sample_prompt = \"☃\"");
    std::fs::write(&plan, text).expect("writes");
    let ended = desk.run(&["resume", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let said = "there is no sample (output.sample_prompt)";
    assert!(ended.stderr.contains(said) && ended.stderr.contains('☃'), "{}", ended.stderr);
}

/// SIGINT stays stopped (86), and so does a request by `lampyris suspend`.
#[test]
fn an_interrupt_and_a_request_stay_stopped() {
    let desk = Desk::new();
    let sets = ["eval.every_steps=0", "schedule.total_tokens=512_000"];
    let mut child = desk.start("debug_moe", "run", &sets);
    desk.wait_for_step("run", 2);
    signal(child.id(), Signal::INT);
    assert_eq!(child.wait().expect("waits").code(), Some(86));

    let mut resumed = desk.command(&["resume", "run"]).spawn().expect("starts");
    let before = desk.newest("run").manifest().id.step.0;
    desk.wait_for_step("run", before + 2);
    assert_eq!(desk.run(&["suspend", "run"]).code, 0);
    assert_eq!(resumed.wait().expect("waits").code(), Some(86));
    assert!(desk.newest("run").manifest().id.step.0 > before);
}
