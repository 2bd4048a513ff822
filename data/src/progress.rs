//! What a long `prepare` tells its caller. This crate prints nothing.

use crate::source::LeftOut;
use std::path::PathBuf;

/// The steps of [`crate::prepare`], in order; a reused folder goes through `Verify` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Comparing the checksums of a folder made earlier.
    Verify,
    /// Reading and hashing the sources.
    Scan,
    /// Training a BPE vocabulary.
    TrainTokenizer,
    /// Turning text into token shards.
    Tokenize,
}

/// Something the caller may want to tell a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A folder made earlier is damaged and is made again.
    CorruptCache {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another process is preparing the same data; waiting for it.
    Waiting,
    /// Wildcards in `data.sources` matched files that are not text to train on.
    LeftOut(LeftOut),
    /// JSONL lines spell half of a surrogate pair, which is no character: they are read with U+FFFD in its place.
    Mended {
        /// How many lines.
        lines: u64,
        /// File of the first.
        path: PathBuf,
        /// Line of the first.
        line: u64,
    },
}

/// Callbacks of [`crate::prepare`]; called from the calling thread.
pub trait Progress {
    /// `done` of `total` bytes of text (of files, in `Verify`) are through `phase`. `done` reaches `total` at its end.
    fn update(&self, phase: Phase, done: u64, total: u64);
    /// Something unusual happened.
    fn notice(&self, notice: Notice);
    /// Calls `make`, which makes a folder that is filled until [`crate::prepare`] returns. Who ends this process in
    /// between may remove it; what a killed process has left goes at the next preparation.
    fn making(&self, make: &mut dyn FnMut() -> Option<PathBuf>) {
        make();
    }
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _: Phase, _: u64, _: u64) {}
    fn notice(&self, _: Notice) {}
}
