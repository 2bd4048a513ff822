//! A tokenizer of the Hugging Face `tokenizers` crate.

use super::stream::LibraryState;
use super::words::WordEncoder;
use crate::error::Error;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, DecoderWrapper, Tokenizer};

/// Longer texts are cut, where cutting changes nothing, and encoded on all cores.
const PIECE_BYTES: usize = 1 << 20;

/// The largest token that is read: twenty times the largest published vocabularies; a table of all takes 64 MiB.
const MAX_TOKEN: u32 = (1 << 22) - 1;

#[derive(Debug)]
pub(super) struct HuggingFace {
    tokenizer: Tokenizer,
    path: PathBuf,
    json: Vec<u8>,
    end_of_document: u32,
    end_of_document_text: String,
    /// For each token its bytes, where the text is the concatenation of its tokens' bytes (byte-level BPE).
    bytes: Option<Vec<Box<[u8]>>>,
    vocabulary_size: usize,
    /// For byte-level BPE of GPT-2's form.
    words: Option<WordEncoder>,
}

impl HuggingFace {
    /// From the contents of a `tokenizer.json`; `path` is for messages.
    pub(super) fn parse(json: &[u8], end_of_document: &str, path: &Path) -> Result<Self, Error> {
        let refuse = |message: String| Error::Tokenizer { path: path.to_owned(), message };
        let mut tokenizer = from_bytes(json).map_err(refuse)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        let Some(id) = tokenizer.token_to_id(end_of_document) else {
            let token = end_of_document.to_owned();
            return Err(Error::NoEndOfDocument { path: path.to_owned(), token });
        };
        // Special tokens spelled in a text are text.
        tokenizer
            .add_special_tokens([AddedToken::from(end_of_document, true)])
            .map_err(|e| refuse(e.to_string()))?;
        tokenizer.set_encode_special_tokens(true);
        let largest = largest_token(&tokenizer).map_err(refuse)?;
        Ok(Self {
            bytes: token_bytes(&tokenizer, largest),
            path: path.to_owned(),
            json: json.to_vec(),
            end_of_document: id,
            end_of_document_text: end_of_document.to_owned(),
            vocabulary_size: largest as usize + 1,
            words: WordEncoder::new(&tokenizer),
            tokenizer,
        })
    }

    pub(super) fn json(&self) -> &[u8] {
        &self.json
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    pub(super) fn end_of_document(&self) -> u32 {
        self.end_of_document
    }

    pub(super) fn end_of_document_text(&self) -> &str {
        &self.end_of_document_text
    }

    /// The bytes of a token, where tokens are bytes.
    pub(super) fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.bytes.as_ref().map(|bytes| &*bytes[token as usize])
    }

    /// The bytes of each token, where tokens are bytes.
    pub(super) fn token_lengths(&self, tokens: &[u32]) -> Option<Vec<usize>> {
        let bytes = self.bytes.as_ref()?;
        Some(tokens.iter().map(|&token| bytes[token as usize].len()).collect())
    }

