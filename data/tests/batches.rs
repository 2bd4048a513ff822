//! Batches against their definition, written out.

use crate::prepared;
use lampyris_data::{
    Batch, Dataset, Options, SampleId, SampleOrder, Silent, Source, Span, Split, TokenizerSpec,
    TrainingWindows, prepare,
};
use proptest::prelude::*;

const NONE: Split = Split::Hash { fraction: 0.0 };

/// The training stream of byte tokens.
fn byte_stream(documents: &[&str]) -> Vec<i64> {
    documents.iter().flat_map(|d| d.bytes().map(i64::from).chain([256])).collect()
}

fn epoch(windows: &TrainingWindows) -> Vec<SampleId> {
    (0..windows.samples()).map(|index| SampleId { epoch: 0, index }).collect()
}

#[test]
fn samples_are_windows_of_the_ring_of_documents() {
    let dir = tempfile::tempdir().unwrap();
    let documents = ["the firefly", "glows", "", "at night, é"];
    let dataset = prepared(dir.path(), &documents, TokenizerSpec::Byte, NONE);
    let stream = byte_stream(&["the firefly", "glows", "at night, é"]);
    assert_eq!(dataset.manifest().skipped.empty, 1);
    assert_eq!(dataset.manifest().training.tokens, stream.len() as u64);
    for (length, lookahead) in [(1, 0), (4, 0), (5, 2), (10, 3), (stream.len() - 1, 0)] {
        let windows = dataset.training(length, lookahead).unwrap();
        assert_eq!(windows.samples(), (stream.len() / length) as u64);
        let batch = windows.batch(&epoch(&windows));
        for row in 0..batch.rows() {
            let expected: Vec<i64> = (0..length + 1 + lookahead)
                .map(|i| stream[(row * length + i) % stream.len()])
                .collect();
            assert_eq!(batch.row(row), expected);
        }
        assert_eq!(batch.valid_targets(0), batch.rows() * length);
    }
}

#[test]
fn validation_predicts_every_token_once_and_counts_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let documents = ["abcdefgh", "éé日本"];
    let tail = Split::Tail { fraction: 0.5 };
    let dataset = prepared(dir.path(), &documents, TokenizerSpec::Byte, tail);
    // Held out: "efgh" and "日本" (the cut at 5 of 10 bytes moves back to a character).
    let text = "efgh日本";
    assert_eq!(dataset.validation_text(0), text.as_bytes());
    let stream = byte_stream(&["efgh", "日本"]);
    for length in 1..=stream.len() + 2 {
        for tokens in 0..=stream.len() {
            let windows = dataset.validation(length, tokens as u64);
            let covered = if tokens == 0 { stream.len() } else { tokens };
            assert_eq!(windows.tokens(), covered as u64);
            let expected: Vec<u8> =
                stream[..covered].iter().filter(|&&t| t < 256).map(|&t| t as u8).collect();
            assert_eq!(dataset.validation_text(tokens as u64), expected);
            assert_eq!(windows.bytes(), expected.len() as u64);
            let batch = windows.batch(0..windows.count(), 1);
            assert_eq!(predicted(&batch), stream[..covered]);
            assert_eq!(batch.row(0)[0], 256);
            for row in 1..batch.rows() {
                assert_eq!(batch.row(row)[0], batch.row(row - 1)[length], "the context goes on");
            }
        }
    }
}

/// The targets that count at depth 0, in order.
fn predicted(batch: &Batch) -> Vec<i64> {
    let valid = batch.target_valid(0);
    (0..batch.rows())
        .flat_map(|row| (0..batch.sequence_length).map(move |i| (row, i)))
        .filter(|(row, i)| valid[row * batch.sequence_length + i])
        .map(|(row, i)| batch.row(row)[i + 1])
        .collect()
}

#[test]
fn bpe_validation_text_is_what_its_tokens_decode_to() {
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<String> =
        (0..60).map(|i| format!("fn f{i}(x: u8) -> u8 {{ x + {i} }} // é🦀\n").repeat(3)).collect();
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let bpe = TokenizerSpec::Bpe { vocab_size: 320, train_bytes: 5000 };
    let dataset = prepared(dir.path(), &documents, bpe, Split::Hash { fraction: 0.2 });
    let tokenizer = dataset.tokenizer();
    let windows = dataset.validation(8, 0);
    let tokens: Vec<u32> =
        predicted(&windows.batch(0..windows.count(), 0)).iter().map(|&t| t as u32).collect();
    let text = tokenizer.decode(&tokens).unwrap();
    assert_eq!(text.as_bytes(), dataset.validation_text(0));
    let held_out: String = documents.iter().filter(|d| text.contains(**d)).copied().collect();
    assert_eq!(text, held_out, "whole documents, in order");
    assert_eq!(windows.bytes(), dataset.manifest().validation.bytes);
    for prefix in 1..=tokens.len() {
        let part = dataset.validation_text(prefix as u64);
        let decoded = tokenizer.decode(&tokens[..prefix]).unwrap();
        assert_eq!(String::from_utf8_lossy(part), decoded);
    }
    assert_eq!(dataset.manifest().training.documents + dataset.manifest().validation.documents, 60);
}

