//! What goes in and comes out: text from a model, weights from and to Hugging Face folders, text that is too short.

use lampyris_tests::desk::Desk;
use lampyris_tests::repository;

#[test]
fn the_same_seed_writes_the_same_text() {
    let desk = Desk::new();
    let sets = ["schedule.total_tokens=2_048", "schedule.warmup_tokens=512", "eval.every_steps=0"];
    assert_eq!(desk.train("debug_llama", "run", &sets).code, 0);
    let write = |arguments: &[&str]| {
        let all =
            [&["generate", "run", "--prompt", "Alice ", "--tokens", "40"], arguments].concat();
        let ended = desk.run(&all);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stdout.starts_with("Alice "), "{}", ended.stdout);
        ended.stdout
    };
    let first = write(&["--seed", "3"]);
    assert!(first.trim_end().len() > "Alice ".len());
    assert_eq!(first, write(&["--seed", "3"]));
    assert_ne!(first, write(&["--seed", "4"]));
    assert_eq!(write(&["--temperature", "0"]), write(&["--temperature", "0", "--seed", "9"]));
}

#[test]
fn weights_survive_the_way_through_a_run() {
    let desk = Desk::new();
    let folder = repository("tests/data/oracle/deepseek_v3");
    let recipe = repository("recipes/debug_moe.toml").display().to_string();
    let import = ["import", &folder.display().to_string(), "--recipe", &recipe, "--run-dir", "run"];
    // The golden model has 67 tokens, the debug text 257.
    let refused = desk.run(&import);
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(refused.stderr.contains("67") && refused.stderr.contains("257"), "{}", refused.stderr);

    // Characters of a small text: few enough.
    let text = desk.path("text.txt");
    std::fs::write(&text, "to be or not to be that is the question\n".repeat(200)).expect("writes");
    let data = format!("data.path={}", text.display());
    let sets = ["--set", &data, "--set", "tokenizer.kind=char", "--set", "model.vocab_size=67"];
    let ended = desk.run(&[&import[..], &sets].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let ended = desk.run(&["export", "run", "--to", "out", "--dtype", "fp32"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let golden = folder.join("golden.safetensors").display().to_string();
    let ended = desk.run(&["parity", "out", &golden]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn a_sequence_longer_than_the_text_is_refused_with_both_lengths() {
    let desk = Desk::new();
    let text = desk.path("short.txt");
    std::fs::write(&text, "far too short for a sequence").expect("writes");
    let data = format!("data.path={}", text.display());
    let ended = desk.train("debug_llama", "run", &[&data]);
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(ended.stderr.contains("tokens"), "{}", ended.stderr);
}

#[test]
fn a_growing_batch_keeps_its_leaves_and_ends_on_time() {
    let desk = Desk::new();
    let sets = [
        "batch.ramp_start=4",
        "batch.ramp_tokens=4_096",
        "batch.leaves=2",
        "schedule.total_tokens=8_192",
        "eval.every_steps=0",
    ];
    let ended = desk.train("debug_llama", "run", &sets);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let progress = desk.newest("run").manifest().state.clone();
    assert!(progress["tokens"].as_u64() >= Some(8_192), "{progress:?}");
    let full_size_steps = 8_192 / (8 * 64);
    assert!(progress["step"].as_u64() > Some(full_size_steps), "{progress:?}");
}
