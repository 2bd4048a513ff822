//! Fuzzing of the JSON files of Hugging Face folders, beside weights that do not change.

use super::oracle;
use lampyris_checkpoint::hf::{Folder, Import};
use lampyris_fuzz::fuzz;
use std::path::Path;
use std::time::Duration;

fn open(dir: &Path, parser: &str, input: &[u8]) {
    let name = match parser {
        "config" => "config.json",
        "index" => "model.safetensors.index.json",
        other => panic!("no parser {other}: corpus files are named PARSER-anything"),
    };
    let dir = dir.join(parser);
    std::fs::write(dir.join(name), input).unwrap();
    match Folder::open(&dir).and_then(Import::new) {
        Ok(import) => assert!(!import.inventory.parameters.is_empty()),
        Err(error) => assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}"),
    }
}

fn run(time: Duration, seed: Option<u64>) {
    let dir = tempfile::tempdir().unwrap();
    for (parser, weights) in
        [("config", "model.safetensors"), ("index", "model-00001-of-00001.safetensors")]
    {
        let folder = dir.path().join(parser);
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(oracle("llama_gqa").join("model.safetensors"), folder.join(weights)).unwrap();
        std::fs::copy(oracle("llama_gqa").join("config.json"), folder.join("config.json")).unwrap();
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus-hf");
    fuzz(&corpus, time, seed, |parser, input| open(dir.path(), parser, input));
}

#[test]
fn configurations_and_indexes_never_panic() {
    run(Duration::from_millis(1500), Some(0x5eed));
}

#[test]
#[ignore = "long: ten minutes of mutations"]
fn configurations_and_indexes_never_panic_for_ten_minutes() {
    run(Duration::from_secs(600), None);
}
