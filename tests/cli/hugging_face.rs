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
