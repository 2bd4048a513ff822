//! The fast way through a byte-level BPE with GPT-2's word pattern. The library spends most of its time finding words and
//! keeping track of where bytes came from; text repeats its words. So: find the words with a few comparisons per character,
//! look their tokens up, and ask the library only for words not seen yet. The library is the slow twin in the tests.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokenizers::{
    ModelWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, Tokenizer,
};

/// Words remembered per thread: about 10 MB.
const MAX_WORDS: usize = 1 << 16;
/// Longer words hardly ever come back.
const MAX_WORD_BYTES: usize = 48;

/// What the pattern distinguishes: `\p{L}`, `\p{N}`, `\s` and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// Encodes words of one tokenizer, for any number of threads.
#[derive(Debug)]
pub(super) struct WordEncoder {
    ascii: [Class; 128],
    /// What threads learned, while they do not use it.
    idle: Mutex<Vec<Memory>>,
}

/// What one thread has learned from the library.
#[derive(Debug, Default)]
struct Memory {
    words: HashMap<Box<str>, Box<[u32]>>,
    classes: HashMap<char, Class>,
}

impl WordEncoder {
    /// None for a tokenizer of another form: it must have GPT-2's pattern, bytes as alphabet, no normalization, no added
    /// tokens that are found in text, and no randomness.
    pub(super) fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let words = match tokenizer.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::ByteLevel(b)) => b.use_regex && !b.add_prefix_space,
            _ => false,
        };
        let model = match tokenizer.get_model() {
            ModelWrapper::BPE(bpe) => bpe.dropout.is_none(),
            _ => false,
        };
        let added = tokenizer.get_added_tokens_decoder().values().any(|token| !token.special);
        if !words || !model || added || tokenizer.get_normalizer().is_some() {
            return None;
        }
        let ascii = std::array::from_fn(|code| ask_class(tokenizer, char::from(code as u8)));
        Some(Self { ascii, idle: Mutex::default() })
    }

    /// The tokens of `text`, as `tokenizer` encodes it.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
    ) -> Result<Vec<u32>, tokenizers::Error> {
        let mut memory =
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let mut tokens = Vec::with_capacity(text.len() / 3);
        let mut rest = text;
        while !rest.is_empty() {
            let end = word_end(rest, |c| match self.ascii.get(c as usize) {
                Some(&class) => class,
                None => *memory.classes.entry(c).or_insert_with(|| ask_class(tokenizer, c)),
            });
            let (word, later) = rest.split_at(end);
            rest = later;
            if let Some(known) = memory.words.get(word) {
                tokens.extend_from_slice(known);
                continue;
            }
            let encoding = tokenizer.encode_fast(word, false)?;
            tokens.extend_from_slice(encoding.get_ids());
            if word.len() <= MAX_WORD_BYTES && memory.words.len() < MAX_WORDS {
                memory.words.insert(word.into(), encoding.get_ids().into());
            }
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        Ok(tokens)
    }
}

/// The end of the first word of `text`, which is not empty, under
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn word_end(text: &str, mut class: impl FnMut(char) -> Class) -> usize {
    if let Some(ending) = text.strip_prefix('\'') {
        for contraction in ["s", "t", "re", "ve", "m", "ll", "d"] {
            if ending.starts_with(contraction) {
                return 1 + contraction.len();
            }
        }
    }
    // One space belongs to the word behind it.
    let after_space =
        text.strip_prefix(' ').filter(|t| t.starts_with(|c| class(c) != Class::Space));
    let (space, body) = after_space.map_or((0, text), |t| (1, t));
    let kind = body.chars().next().map_or(Class::Space, &mut class);
    let run = body.find(|c| class(c) != kind).unwrap_or(body.len());
    if kind != Class::Space || run == body.len() {
        return space + run;
    }
    // Whitespace before a word: all but its last character, which the word may want; one character is taken as it is.
    let last = body[..run].char_indices().next_back().map_or(0, |(at, _)| at);
    if last > 0 { last } else { run }
}

/// The class that the library gives a character, seen from which neighbour it joins.
fn ask_class(tokenizer: &Tokenizer, character: char) -> Class {
    let joins = |neighbour: char| {
        let mut text = PreTokenizedString::from(format!("{neighbour}{character}"));
        let split = tokenizer.get_pre_tokenizer().map(|p| p.pre_tokenize(&mut text));
        matches!(split, Some(Ok(())))
            && text.get_splits(OffsetReferential::Original, OffsetType::Byte).len() == 1
    };
    [('a', Class::Letter), ('1', Class::Number), ('.', Class::Other)]
        .into_iter()
        .find_map(|(neighbour, class)| joins(neighbour).then_some(class))
        .unwrap_or(Class::Space)
}
