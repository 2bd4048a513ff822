//! Bad input, each with what the message must say.

use crate::options;
use lampyris_data::{Error, Options, Silent, Source, Split, TokenizerSpec, prepare};
use std::path::Path;

const NONE: Split = Split::Hash { fraction: 0.0 };

/// The refusal of one file of bytes under a source.
fn refusal(bytes: &[u8], source: impl Fn(String) -> Source) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("corpus");
    std::fs::write(&path, bytes).unwrap();
    let options = Options {
        sources: vec![source(path.display().to_string())],
        ..options(dir.path(), TokenizerSpec::Byte, NONE)
    };
    prepare(&options, &Silent).unwrap_err()
}

fn text(path: String) -> Source {
    Source::Text { path }
}

fn jsonl(path: String) -> Source {
    Source::Jsonl { path, field: "text".to_owned() }
}

fn write_text(folder: &Path, text: &str) {
    std::fs::write(folder.join("a.txt"), text).unwrap();
}

#[test]
fn missing_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), TokenizerSpec::Byte, NONE);
    let error = prepare(&options, &Silent).unwrap_err();
    assert!(matches!(error, Error::NoMatch { .. }));
    assert!(error.to_string().contains("*.txt"), "{error}");
    options.sources = vec![text("/nowhere/a.txt".to_owned())];
    let error = prepare(&options, &Silent).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }));
    assert!(error.to_string().starts_with("no file /nowhere/a.txt"), "{error}");
}

#[test]
fn empty_corpora() {
    for source in [text as fn(String) -> Source, jsonl] {
        let error = refusal(b"", source);
        assert!(matches!(error, Error::EmptyCorpus { files: 1 }), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    write_text(dir.path(), "too long for it");
    let mut options = options(dir.path(), TokenizerSpec::Byte, NONE);
    options.max_bytes = Some(4);
    let error = prepare(&options, &Silent).unwrap_err();
    assert!(matches!(error, Error::EmptyCorpus { files: 1 }), "{error}");
}

#[test]
fn bytes_that_are_not_utf8() {
    let error = refusal(b"caf\xE9 au lait", text);
    assert!(
        matches!(&error, Error::NotUtf8 { path, line: 1, offset: 3 } if path.ends_with("corpus")),
        "{error}"
    );
    let error = refusal(b"{\"text\":\"a\"}\n{\"text\":\"caf\xE9\"}\n", jsonl);
    assert!(matches!(error, Error::NotUtf8 { line: 2, offset: 25, .. }), "{error}");
    assert!(error.to_string().contains("corpus:2: the text is not UTF-8"), "{error}");
    let error = refusal(b"one\ntwo\ncaf\xE9", text);
    assert!(matches!(error, Error::NotUtf8 { line: 3, offset: 11, .. }), "{error}");
}

#[test]
fn packed_and_utf16_files_are_named_with_what_makes_text_of_them() {
    for (bytes, words) in [
        (&b"\x1f\x8b\x08\0more"[..], "compressed with gzip: unpack it (gunzip --keep "),
        (b"BZh91AY&SY\x90\x01", "compressed with bzip2"),
        (b"PAR1\x15\0\x15", "a Parquet file"),
        (b"\xff\xfea\0\n\0", "text in UTF-16: convert it (iconv -f UTF-16"),
    ] {
        for source in [text as fn(String) -> Source, jsonl] {
            let error = refusal(bytes, source);
            assert!(matches!(error, Error::OtherForm { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

#[test]
fn jsonl_lines_without_the_field() {
    let error = refusal(b"{\"text\":\"a\"}\n{\"txt\":\"b\"}\n", jsonl);
    assert!(matches!(&error, Error::NoField { line: 2, field, .. } if field == "text"), "{error}");
    assert!(error.to_string().contains("corpus:2: no string field `text`"), "{error}");
    let error = refusal(b"{\"text\":\"a\"}\n\n{\"text\":\n", jsonl);
    assert!(matches!(error, Error::BadJson { line: 3, .. }), "{error}");
}

#[test]
fn sequences_longer_than_the_corpus() {
    let dir = tempfile::tempdir().unwrap();
    write_text(dir.path(), "abcdefg");
    let dataset = prepare(&options(dir.path(), TokenizerSpec::Byte, NONE), &Silent).unwrap();
    assert_eq!(dataset.training(7, 0).unwrap().samples(), 1);
    for (length, lookahead) in [(8, 0), (7, 1)] {
        let error = dataset.training(length, lookahead).unwrap_err();
        assert!(matches!(error, Error::TooShort { needed: 9, tokens: 8 }), "{error}");
    }
}

#[test]
fn models_with_too_small_a_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    write_text(dir.path(), "abcdefg");
    let dataset = prepare(&options(dir.path(), TokenizerSpec::Byte, NONE), &Silent).unwrap();
    dataset.check_vocabulary(257).unwrap();
    let error = dataset.check_vocabulary(256).unwrap_err();
    assert!(matches!(error, Error::Vocabulary { tokenizer: 257, model: 256 }), "{error}");
}

#[test]
fn splits_that_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_text(dir.path(), "one document");
    let with = |validation| prepare(&options(dir.path(), TokenizerSpec::Byte, validation), &Silent);
    // Its hash falls somewhere: a tiny share takes nothing, nearly all takes everything.
    let error = with(Split::Hash { fraction: 1e-9 }).unwrap_err();
    assert!(matches!(error, Error::NoValidationText { documents: 1 }), "{error}");
    let error = with(Split::Hash { fraction: 1.0 - 1e-9 }).unwrap_err();
    assert!(matches!(error, Error::NoTrainingText { documents: 1 }), "{error}");
    let error = with(Split::Tail { fraction: 1.5 }).unwrap_err();
    assert!(matches!(error, Error::BadFraction { .. }), "{error}");
}

#[test]
fn a_tokenizer_file_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    write_text(dir.path(), "text");
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, "{\"model\": 3}").unwrap();
    let tokenizer = TokenizerSpec::File { path: path.clone(), end_of_document: "</s>".to_owned() };
    let error = prepare(&options(dir.path(), tokenizer, NONE), &Silent).unwrap_err();
    assert!(matches!(&error, Error::Tokenizer { path: p, .. } if *p == path), "{error}");
}
