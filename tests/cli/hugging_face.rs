//! `lampyris import` and `lampyris export`: a folder in, the same tensors out.

use crate::desk::{Desk, Ended, shipped};
use lampyris_checkpoint::hf::Folder;
use lampyris_tests::repository;
use std::path::Path;

fn oracle(name: &str) -> String {
    repository(&format!("tests/data/oracle/{name}")).to_str().unwrap().to_string()
}

/// Imports a case as `run`. Its vocabulary has 67 entries, so the text has few characters.
fn import(desk: &Desk, name: &str, recipe: &str) -> Ended {
    desk.file("text.txt", &"the quick brown fox jumps over the lazy dog\n".repeat(100));
    let (folder, recipe) = (oracle(name), shipped(recipe));
    desk.run(&[
        "import",
        &folder,
        "--recipe",
        &recipe,
        "--run-dir",
        "run",
        "--set",
        "data.path=text.txt",
        "--set",
        "tokenizer.kind=char",
        "--set",
        "model.vocab_size=67",
    ])
}

/// Every tensor that `lampyris` uses, as bits.
fn tensors(folder: &Path) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let folder = Folder::open(folder).unwrap();
    let read = |name: &str| {
        let (shape, values) = folder.tensor(name).unwrap();
        (name.to_string(), shape, values.iter().map(|value| value.to_bits()).collect())
    };
    folder.names().map(read).collect()
}

#[test]
fn what_is_imported_is_exported_again_bit_by_bit() {
    for (name, recipe) in [("llama_gqa", "debug_llama"), ("deepseek_v3", "debug_moe")] {
        let desk = Desk::new("");
        let ended = import(&desk, name, recipe);
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
        assert_eq!(ended.stdout, "`lampyris resume run` trains it\n");
        let export = ["export", "run", "--to", "out", "--dtype", "fp32"];
        let ended = desk.run(&export);
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
        let out = desk.dir.path().join("out");
        assert!(tensors(&out) == tensors(Path::new(&oracle(name))), "{name}: tensors differ");
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        assert!(config.contains("\"eos_token_id\": 28"), "{config}");
        let json = |file: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(out.join(file)).unwrap()).unwrap()
        };
        assert_eq!(json("generation_config.json")["eos_token_id"], 28);
        let tokenizer = json("tokenizer_config.json");
        assert_eq!(tokenizer["tokenizer_class"], "PreTrainedTokenizerFast");
        assert_eq!(tokenizer["added_tokens_decoder"]["28"]["content"], tokenizer["eos_token"]);
        assert_eq!(json("tokenizer.json")["model"]["vocab"]["a"], 2);

        let again = desk.run(&export);
        assert_eq!(again.code, 1);
        assert!(again.stderr.contains("out exists already"), "{}", again.stderr);
    }
}

#[test]
fn an_imported_run_is_resumed_from_step_0() {
    let desk = Desk::new("ready steps=2 commit finish");
    let imported = import(&desk, "deepseek_v3", "debug_moe");
    assert!(imported.stderr.contains("declares an MTP layer"), "{}", imported.stderr);
    let ended = desk.run(&["resume", "run"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("continuing from step-0.attempt-1"), "{}", ended.stderr);
    let list = desk.run(&["checkpoint", "list", "run"]);
    assert_eq!(list.stdout.lines().count(), 3, "{}", list.stdout);
}

#[test]
fn a_folder_with_a_missing_tensor_or_of_another_class_is_refused() {
    let desk = Desk::new("");
    let recipe = shipped("debug_llama");
    let broken = desk.dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let oracle = repository("tests/data/oracle/llama_gqa");
    let config = std::fs::read_to_string(oracle.join("config.json")).unwrap();
    let layers = "\"num_hidden_layers\": ";
    let at = config.find(layers).unwrap() + layers.len();
    let more = format!("{}9{}", &config[..at], &config[at + 1..]);
    std::fs::write(broken.join("config.json"), more).unwrap();
    std::fs::copy(oracle.join("model.safetensors"), broken.join("model.safetensors")).unwrap();
    let ended = desk.run(&["import", "broken", "--recipe", &recipe, "--run-dir", "run"]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("missing tensors:\n  model.layers.3.input_layernorm.weight"),
        "{}",
        ended.stderr
    );

    std::fs::write(
        broken.join("config.json"),
        config.replace("LlamaForCausalLM", "GPT2LMHeadModel"),
    )
    .unwrap();
    let ended = desk.run(&["import", "broken", "--recipe", &recipe, "--run-dir", "run"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("GPT2LMHeadModel"), "{}", ended.stderr);
    assert!(!desk.dir.path().join("run").exists());
}

/// The sizes are the folder's, whatever the recipe of the import says; another schedule is another schedule and no more.
#[test]
fn an_imported_run_goes_on_under_its_recipe_with_another_schedule() {
    let desk = Desk::new("ready steps=2 commit finish");
    let imported = import(&desk, "deepseek_v3", "debug_moe");
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    let recipe = shipped("debug_moe");
    let resume = |more: &[&str]| {
        let sets = ["data.path=text.txt", "tokenizer.kind=char", "model.vocab_size=67"];
        let mut words = vec!["resume", "run", "--recipe", &recipe];
        words.extend(sets.iter().flat_map(|set| ["--set", set]));
        words.extend(more);
        desk.run(&words)
    };
    let ended = resume(&["--set", "schedule.peak_lr=1e-3"]);
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(ended.stderr.contains("schedule.peak_lr"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("model."), "{}", ended.stderr);
    let ended = resume(&["--set", "model.rope_theta=5e5"]);
    assert_eq!(ended.code, 78, "{}", ended.stderr);
    assert!(ended.stderr.contains("model.rope.theta"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("model.hidden"), "{}", ended.stderr);
    let allow = ["--set", "schedule.peak_lr=1e-3", "--allow-change", "schedule"];
    let ended = resume(&allow);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let plan = std::fs::read_to_string(desk.dir.path().join("run/plan.toml")).unwrap();
    assert!(plan.contains("peak_lr = 0.001") && plan.contains("hidden = 32"), "{plan}");
}

#[test]
fn weights_that_are_not_finite_leave_no_run_behind() {
    let desk = Desk::new("");
    let bad = desk.dir.path().join("bad");
    std::fs::create_dir(&bad).unwrap();
    let oracle = repository("tests/data/oracle/llama_gqa");
    std::fs::copy(oracle.join("config.json"), bad.join("config.json")).unwrap();
    let mut weights = std::fs::read(oracle.join("model.safetensors")).unwrap();
    let end = weights.len();
    weights[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(bad.join("model.safetensors"), weights).unwrap();
    desk.file("text.txt", &"the quick brown fox jumps over the lazy dog\n".repeat(100));
    let recipe = shipped("debug_llama");
    let sets = ["data.path=text.txt", "tokenizer.kind=char", "model.vocab_size=67"];
    let mut words = vec!["import", "bad", "--recipe", &recipe, "--run-dir", "run"];
    words.extend(sets.iter().flat_map(|set| ["--set", set]));
    let ended = desk.run(&words);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("not finite"), "{}", ended.stderr);
    assert!(!desk.dir.path().join("run").exists());
}
