use super::hugging_face::cut_at_spaces;
use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

const RUST: &str = include_str!("mod.rs");

/// A small BPE, trained on this module's own text.
static BPE: LazyLock<Tokenizer> = LazyLock::new(|| train_bpe(&[RUST.repeat(3)], 400).unwrap());

fn chars_of_tests() -> Tokenizer {
    Tokenizer::char(RUST.chars().chain("é漢🦀".chars()))
}

/// A WordLevel tokenizer, whose tokens are not bytes.
fn words() -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("words.json");
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"<unk>":0,"a":1,"firefly":2,"glows":3,"</s>":4},"unk_token":"<unk>"}}"#;
    std::fs::write(&path, json).unwrap();
    let tokenizer = Tokenizer::from_file(&path, "</s>").unwrap();
    (dir, tokenizer)
}

fn json_of(tokenizer: &Tokenizer) -> &[u8] {
    let Kind::HuggingFace(inner) = &tokenizer.kind else { panic!("not of the library") };
    inner.json()
}

#[test]
fn byte_tokens_are_bytes() {
    let tokenizer = Tokenizer::byte();
    assert_eq!(tokenizer.encode("aé").unwrap(), [97, 0xC3, 0xA9]);
    assert_eq!((tokenizer.vocabulary_size(), tokenizer.end_of_document()), (257, 256));
}

#[test]
fn character_tokens_are_sorted() {
    let tokenizer = Tokenizer::char("banané".chars());
    assert_eq!(tokenizer.encode("abné").unwrap(), [0, 1, 2, 3]);
    assert_eq!((tokenizer.vocabulary_size(), tokenizer.end_of_document()), (5, 4));
    let error = tokenizer.encode("abc").unwrap_err();
    assert!(matches!(error, Error::UnknownCharacter { character: 'c' }), "{error}");
}

#[test]
fn training_is_deterministic_and_fills_the_vocabulary() {
    let again = train_bpe(&[RUST.repeat(3)], 400).unwrap();
    assert_eq!(json_of(&again), json_of(&BPE));
    assert_eq!((BPE.vocabulary_size(), BPE.end_of_document()), (400, 0));
    assert!(BPE.encode(RUST).unwrap().len() < RUST.len() / 2);
    assert!(train_bpe(&["ab".to_owned()], 400).unwrap().vocabulary_size() == 257);
    assert!(matches!(train_bpe(&[], 256), Err(Error::SmallVocabulary { vocab_size: 256 })));
}

/// A tokenizer as DeepSeek-V3's: a pattern of its own in front of the byte alphabet.
fn with_own_pattern() -> Tokenizer {
    let json = std::str::from_utf8(json_of(&BPE)).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
    json["pre_tokenizer"] = serde_json::json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": r"\p{N}{1,3}" }, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
    ] });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    Tokenizer::from_file(&path, "<|endoftext|>").unwrap()
}

#[test]
fn other_patterns_go_through_the_library() {
    let (tokenizer, text) = (with_own_pattern(), "let é = 1234567; // 🦀\n");
    let tokens = tokenizer.encode(text).unwrap();
    assert_eq!(tokens, by_library(&tokenizer, text));
    assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    assert_eq!(tokenizer.ends(text, &tokens).unwrap().last(), Some(&(text.len() as u64)));
}

#[test]
fn a_spelled_end_of_document_is_text() {
    let text = "before <|endoftext|> after";
    let tokens = BPE.encode(text).unwrap();
    assert!(!tokens.contains(&BPE.end_of_document()));
    assert_eq!(BPE.decode(&tokens).unwrap(), text);
    let (_dir, words) = words();
    assert!(!words.encode("a </s> glows").unwrap().contains(&words.end_of_document()));
}

#[test]
fn saved_tokenizers_come_back() {
    let text = "fn main() { }\n";
    for tokenizer in [&Tokenizer::byte(), &chars_of_tests(), &*BPE] {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        for file in tokenizer.files() {
            assert!(dir.path().join(file).is_file());
        }
        let loaded = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(loaded.vocabulary_size(), tokenizer.vocabulary_size());
        assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
}

#[test]
fn bad_tokenizer_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    assert!(matches!(Tokenizer::from_file(&path, "x"), Err(Error::MissingFile { .. })));
    std::fs::write(&path, "{}").unwrap();
    assert!(matches!(Tokenizer::from_file(&path, "x"), Err(Error::Tokenizer { .. })));
    std::fs::write(&path, json_of(&BPE)).unwrap();
    let error = Tokenizer::from_file(&path, "</s>").unwrap_err();
    assert!(matches!(&error, Error::NoEndOfDocument { token, .. } if token == "</s>"), "{error}");
}

