//! Text to token shards to batches: deterministic order, a cursor that is one number.
//!
//! [`prepare`] turns text sources into a folder of memory-mapped token shards, once; [`Dataset::open`] reads such a
//! folder in a rank, without the sources. Training text is one ring of tokens, every document followed by the
//! end-of-document token; [`TrainingWindows`] cuts it into samples and [`SampleOrder`] says which sample stands at which
//! position of a run, so that "samples consumed" is the whole state of the reader, for any number of ranks.
//! [`ValidationWindows`] predicts every held-out token exactly once, so that bits per byte are exact.
//!
//! The path of a byte: `source` (files, documents) -> `split` (training or held out) -> `tokenizer` -> `shard` (files of
//! tokens) -> `window` (batches). `prepare` is the loop around it, `scan` the first reading, which finds the fingerprint.
//!
//! What it does not do: print (see [`Progress`]), download, shuffle at run time, or know about tensors.

#[cfg(target_endian = "big")]
compile_error!("token shards are little-endian and read in place");

mod batch;
mod cache;
mod dataset;
mod error;
#[cfg(test)]
mod fuzz;
mod manifest;
mod mapped;
mod options;
mod order;
mod prepare;
mod progress;
mod regular;
mod sample;
mod scan;
mod shard;
mod source;
mod split;
mod tokenizer;
mod window;

pub use batch::Batch;
pub use dataset::{Dataset, Span};
pub use error::Error;
pub use manifest::{Manifest, PartSummary, Skipped};
pub use options::{Options, Source, Split, TokenizerSpec};
pub use order::{SampleId, SampleOrder};
pub use prepare::prepare;
pub use progress::{Notice, Phase, Progress, Silent};
pub use source::{Counted, LeftOut};
pub use tokenizer::{StreamDecoder, Tokenizer};
pub use window::{TrainingWindows, ValidationWindows};
