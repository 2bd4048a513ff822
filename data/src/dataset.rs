//! A prepared folder, opened: what a rank needs of the data, without the sources.

use crate::error::Error;
use crate::manifest::{FileSum, Manifest, hex};
use crate::mapped::Mapped;
use crate::progress::{Phase, Progress};
use crate::shard::Part;
use crate::tokenizer::Tokenizer;
use crate::window::{TrainingWindows, ValidationWindows};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) const FILES_FILE: &str = "files.json";
/// The held-out documents, one after the other.
pub(crate) const VALIDATION_TEXT_FILE: &str = "validation.txt";
/// For each validation token the end of its text in `validation.txt`, u64.
pub(crate) const VALIDATION_ENDS_FILE: &str = "validation.ends";

/// An entry of `files.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileName {
    pub(crate) source: usize,
    pub(crate) name: String,
}

/// A stretch of the training text inside one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Number of the training document, from 0.
    pub document: u64,
    /// Number of the source in the options, from 0.
    pub source: usize,
    /// The file, below the fixed part of the source's pattern (`serde-1.0.229/src/lib.rs` for cargo sources).
    pub file: String,
    /// Line of a JSONL file, from 1; none when the file is the document.
    pub line: Option<u64>,
    /// Tokens of the document; its last token is end of document.
    pub tokens: Range<u64>,
}

/// A prepared folder. Cheap to clone; clones share the maps.
#[derive(Debug, Clone)]
pub struct Dataset {
    folder: PathBuf,
    manifest: Arc<Manifest>,
    tokenizer: Arc<Tokenizer>,
    training: Arc<Part>,
    validation: Arc<Part>,
    validation_text: Arc<Mapped>,
    validation_ends: Arc<Mapped>,
    files: Arc<Vec<FileName>>,
}

impl Dataset {
    /// Opens a folder that [`crate::prepare`] made. Of the large files the lengths are compared, not the checksums (see
    /// [`Dataset::verify`]).
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let manifest = Manifest::load(folder)?;
        for (name, sum) in manifest.files.iter().filter(|(name, _)| name.ends_with(".json")) {
            verify_file(&folder.join(name), sum)?;
        }
        let map = |name: &str| Mapped::open(&folder.join(name), manifest.sum(folder, name)?.bytes);
        let names = map(FILES_FILE)?;
        let files = serde_json::from_slice(names.bytes())
            .map_err(|e| Error::corrupt(names.path(), e.to_string()))?;
        let validation_ends = map(VALIDATION_ENDS_FILE)?;
        if validation_ends.bytes().len() as u64 != manifest.validation.tokens * 8 {
            return Err(Error::corrupt(validation_ends.path(), "is not 8 bytes per token"));
        }
        Ok(Self {
            folder: folder.to_owned(),
            tokenizer: Arc::new(Tokenizer::load(folder)?),
            training: Arc::new(Part::open(folder, "training", &manifest)?),
            validation: Arc::new(Part::open(folder, "validation", &manifest)?),
            validation_text: Arc::new(map(VALIDATION_TEXT_FILE)?),
            validation_ends: Arc::new(validation_ends),
            files: Arc::new(files),
            manifest: Arc::new(manifest),
        })
    }

    /// Compares the checksum of every file, on all cores.
    pub fn verify(&self, progress: &dyn Progress) -> Result<(), Error> {
        let total = self.manifest.folder_bytes();
        let mut done = 0;
        let files: Vec<_> = self.manifest.files.iter().collect();
        // One shard is 256 MiB: a batch of a few keeps the cores busy and the progress moving.
        for batch in files.chunks(rayon::current_num_threads()) {
            batch
                .par_iter()
                .try_for_each(|(name, sum)| verify_file(&self.folder.join(name), sum))?;
            done += batch.iter().map(|(_, sum)| sum.bytes).sum::<u64>();
            progress.update(Phase::Verify, done, total);
        }
        self.verify_places()
    }

    /// That what the checksums cover leads nowhere outside: documents into files and tokens, tokens into text.
    fn verify_places(&self) -> Result<(), Error> {
        self.training.verify_index(self.files.len())?;
        self.validation.verify_index(self.files.len())?;
        let ends = self.validation_ends.as_slice::<u64>();
        let text = self.validation_text.bytes().len() as u64;
        let last = ends.last().copied().unwrap_or(0);
        if ends.is_sorted() && last == text {
            return Ok(());
        }
        let what = format!("says that tokens end at byte {last} of {text}, or not in order");
        Err(Error::corrupt(self.validation_ends.path(), what))
    }

    /// Where it is: a rank on this machine opens the same folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of its files, the manifest aside.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.keys().map(String::as_str)
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Hash of the documents, the split, the tokenizer and the format: equal fingerprints give equal batches.
    pub fn fingerprint(&self) -> &str {
        &self.manifest.fingerprint
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Refuses a model whose vocabulary cannot hold every token.
    pub fn check_vocabulary(&self, model: usize) -> Result<(), Error> {
        self.tokenizer.check_vocabulary(model)
    }

    /// The training text as samples of `sequence_length` inputs, `sequence_length` next tokens, and `lookahead` tokens more
    /// for multi-token prediction.
    pub fn training(
        &self,
        sequence_length: usize,
        lookahead: usize,
    ) -> Result<TrainingWindows, Error> {
        TrainingWindows::new(
            self.training.clone(),
            self.manifest.end_of_document,
            sequence_length,
            lookahead,
        )
    }

    /// The first `tokens` held-out tokens (0: all) as windows of `sequence_length` targets.
    pub fn validation(&self, sequence_length: usize, tokens: u64) -> ValidationWindows {
        let covered = self.covered(tokens);
        let bytes = self.validation_text(covered).len() as u64;
        let part = self.validation.clone();
        ValidationWindows::new(
            part,
            self.manifest.end_of_document,
            sequence_length,
            (covered, bytes),
        )
    }

    /// The bytes of text that the first `tokens` held-out tokens (0: all) stand for: what a compressor must be given to be
    /// compared on the same text. May end inside a character.
    pub fn validation_text(&self, tokens: u64) -> &[u8] {
        let ends = self.validation_ends.as_slice::<u64>();
        match self.covered(tokens) {
            0 => &[],
            covered => &self.validation_text.bytes()[..ends[covered as usize - 1] as usize],
        }
    }

    fn covered(&self, tokens: u64) -> u64 {
        let all = self.manifest.validation.tokens;
        if tokens == 0 { all } else { tokens.min(all) }
    }

    /// The documents that these tokens of the training text come from, in order. The tokens of a sample are
    /// [`TrainingWindows::inputs`].
    pub fn locate(&self, tokens: Range<u64>) -> Vec<Span> {
        self.training
            .documents_of(&tokens)
            .map(|document| {
                let record = self.training.record(document);
                let end = match document + 1 {
                    next if next < self.training.documents() => {
                        self.training.record(next).first_token
                    }
                    _ => self.training.tokens(),
                };
                let FileName { source, name } = &self.files[record.file as usize];
                let start = tokens.start.max(record.first_token) - record.first_token;
                Span {
                    document,
                    source: *source,
                    file: name.clone(),
                    line: (record.line > 0).then_some(record.line),
                    tokens: start..tokens.end.min(end) - record.first_token,
                }
            })
            .collect()
    }
}

fn verify_file(path: &Path, sum: &FileSum) -> Result<(), Error> {
    let file = Mapped::open(path, sum.bytes)?;
    if hex(xxh3_64(file.bytes())) == sum.xxh3 {
        Ok(())
    } else {
        Err(Error::corrupt(path, "the checksum differs"))
    }
}
