//! Training a byte-level BPE vocabulary, in GPT-2's form: its word pattern, no normalization, no prefix space.

use super::hugging_face::HuggingFace;
use super::{Kind, TOKENIZER_FILE, Tokenizer};
use crate::error::Error;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder, TokenizerImpl,
};

/// Name of the end-of-document token, as in GPT-2.
pub(super) const END_OF_DOCUMENT: &str = "<|endoftext|>";
/// A pair seen once is no pattern.
const MIN_FREQUENCY: u64 = 2;

/// Trains on `sample`. The vocabulary is end of document (token 0), the 256 bytes, then merges by falling frequency; it
/// stays below `vocab_size` if the sample runs out of repeated pairs. The same sample gives the same vocabulary.
pub(crate) fn train(sample: &[String], vocab_size: usize) -> Result<Tokenizer, Error> {
    if vocab_size < 257 {
        return Err(Error::SmallVocabulary { vocab_size });
    }
    let refuse = |e: tokenizers::Error| Error::Tokenizer {
        path: TOKENIZER_FILE.into(),
        message: format!("training failed: {e}"),
    };
    let byte_level = || Some(ByteLevel::new(false, false, true));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .min_frequency(MIN_FREQUENCY)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_DOCUMENT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        ByteLevel,
        PostProcessorWrapper,
        ByteLevel,
    > = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(byte_level())
        .with_post_processor(None)
        .with_decoder(byte_level())
        .build()
        .map_err(refuse)?;
    tokenizer.train(&mut trainer, sample.iter().map(String::as_str)).map_err(refuse)?;
    let json = tokenizer.to_string(false).map_err(refuse)?;
    let inner = HuggingFace::parse(json.as_bytes(), END_OF_DOCUMENT, Path::new(TOKENIZER_FILE))?;
    Ok(Tokenizer { kind: Kind::HuggingFace(Box::new(inner)) })
}
