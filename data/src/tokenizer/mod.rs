//! Text to tokens and back.
//!
//! Encoding never produces the end-of-document token from text: a document that spells `<|endoftext|>` is encoded as the
//! characters it has. No token is added at the beginning or the end.

mod bpe;
mod hugging_face;
mod publish;
mod stream;
mod words;

pub(crate) use bpe::train as train_bpe;
pub use stream::StreamDecoder;

use crate::error::Error;
use crate::regular::read_regular;
use hugging_face::HuggingFace;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The kind of a saved tokenizer and what its `tokenizer.json` does not say.
const VOCABULARY_FILE: &str = "vocabulary.json";
/// The Hugging Face file, for BPE and loaded tokenizers.
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";

/// The largest `tokenizer.json` that is read: ten times the largest published ones.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// A tokenizer. Read-only and shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Token = byte, then end of document.
    Byte,
    /// Token = place in this sorted list, then end of document.
    Char(Vec<char>),
    /// The `tokenizers` crate.
    HuggingFace(Box<HuggingFace>),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Saved {
    Byte,
    Char { characters: String },
    HuggingFace { end_of_document: String },
}

impl Tokenizer {
    /// Token = byte value; end of document = 256.
    pub fn byte() -> Self {
        Self { kind: Kind::Byte }
    }

    /// Token = index among `characters`, sorted; end of document is one more.
    pub fn char(characters: impl IntoIterator<Item = char>) -> Self {
        let mut characters: Vec<char> = characters.into_iter().collect();
        characters.sort_unstable();
        characters.dedup();
        Self { kind: Kind::Char(characters) }
    }

    /// A Hugging Face `tokenizer.json` in which `end_of_document` ends a document.
    pub fn from_file(path: &Path, end_of_document: &str) -> Result<Self, Error> {
        let json = read_regular(path, MAX_TOKENIZER_BYTES)?;
        let inner = HuggingFace::parse(&json, end_of_document, path)?;
        Ok(Self { kind: Kind::HuggingFace(Box::new(inner)) })
    }

    /// Tokens that exist: every token is below this. A model's vocabulary may be larger, not smaller.
    pub fn vocabulary_size(&self) -> usize {
        match &self.kind {
            Kind::Byte => 257,
            Kind::Char(characters) => characters.len() + 1,
            Kind::HuggingFace(inner) => inner.vocabulary_size(),
        }
    }

    /// The token that ends every document.
    pub fn end_of_document(&self) -> u32 {
        match &self.kind {
            Kind::Byte => 256,
            Kind::Char(characters) => characters.len() as u32,
            Kind::HuggingFace(inner) => inner.end_of_document(),
        }
    }

    /// Refuses a model whose vocabulary cannot hold every token.
    pub fn check_vocabulary(&self, model: usize) -> Result<(), Error> {
        let tokenizer = self.vocabulary_size();
        if tokenizer <= model { Ok(()) } else { Err(Error::Vocabulary { tokenizer, model }) }
    }

    /// The tokens of `text`, without end of document.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        match &self.kind {
            Kind::Byte => Ok(text.bytes().map(u32::from).collect()),
            Kind::Char(characters) => text
                .chars()
                .map(|character| match characters.binary_search(&character) {
                    Ok(token) => Ok(token as u32),
                    Err(_) => Err(Error::UnknownCharacter { character }),
                })
                .collect(),
            Kind::HuggingFace(inner) => inner.encode(text),
        }
    }

    /// For each of the `tokens` that `text` was encoded to, the bytes of `text` up to its end. A token that ends inside a
    /// character ends there where tokens are bytes, and at the character's end in other tokenizers.
    pub(crate) fn ends(&self, text: &str, tokens: &[u32]) -> Result<Vec<u64>, Error> {
        let mut at = 0;
        let mut ends = |lengths: &mut dyn Iterator<Item = usize>| -> Vec<u64> {
            lengths
                .map(|length| {
                    at += length as u64;
                    at
                })
                .collect()
        };
        Ok(match &self.kind {
            Kind::Byte => ends(&mut text.bytes().map(|_| 1)),
            Kind::Char(_) => ends(&mut text.chars().map(char::len_utf8)),
            Kind::HuggingFace(inner) => match inner.token_lengths(tokens) {
                Some(lengths) if lengths.iter().sum::<usize>() == text.len() => {
                    ends(&mut lengths.into_iter())
                }
                _ => inner.ends_by_offsets(text)?,
            },
        })
    }

    /// The text of `tokens`; end-of-document tokens give nothing, bytes that are no UTF-8 give U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        let mut decoder = self.decoder();
        let mut text = String::new();
        for &token in tokens {
            text.push_str(&decoder.push(token)?);
        }
        text.push_str(&decoder.finish()?);
        Ok(text)
    }

    /// Decodes tokens as they come.
    pub fn decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Writes the tokenizer into `folder`, for [`Tokenizer::load`].
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let saved = match &self.kind {
            Kind::Byte => Saved::Byte,
            Kind::Char(characters) => Saved::Char { characters: characters.iter().collect() },
            Kind::HuggingFace(inner) => {
                let path = folder.join(TOKENIZER_FILE);
                std::fs::write(&path, inner.json()).map_err(Error::write(&path))?;
                Saved::HuggingFace { end_of_document: inner.end_of_document_text().to_owned() }
            }
        };
        let path = folder.join(VOCABULARY_FILE);
        let json = serde_json::to_vec(&saved).expect("strings become JSON");
        std::fs::write(&path, json).map_err(Error::write(&path))
    }

    /// Reads what [`Tokenizer::save`] wrote.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(VOCABULARY_FILE);
        let json = read_regular(&path, MAX_TOKENIZER_BYTES)?;
        let saved =
            serde_json::from_slice(&json).map_err(|e| Error::corrupt(&path, e.to_string()))?;
        match saved {
            Saved::Byte => Ok(Self::byte()),
            Saved::Char { characters } => Ok(Self::char(characters.chars())),
            Saved::HuggingFace { end_of_document } => {
                Self::from_file(&folder.join(TOKENIZER_FILE), &end_of_document)
            }
        }
    }

    /// The names of the files that `save` writes.
    pub(crate) fn files(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::HuggingFace(_) => &[VOCABULARY_FILE, TOKENIZER_FILE],
            Kind::Byte | Kind::Char(_) => &[VOCABULARY_FILE],
        }
    }
}

#[cfg(test)]
mod tests;