#[test]
fn tokenizers_of_words_cover_the_text_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("words.json");
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"<unk>":0,"a":1,"firefly":2,"glows":3,"</s>":9},"unk_token":"<unk>"}}"#;
    std::fs::write(&path, json).unwrap();
    let tokenizer = TokenizerSpec::File { path, end_of_document: "</s>".to_owned() };
    let dataset = prepared(
        dir.path(),
        &["firefly glows a firefly glows", "a a  a glows "],
        tokenizer,
        Split::Tail { fraction: 0.5 },
    );
    assert_eq!(dataset.manifest().vocabulary_size, 10, "the largest token counts, not the number");
    // Held out: " firefly glows" and "glows ", whose last space no token has.
    let windows = dataset.validation(4, 0);
    assert_eq!(predicted(&windows.batch(0..windows.count(), 0)), [2, 3, 9, 3, 9]);
    let covered = |tokens| String::from_utf8_lossy(dataset.validation_text(tokens)).into_owned();
    assert_eq!(covered(1), " firefly");
    assert_eq!(covered(3), " firefly glows");
    assert_eq!(covered(4), " firefly glowsglows ");
    assert_eq!(covered(0), " firefly glowsglows ");
}

#[test]
fn samples_can_be_traced_to_their_documents() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.jsonl"), "{\"t\":\"abc\"}\n\n{\"t\":\"defgh\"}\n").unwrap();
    std::fs::write(dir.path().join("b.txt"), "xyz").unwrap();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    let options = Options {
        sources: vec![
            Source::Jsonl { path: at("*.jsonl"), field: "t".to_owned() },
            Source::Text { path: at("b.txt") },
        ],
        max_bytes: None,
        validation: NONE,
        tokenizer: TokenizerSpec::Byte,
        cache_dir: dir.path().join("cache"),
    };
    let dataset = prepare(&options, &Silent).unwrap(); // abc. defgh. xyz.
    let span = |document, source, file: &str, line, tokens| Span {
        document,
        source,
        file: file.to_owned(),
        line,
        tokens,
    };
    let windows = dataset.training(6, 0).unwrap();
    assert_eq!(
        dataset.locate(windows.inputs(0)),
        [span(0, 0, "a.jsonl", Some(1), 0..4), span(1, 0, "a.jsonl", Some(3), 0..2)]
    );
    assert_eq!(
        dataset.locate(windows.inputs(1)),
        [span(1, 0, "a.jsonl", Some(3), 2..6), span(2, 1, "b.txt", None, 0..2)]
    );
    assert_eq!(dataset.locate(13..14), [span(2, 1, "b.txt", None, 3..4)]);
    assert_eq!(dataset.locate(4..4), []);
}

#[test]
fn max_bytes_takes_whole_documents_in_order() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path(), &["aaaa", "bbbb", "c"], TokenizerSpec::Byte, NONE);
    let mut options = crate::options(dir.path(), TokenizerSpec::Char, NONE);
    options.max_bytes = Some(7);
    let dataset = prepare(&options, &Silent).unwrap();
    assert_eq!(dataset.manifest().training.bytes, 4);
    assert_eq!(dataset.manifest().vocabulary_size, 2, "characters of what was taken");
}

#[test]
fn opened_again_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bpe = TokenizerSpec::Bpe { vocab_size: 300, train_bytes: 1000 };
    let made = prepared(dir.path(), &["some text, some text, some more"], bpe, NONE);
    std::fs::remove_file(dir.path().join("0000.txt")).unwrap();
    let opened = Dataset::open(made.folder()).unwrap();
    let read = |d: &Dataset| d.training(3, 1).unwrap().batch(&[SampleId { epoch: 0, index: 1 }]);
    assert_eq!(read(&opened), read(&made));
    assert_eq!(
        opened.tokenizer().encode("some").unwrap(),
        made.tokenizer().encode("some").unwrap()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_chunking_reads_the_same(
        seed: u64,
        length in 1usize..20,
        lookahead in 0usize..3,
        cuts in prop::collection::vec(1u64..9, 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let text: String = (0..30).map(|i| format!("{i} fireflies ")).collect();
        let dataset = prepared(dir.path(), &[&text, "and dark"], TokenizerSpec::Byte, NONE);
        let windows = dataset.training(length, lookahead).unwrap();
        let order = SampleOrder::new(seed, windows.samples());
        let total: u64 = cuts.iter().sum();
        let samples = |range: std::ops::Range<u64>| -> Vec<SampleId> {
            range.map(|position| order.sample_at(position)).collect()
        };
        let whole = windows.batch(&samples(0..total)).tokens;
        let mut pieces = Vec::new();
        let mut at = 0;
        for cut in cuts {
            pieces.extend(windows.batch(&samples(at..at + cut)).tokens);
            at += cut;
        }
        prop_assert_eq!(pieces, whole);
    }
}
