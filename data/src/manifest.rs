//! `manifest.json` of a prepared folder: what is in it, and the length and checksum of every file.

use crate::error::Error;
use crate::options::Options;
use crate::regular::read_regular;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Version of the folder's layout and of everything that decides which token stands where; part of the fingerprint.
pub(crate) const FORMAT: u32 = 1;
const MANIFEST_FILE: &str = "manifest.json";
/// The largest manifest that is read; one of 100,000 shards has 10 MiB.
const MAX_BYTES: u64 = 256 << 20;
/// More tokens than anybody has, few enough that bytes of them are 64-bit numbers.
const MAX_TOKENS: u64 = 1 << 56;
/// A shard is mapped as a whole.
const MAX_SHARD_TOKENS: u64 = 1 << 40;

/// What a prepared folder holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Name of the folder: a hash of the documents, the split, the tokenizer and the format. Equal on every machine.
    pub fingerprint: String,
    /// The options of the process that made the folder; paths are of its machine.
    pub options: Options,
    /// Tokens that exist.
    pub vocabulary_size: usize,
    /// The token that ends every document.
    pub end_of_document: u32,
    /// Bytes of a stored token: 2 or 4.
    pub token_bytes: usize,
    /// Tokens of every shard but a part's last.
    pub shard_tokens: u64,
    /// Training text.
    pub training: PartSummary,
    /// Held-out text.
    pub validation: PartSummary,
    /// What the sources had besides.
    pub skipped: Skipped,
    /// Every other file of the folder.
    pub(crate) files: BTreeMap<String, FileSum>,
    /// xxh3 of this manifest with an empty checksum, in hexadecimal.
    pub(crate) checksum: String,
}

/// Size of one part of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSummary {
    /// Documents.
    pub documents: u64,
    /// Tokens, one end of document per document included.
    pub tokens: u64,
    /// Bytes of text.
    pub bytes: u64,
}

/// Documents left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Files of cargo packages that are not UTF-8.
    pub not_utf8: u64,
    /// Files of cargo packages that a program wrote.
    pub generated: u64,
    /// Documents without text.
    pub empty: u64,
}

/// Length and checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSum {
    pub(crate) bytes: u64,
    /// xxh3-64 in hexadecimal.
    pub(crate) xxh3: String,
}

impl FileSum {
    pub(crate) fn of(contents: &[u8]) -> Self {
        Self { bytes: contents.len() as u64, xxh3: hex(xxh3_64(contents)) }
    }
}

/// As checksums are written.
pub(crate) fn hex(sum: u64) -> String {
    format!("{sum:016x}")
}

impl Manifest {
    /// Bytes of the whole folder, this file aside.
    pub(crate) fn folder_bytes(&self) -> u64 {
        self.files.values().map(|f| f.bytes).sum()
    }

    /// The recorded length and checksum of a file.
    pub(crate) fn sum(&self, folder: &Path, name: &str) -> Result<&FileSum, Error> {
        let missing =
            || Error::corrupt(&folder.join(MANIFEST_FILE), format!("does not list {name}"));
        self.files.get(name).ok_or_else(missing)
    }

    /// Writes it into `folder`.
    pub(crate) fn save(mut self, folder: &Path) -> Result<(), Error> {
        self.checksum = self.own_checksum();
        let path = folder.join(MANIFEST_FILE);
        let json = serde_json::to_vec_pretty(&self).expect("numbers and strings become JSON");
        std::fs::write(&path, json).map_err(Error::write(&path))
    }

    /// Reads it from `folder` and checks that it is whole and of our format.
    pub(crate) fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MANIFEST_FILE);
        let json = read_regular(&path, MAX_BYTES).map_err(|e| match e {
            Error::MissingFile { .. } => Error::corrupt(&path, "the file is missing"),
            Error::NotRegular { .. } | Error::TooLarge { .. } => {
                Error::corrupt(&path, e.to_string())
            }
            other => other,
        })?;
        let manifest: Self =
            serde_json::from_slice(&json).map_err(|e| Error::corrupt(&path, e.to_string()))?;
        if manifest.format != FORMAT {
            let what = format!("has format {}, this program reads {FORMAT}", manifest.format);
            return Err(Error::corrupt(&path, what));
        }
        if manifest.checksum != manifest.own_checksum() {
            return Err(Error::corrupt(&path, "the checksum differs"));
        }
        manifest.check().map_err(|what| Error::corrupt(&path, what))?;
        Ok(manifest)
    }

    /// Refuses figures that cannot belong together, so that nobody computes with them.
    fn check(&self) -> Result<(), String> {
        if self.token_bytes != 2 && self.token_bytes != 4 {
            return Err(format!("says that a token has {} bytes", self.token_bytes));
        }
        if !(1..=MAX_SHARD_TOKENS).contains(&self.shard_tokens) {
            return Err(format!("says that a shard has {} tokens", self.shard_tokens));
        }
        for part in [&self.training, &self.validation] {
            // A document has at least one token, and a token or its place in a text at most eight bytes.
            let counted =
                part.documents <= part.tokens && (part.documents > 0) == (part.tokens > 0);
            if part.tokens > MAX_TOKENS || !counted {
                let PartSummary { tokens, documents, .. } = part;
                return Err(format!("says that {documents} documents have {tokens} tokens"));
            }
        }
        let shards = self.training.tokens.max(self.validation.tokens).div_ceil(self.shard_tokens);
        if shards > self.files.len() as u64 {
            return Err(format!(
                "lists {} files, and {shards} shards are wanted",
                self.files.len()
            ));
        }
        Ok(())
    }

    fn own_checksum(&self) -> String {
        let blank = Self { checksum: String::new(), ..self.clone() };
        hex(xxh3_64(&serde_json::to_vec(&blank).expect("numbers and strings become JSON")))
    }
}