    /// The tokens of `text`.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let Some(words) = &self.words else { return self.encode_by_library(text) };
        let pieces: Vec<Vec<u32>> = cut_at_spaces(text, PIECE_BYTES)
            .into_par_iter()
            .map(|piece| words.encode(&self.tokenizer, piece).map_err(self.refuse()))
            .collect::<Result<_, _>>()?;
        Ok(pieces.concat())
    }

    /// The same, slower.
    pub(super) fn encode_by_library(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(self.refuse())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The end of each token of `text` as the library reports it. What normalization drops at the end belongs to the last.
    pub(super) fn ends_by_offsets(&self, text: &str) -> Result<Vec<u64>, Error> {
        let encoding = self.tokenizer.encode(text, false).map_err(self.refuse())?;
        let mut reached = 0;
        let mut ends: Vec<u64> = encoding
            .get_offsets()
            .iter()
            .map(|&(_, end)| {
                reached = reached.max(end as u64);
                reached
            })
            .collect();
        if let Some(last) = ends.last_mut() {
            *last = text.len() as u64;
        }
        Ok(ends)
    }

    /// Decodes one more token through the library's own stream.
    pub(super) fn step(&self, token: u32, state: &mut LibraryState) -> Result<String, Error> {
        let LibraryState { ids, prefix, prefix_index } = state;
        let text = tokenizers::step_decode_stream(
            &self.tokenizer,
            vec![token],
            true,
            ids,
            prefix,
            prefix_index,
        );
        Ok(text.map_err(self.refuse())?.unwrap_or_default())
    }

    /// What the library still held back.
    pub(super) fn rest(&self, state: &LibraryState) -> Result<String, Error> {
        let text = self.tokenizer.decode(&state.ids, true).map_err(self.refuse())?;
        Ok(text.strip_prefix(&state.prefix).unwrap_or_default().to_owned())
    }

    fn refuse(&self) -> impl FnOnce(tokenizers::Error) -> Error {
        let path = self.path.clone();
        move |e| Error::Tokenizer { path, message: e.to_string() }
    }
}

/// Parses, on a library that panics on some files that are JSON but no tokenizers.
fn from_bytes(json: &[u8]) -> Result<Tokenizer, String> {
    let parsed = std::panic::catch_unwind(|| Tokenizer::from_bytes(json));
    match parsed {
        Ok(parsed) => parsed.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library cannot read it".to_owned()),
    }
}

/// The largest token, which tables of all tokens must reach.
fn largest_token(tokenizer: &Tokenizer) -> Result<u32, String> {
    let vocabulary = tokenizer.get_vocab(true);
    match vocabulary.into_iter().max_by_key(|(_, token)| *token) {
        Some((text, token)) if token > MAX_TOKEN => Err(format!(
            "its token {text:?} has the number {token}; numbers count tokens, and up to {MAX_TOKEN} can be read"
        )),
        Some((_, token)) => Ok(token),
        None => Ok(0),
    }
}

/// The bytes of every token up to `largest`, if the tokenizer's decoder is the byte-level one. Added tokens are themselves.
fn token_bytes(tokenizer: &Tokenizer, largest: u32) -> Option<Vec<Box<[u8]>>> {
    if !matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
        return None;
    }
    let added = tokenizer.get_added_tokens_decoder();
    let of = |id: u32| -> Box<[u8]> {
        if let Some(token) = added.get(&id) {
            return token.content.as_bytes().into();
        }
        let token = tokenizer.id_to_token(id).unwrap_or_default();
        // A token with a character outside the alphabet stands for itself, as in the library's decoder.
        let bytes: Option<Box<[u8]>> = token.chars().map(byte_of).collect();
        bytes.unwrap_or_else(|| token.as_bytes().into())
    };
    Some((0..=largest).map(of).collect())
}

/// The byte that a character of GPT-2's byte alphabet stands for: printable bytes are their own Latin-1 character, the
/// others follow from U+0100 in rising order.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u8::try_from(character) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => {
            let rank = (character as usize).checked_sub(0x100)?;
            (0..=u8::MAX).filter(|&b| !printable(b)).nth(rank)
        }
    }
}

/// Cuts `text` before spaces that follow an ASCII non-space, into pieces of about `bytes` bytes. GPT-2's pattern matches
/// from left to right, looks ahead only inside whitespace and lets no match go on from a non-space to a space: so the words
/// of the pieces are the words of the text.
pub(super) fn cut_at_spaces(text: &str, bytes: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > bytes {
        let found = rest.as_bytes()[bytes - 1..]
            .windows(2)
            .position(|pair| pair[0].is_ascii_graphic() && pair[1] == b' ');
        let Some(found) = found else { break };
        let (piece, tail) = rest.split_at(bytes + found);
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}
