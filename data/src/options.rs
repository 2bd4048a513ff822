//! What to prepare: the data part of a recipe, in this crate's own types. The caller resolves relative paths.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that decides the contents of a prepared folder, and where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Text sources, in order.
    pub sources: Vec<Source>,
    /// Stop before the first document that would make the text longer than this many bytes; none takes all.
    pub max_bytes: Option<u64>,
    /// Which part is held out.
    pub validation: Split,
    /// How text becomes tokens.
    pub tokenizer: TokenizerSpec,
    /// Parent of prepared folders; shared by runs and by processes.
    pub cache_dir: PathBuf,
}

/// One source of documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// Every matching file is one document of UTF-8 text.
    Text {
        /// Glob pattern or path.
        path: String,
    },
    /// Every line of every matching file is a JSON object; `field` holds the document.
    Jsonl {
        /// Glob pattern or path.
        path: String,
        /// Name of the text field.
        field: String,
    },
    /// The Rust sources of the packages in the cargo dependency graph of `manifest`: every file is one document. Packages
    /// of the workspace itself are left out (they change with every edit), and so are all but the newest version of a
    /// package, files that say they are generated, and files that are not UTF-8.
    CargoSources {
        /// Path of a Cargo.toml.
        manifest: String,
    },
}

/// How validation text is held out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Split {
    /// Documents whose content hash falls under `fraction`; copies of a document fall on the same side.
    Hash {
        /// Share of documents, 0 <= fraction < 1.
        fraction: f64,
    },
    /// The last `fraction` of the bytes of each document (for a corpus of one document), cut at a character.
    Tail {
        /// Share of bytes, 0 <= fraction < 1.
        fraction: f64,
    },
}

impl Split {
    /// The share held out, of documents or of bytes.
    pub fn fraction(self) -> f64 {
        match self {
            Split::Hash { fraction } | Split::Tail { fraction } => fraction,
        }
    }
}

/// Tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TokenizerSpec {
    /// Token = byte value; end of document = 256. Vocabulary 257.
    Byte,
    /// Token = index of the character in the sorted set of characters of the corpus; end of document is one more.
    Char,
    /// Byte-level BPE trained on an even sample of the training text.
    Bpe {
        /// Largest size of the vocabulary, end of document included.
        vocab_size: usize,
        /// Bytes of training text the trainer reads.
        train_bytes: u64,
    },
    /// A Hugging Face `tokenizer.json`.
    File {
        /// Path of the file.
        path: PathBuf,
        /// The token that ends a document; must be in its vocabulary.
        end_of_document: String,
    },
}