#[test]
fn a_model_must_hold_the_vocabulary() {
    assert!(BPE.check_vocabulary(400).is_ok());
    let error = BPE.check_vocabulary(399).unwrap_err();
    assert!(matches!(error, Error::Vocabulary { tokenizer: 400, model: 399 }), "{error}");
}

#[test]
fn streams_hold_back_incomplete_characters() {
    let tokenizer = Tokenizer::byte();
    let mut decoder = tokenizer.decoder();
    let crab = "🦀".as_bytes(); // f0 9f a6 80
    let shown: Vec<String> = [b'a', crab[0], crab[1], crab[2], crab[3], crab[0], b'b', 0x80]
        .iter()
        .map(|&byte| decoder.push(u32::from(byte)).unwrap())
        .collect();
    assert_eq!(shown, ["a", "", "", "", "🦀", "", "\u{FFFD}b", "\u{FFFD}"]);
    assert_eq!(decoder.push(256).unwrap(), "");
    assert_eq!(decoder.push(1000).unwrap(), "\u{FFFD}");
    assert_eq!(decoder.push(0xE6).unwrap(), "");
    assert_eq!(decoder.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn tokenizers_of_words_stream_and_know_their_ends() {
    let (_dir, words) = words();
    let text = "a firefly  glows ";
    let tokens = words.encode(text).unwrap();
    assert_eq!(tokens, [1, 2, 3]);
    assert_eq!(words.ends(text, &tokens).unwrap(), [1, 9, 17]);
    assert_eq!(words.decode(&tokens).unwrap(), "a firefly glows");
}

#[test]
fn long_texts_are_cut_where_it_does_not_matter() {
    let text = format!("{RUST}é  x\n\n  y's don't 漢 字 ");
    for bytes in [1, 7, 100, 1000] {
        let pieces = cut_at_spaces(&text, bytes);
        assert!(pieces.len() > 2 && pieces.concat() == text);
        let tokens: Vec<u32> = pieces.iter().flat_map(|p| BPE.encode(p).unwrap()).collect();
        assert_eq!(tokens, BPE.encode(&text).unwrap(), "pieces of {bytes} bytes");
    }
}

#[test]
fn tokens_beyond_any_vocabulary_are_refused_before_a_table_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    for token in ["536870912", "4294967295"] {
        let json = std::fs::read_to_string(words().0.path().join("words.json")).unwrap();
        std::fs::write(&path, json.replace("\"glows\":3", &format!("\"glows\":{token}"))).unwrap();
        let error = Tokenizer::from_file(&path, "</s>").unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("\"glows\" has the number {token}")),
            "{error}"
        );
    }
}

