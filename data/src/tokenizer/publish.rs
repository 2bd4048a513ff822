//! A tokenizer as the files of a Hugging Face folder, so that `AutoTokenizer` of transformers gives the tokens that the model
//! was trained on: as here, none is added before or behind a text.
//!
//! One difference is theirs: transformers takes an end of document that is spelled in a text for the token, unless it is
//! called with `split_special_tokens=True`; here it is text.

use super::bpe::END_OF_DOCUMENT;
use super::hugging_face::byte_of;
use super::{Kind, TOKENIZER_FILE, Tokenizer};
use serde_json::{Map, Value, json};

impl Tokenizer {
    /// Names and contents: `tokenizer.json`, and what transformers wants beside it. `max_length` is the longest sequence
    /// that the model is meant for, in tokens.
    pub fn hugging_face_files(&self, max_length: usize) -> Vec<(String, Vec<u8>)> {
        let tokenizer = self.published();
        let end = self.end_of_document_text();
        let mut special = Map::new();
        special.insert("eos_token".to_owned(), json!(end));
        if let Some(token) = unknown_token(&tokenizer["model"]) {
            special.insert("unk_token".to_owned(), json!(token));
        }
        if let Some(token) = self.padding_token() {
            special.insert("pad_token".to_owned(), json!(token));
        }
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": false,
            "add_bos_token": false,
            "add_eos_token": false,
            "bos_token": null,
            "pad_token": null,
            "unk_token": null,
            "added_tokens_decoder": {
                self.end_of_document().to_string(): added_token(end),
            },
        });
        for (name, token) in &special {
            config[name] = token.clone();
        }
        let file =
            |name: &str, value: &Value| (name.to_owned(), format!("{value:#}\n").into_bytes());
        vec![
            file(TOKENIZER_FILE, &tokenizer),
            file("tokenizer_config.json", &config),
            file("special_tokens_map.json", &Value::Object(special)),
        ]
    }

    /// The token that ends a document, in words.
    fn end_of_document_text(&self) -> &str {
        match &self.kind {
            Kind::HuggingFace(inner) => inner.end_of_document_text(),
            Kind::Byte | Kind::Char(_) => END_OF_DOCUMENT,
        }
    }

    /// The `tokenizer.json` that gives our tokens.
    fn published(&self) -> Value {
        match &self.kind {
            Kind::Byte => pieces(
                byte_alphabet().map(|(character, byte)| (character, u32::from(byte))),
                json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true }),
                json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true }),
                self.end_of_document(),
            ),
            Kind::Char(characters) => pieces(
                characters.iter().copied().zip(0..),
                Value::Null,
                json!({ "type": "Fuse" }),
                self.end_of_document(),
            ),
            Kind::HuggingFace(inner) => {
                let mut json = parsed(inner.json());
                json["post_processor"] = without_added_tokens(json["post_processor"].take());
                json["padding"] = Value::Null;
                json["truncation"] = Value::Null;
                json
            }
        }
    }

    /// The token that a `tokenizer.json` says it pads with.
    fn padding_token(&self) -> Option<String> {
        let Kind::HuggingFace(inner) = &self.kind else { return None };
        parsed(inner.json())["padding"]["pad_token"].as_str().map(str::to_owned)
    }
}

fn parsed(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("it was parsed when the tokenizer was made")
}

/// A BPE without merges: every piece is a token.
fn pieces(
    vocabulary: impl Iterator<Item = (char, u32)>,
    pre_tokenizer: Value,
    decoder: Value,
    end_of_document: u32,
) -> Value {
    let vocabulary: Map<String, Value> =
        vocabulary.map(|(character, token)| (character.to_string(), json!(token))).collect();
    let mut end = added_token(END_OF_DOCUMENT);
    end["id"] = json!(end_of_document);
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [end],
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": [],
        },
    })
}

fn added_token(content: &str) -> Value {
    json!({ "content": content, "lstrip": false, "normalized": false, "rstrip": false,
        "single_word": false, "special": true })
}

/// The characters that stand for bytes in GPT-2's alphabet, with their bytes.
fn byte_alphabet() -> impl Iterator<Item = (char, u8)> {
    // 256 characters, the last of which is U+0143.
    ('\0'..='\u{143}').filter_map(|character| byte_of(character).map(|byte| (character, byte)))
}

/// A post-processor without those that put tokens before or behind a text.
fn without_added_tokens(processor: Value) -> Value {
    match processor["type"].as_str() {
        Some("ByteLevel") => processor,
        Some("Sequence") => {
            let kept = processor["processors"].as_array().into_iter().flatten().cloned();
            let kept: Vec<Value> =
                kept.map(without_added_tokens).filter(|kept| !kept.is_null()).collect();
            if kept.is_empty() {
                Value::Null
            } else {
                json!({ "type": "Sequence", "processors": kept })
            }
        }
        _ => Value::Null,
    }
}

/// The token that a model gives for what it does not know: a name, or in Unigram a place in the vocabulary.
fn unknown_token(model: &Value) -> Option<String> {
    let by_name = model["unk_token"].as_str();
    let by_place = || {
        let place = usize::try_from(model["unk_id"].as_u64()?).ok()?;
        model["vocab"].get(place)?.get(0)?.as_str()
    };
    by_name.or_else(by_place).map(str::to_owned)
}
