//! Decoding tokens one by one, for text that appears while it is generated.

use super::{Kind, Tokenizer};
use crate::error::Error;

/// Holds back an incomplete character until the token that completes it arrives.
#[derive(Debug)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes not yet shown; always the beginning of one character.
    bytes: Vec<u8>,
    /// For tokenizers whose tokens are not simply bytes.
    library: LibraryState,
}

/// The state that `tokenizers::step_decode_stream` keeps between steps.
#[derive(Debug, Default)]
pub(super) struct LibraryState {
    pub(super) ids: Vec<u32>,
    pub(super) prefix: String,
    pub(super) prefix_index: usize,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, bytes: Vec::new(), library: LibraryState::default() }
    }

    /// The text that `token` completes, often a word, sometimes nothing. A token outside the vocabulary gives U+FFFD.
    pub fn push(&mut self, token: u32) -> Result<String, Error> {
        if token == self.tokenizer.end_of_document() {
            return Ok(String::new());
        }
        if token as usize >= self.tokenizer.vocabulary_size() {
            return Ok(char::REPLACEMENT_CHARACTER.to_string());
        }
        match &self.tokenizer.kind {
            Kind::Byte => self.bytes.push(token as u8),
            Kind::Char(characters) => return Ok(characters[token as usize].to_string()),
            Kind::HuggingFace(inner) => match inner.token_bytes(token) {
                Some(bytes) => self.bytes.extend_from_slice(bytes),
                None => return inner.step(token, &mut self.library),
            },
        }
        Ok(self.complete_characters())
    }

    /// What is still held back, as far as it is text.
    pub fn finish(self) -> Result<String, Error> {
        match &self.tokenizer.kind {
            Kind::HuggingFace(inner) if !self.library.ids.is_empty() => inner.rest(&self.library),
            _ => Ok(String::from_utf8_lossy(&self.bytes).into_owned()),
        }
    }

    /// Takes all complete characters out of `bytes`, with U+FFFD for what can never become one.
    fn complete_characters(&mut self) -> String {
        let mut text = String::new();
        let mut kept = 0;
        let mut chunks = self.bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_beginning(invalid) {
                kept = invalid.len();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.bytes.drain(..self.bytes.len() - kept);
        text
    }
}

/// Whether these bytes are the beginning of a character, lacking more.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