#[test]
fn pipes_and_devices_are_no_tokenizers() {
    let error = Tokenizer::from_file(Path::new("/dev/zero"), "x").unwrap_err();
    assert!(matches!(error, Error::NotRegular { .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let error = Tokenizer::from_file(&path, "x").unwrap_err();
    assert!(matches!(error, Error::NotRegular { .. }), "{error}");
}

/// Files for `AutoTokenizer`, read back by the library on which it stands.
fn published(tokenizer: &Tokenizer) -> (serde_json::Value, tokenizers::Tokenizer) {
    let files = tokenizer.hugging_face_files(512);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]);
    let config = serde_json::from_slice(&files[1].1).unwrap();
    (config, tokenizers::Tokenizer::from_bytes(&files[0].1).unwrap())
}

#[test]
fn published_tokenizers_give_the_same_tokens() {
    let rust = RUST.replace("<|endoftext|>", "");
    let texts = [&*rust, "", " é漢🦀\r\n\t fn  main() {}\u{0}", "'s don't 1234"];
    let characters = Tokenizer::char(texts.concat().chars());
    for ours in [&Tokenizer::byte(), &characters, &*BPE, &with_own_pattern()] {
        let (config, theirs) = published(ours);
        for text in texts {
            let tokens = ours.encode(text).unwrap();
            // As AutoTokenizer does: with whatever the post-processor adds.
            assert_eq!(theirs.encode(text, true).unwrap().get_ids(), tokens, "{text:?}");
            assert_eq!(theirs.decode(&tokens, true).unwrap(), text);
        }
        assert_eq!(theirs.get_vocab_size(true), ours.vocabulary_size());
        assert_eq!(theirs.token_to_id("<|endoftext|>"), Some(ours.end_of_document()));
        assert_eq!(theirs.decode(&[ours.end_of_document()], true).unwrap(), "");
        assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
        assert_eq!(config["eos_token"], "<|endoftext|>");
        assert_eq!(config["bos_token"], serde_json::Value::Null);
        assert_eq!(config["model_max_length"], 512);
        assert_eq!(config["clean_up_tokenization_spaces"], false);
    }
}

/// As of published models: a token is put in front, batches are padded, what is unknown has a token.
#[test]
fn what_a_loaded_tokenizer_adds_is_not_published() {
    let (dir, _) = words();
    let path = dir.path().join("words.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let special = |id: &str| serde_json::json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let sequence = serde_json::json!({ "Sequence": { "id": "A", "type_id": 0 } });
    json["post_processor"] = serde_json::json!({ "type": "TemplateProcessing",
        "single": [special("a"), sequence], "pair": [sequence, sequence],
        "special_tokens": { "a": { "id": "a", "ids": [1], "tokens": ["a"] } } });
    json["padding"] = serde_json::json!({ "strategy": { "Fixed": 8 }, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>" });
    std::fs::write(&path, json.to_string()).unwrap();
    let tokenizer = Tokenizer::from_file(&path, "</s>").unwrap();
    assert_eq!(tokenizer.encode("firefly").unwrap(), [2]);
    let (config, theirs) = published(&tokenizer);
    assert_eq!(theirs.encode("firefly", true).unwrap().get_ids(), [2]);
    let names = [&config["eos_token"], &config["unk_token"], &config["pad_token"]];
    assert_eq!(names, ["</s>", "<unk>", "<unk>"]);
    assert_eq!(config["added_tokens_decoder"]["4"]["content"], "</s>");
}

/// What the library itself makes of a text.
fn by_library(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let Kind::HuggingFace(inner) = &tokenizer.kind else { panic!("not of the library") };
    inner.encode_by_library(text).unwrap()
}

#[test]
fn every_character_has_the_class_that_the_library_gives_it() {
    // Between a letter, a digit and a space each class of character gives other words.
    let characters = (0..0x3100).chain(0xA000..0xA800).chain(0x1F000..0x1F700);
    let text: String =
        characters.filter_map(char::from_u32).map(|c| format!("a{c}1{c}.{c} {c}{c} b")).collect();
    assert_eq!(BPE.encode(&text).unwrap(), by_library(&BPE, &text));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_fast_way_is_the_librarys_way(
        text in r"([ \n\t'a-zA-Z0-9_.,(){}éß漢١🦀\u{A0}\u{85}\u{300}\u{200B}]|'s|'re| {2,4}|\r\n){0,40}"
    ) {
        prop_assert_eq!(BPE.encode(&text).unwrap(), by_library(&BPE, &text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn decoding_undoes_encoding(text in r"[ a-z\n\té漢🦀<|>_(){}'0-9\u{0}\u{300}]{0,60}") {
        for tokenizer in [&Tokenizer::byte(), &*BPE] {
            let tokens = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&tokens).unwrap(), text.as_str());
            let ends = tokenizer.ends(&text, &tokens).unwrap();
            prop_assert_eq!(ends.len(), tokens.len());
            prop_assert_eq!(ends.last().copied().unwrap_or(0), text.len() as u64);
        }
        let chars = Tokenizer::char(text.chars());
        prop_assert_eq!(chars.decode(&chars.encode(&text).unwrap()).unwrap(), text.as_str());
    }

    #[test]
    fn streaming_shows_what_lossy_decoding_shows(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let tokens: Vec<u32> = bytes.iter().map(|&b| u32::from(b)).collect();
        prop_assert_eq!(Tokenizer::byte().decode(&tokens).unwrap(), String::from_utf8_lossy(&bytes));
    }
}
