//! Long test: what a tokenizer is published as gives the same tokens in transformers.

use crate::prepared;
use lampyris_data::{Split, Tokenizer, TokenizerSpec};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python of `LAMPYRIS_PEERS_PYTHON`, which needs transformers alone, or the one of `scripts/peers.sh`.
fn python(root: &Path) -> PathBuf {
    if let Some(python) = std::env::var_os("LAMPYRIS_PEERS_PYTHON") {
        return python.into();
    }
    let made = Command::new(root.join("scripts/peers.sh")).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().into()
}

fn compare(python: &Path, root: &Path, tokenizer: &Tokenizer, texts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let end = tokenizer.end_of_document();
    let write = |name: &str, contents: &[u8]| {
        std::fs::write(dir.path().join(name), contents).unwrap();
    };
    for (name, contents) in tokenizer.hugging_face_files(512) {
        write(&name, &contents);
    }
    // As lampyris export writes them.
    let config = json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "bos_token_id": null, "eos_token_id": end });
    write("config.json", config.to_string().as_bytes());
    let generation = json!({ "bos_token_id": end, "eos_token_id": end, "pad_token_id": end });
    write("generation_config.json", generation.to_string().as_bytes());
    let tokens: Vec<_> =
        texts.iter().map(|text| json!([text, tokenizer.encode(text).unwrap()])).collect();
    let expected = json!({ "end_of_document": end, "vocabulary": tokenizer.vocabulary_size(),
        "texts": tokens });
    write("expected.json", expected.to_string().as_bytes());
    let output = Command::new(python)
        .arg(root.join("tests/peers/export_transformers.py"))
        .arg(dir.path())
        .arg("--tokens")
        .arg(dir.path().join("expected.json"))
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}{log}");
}

#[test]
#[ignore = "long: downloads transformers once (scripts/peers.sh)"]
fn published_tokenizers_give_the_same_tokens_in_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = python(&root);
    let texts = ["fn main() {}\n", " é漢🦀\r\n\t  two  spaces . and ,", "don't 1234 ! n't", ""];
    for spec in [
        TokenizerSpec::Byte,
        TokenizerSpec::Char,
        TokenizerSpec::Bpe { vocab_size: 300, train_bytes: 10_000 },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let split = Split::Hash { fraction: 0.0 };
        let dataset = prepared(dir.path(), &[&texts.concat().repeat(3)], spec, split);
        compare(&python, &root, dataset.tokenizer(), &texts);
    }
}
