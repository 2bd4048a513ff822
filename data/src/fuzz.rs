//! Fuzzing of what this crate reads from disks: text, JSONL, tokenizers, and prepared folders whose checksums fit.

use crate::manifest::FileSum;
use crate::source::{self, Corpus};
use crate::{Dataset, Manifest, Options, Silent, Source, Split, Tokenizer, TokenizerSpec, prepare};
use lampyris_fuzz::fuzz;
use std::path::Path;
use std::time::Duration;

/// A prepared folder, as it was made.
struct Prepared {
    dir: tempfile::TempDir,
    options: Options,
    dataset: Dataset,
}

impl Prepared {
    fn new() -> Prepared {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..9 {
            let path = dir.path().join(format!("{i}.txt"));
            std::fs::write(path, format!("document {i} é\n").repeat(i + 1)).unwrap();
        }
        let options = Options {
            sources: vec![Source::Text { path: format!("{}/*.txt", dir.path().display()) }],
            max_bytes: None,
            validation: Split::Tail { fraction: 0.2 },
            tokenizer: TokenizerSpec::Byte,
            cache_dir: dir.path().join("cache"),
        };
        let dataset = prepare(&options, &Silent).unwrap();
        Prepared { dir, options, dataset }
    }

    /// Opens a folder with this manifest, sealed, and with this file in place of its own, and reads all of it.
    fn open(&self, manifest: Manifest, file: Option<(&str, &[u8])>) {
        let folder = self.dataset.folder();
        let original = self.dataset.manifest().clone();
        let kept = file.map(|(name, contents)| {
            let path = folder.join(name);
            let kept = std::fs::read(&path).unwrap();
            // The map of the folder's own file stays: it is replaced, not written.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, contents).unwrap();
            (path, kept)
        });
        manifest.save(folder).unwrap();
        let opened = Dataset::open(folder).and_then(|d| d.verify(&Silent).map(|()| d));
        if let Ok(dataset) = &opened {
            read_all(dataset);
        }
        original.save(folder).unwrap();
        if let Some((path, kept)) = kept {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(path, kept).unwrap();
        }
    }
}

fn read_all(dataset: &Dataset) {
    let tokens = dataset.manifest().training.tokens;
    dataset.locate(0..tokens);
    if let Ok(windows) = dataset.training(8, 1) {
        let last = crate::SampleId { epoch: 0, index: windows.samples() - 1 };
        windows.batch(&[last]);
    }
    let held_out = dataset.validation(8, 0);
    held_out.batch(0..held_out.count(), 0);
    dataset.validation_text(0);
}

/// Reads a file of bytes as a source.
fn read(dir: &Path, input: &[u8], source: impl Fn(String) -> Source) {
    let path = dir.join("input");
    std::fs::write(&path, input).unwrap();
    let listed = source::list(&[source(path.display().to_string())]).unwrap();
    let corpus = Corpus { files: &listed.files, limit: u64::MAX };
    let mut documents = 0;
    let visited = corpus.visit(
        |document| {
            assert!(!document.text.is_empty() && document.line <= 1 + input.len() as u64);
            Ok(())
        },
        |_, read| {
            assert!(read <= input.len() as u64);
            documents += 1;
            Ok(true)
        },
    );
    if let Err(error) = visited {
        assert!(error.to_string().contains("input"), "{error}");
    }
}

fn parse(prepared: &Prepared, parser: &str, input: &[u8]) {
    let dir = prepared.dir.path();
    match parser {
        "text" => read(dir, input, |path| Source::Text { path }),
        "jsonl" => read(dir, input, |path| Source::Jsonl { path, field: "text".to_owned() }),
        "tokenizer" => {
            let path = dir.join("tokenizer.json");
            std::fs::write(&path, input).unwrap();
            if let Ok(tokenizer) = Tokenizer::from_file(&path, "<|endoftext|>") {
                assert!((tokenizer.end_of_document() as usize) < tokenizer.vocabulary_size());
                tokenizer.hugging_face_files(8);
            }
        }
        "vocabulary" => {
            std::fs::write(dir.join("vocabulary.json"), input).unwrap();
            if let Ok(tokenizer) = Tokenizer::load(dir) {
                assert!((tokenizer.end_of_document() as usize) < tokenizer.vocabulary_size());
            }
        }
        "manifest" => {
            // What is equal in every folder is in the corpus; the rest is of this one.
            let Ok(mut manifest) = serde_json::from_slice::<Manifest>(input) else { return };
            manifest.files.clone_from(&prepared.dataset.manifest().files);
            prepared.open(manifest, None);
        }
        "index" => {
            let mut manifest = prepared.dataset.manifest().clone();
            let name = "training.documents";
            manifest.files.insert(name.to_owned(), FileSum::of(input));
            manifest.training.documents = input.len() as u64 / 32;
            prepared.open(manifest, Some((name, input)));
        }
        other => panic!("no parser {other}: corpus files are named PARSER-anything"),
    }
}

fn run(time: Duration, seed: Option<u64>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let prepared = Prepared::new();
    assert_eq!(prepared.options.cache_dir.read_dir().unwrap().count(), 3);
    fuzz(&folder, time, seed, |parser, input| parse(&prepared, parser, input));
}

#[test]
fn what_lies_on_disks_never_panics() {
    run(Duration::from_millis(1500), Some(0x5eed));
}

#[test]
#[ignore = "long: ten minutes of mutations"]
fn what_lies_on_disks_never_panics_for_ten_minutes() {
    run(Duration::from_secs(600), None);
}
