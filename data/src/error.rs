//! What can go wrong between a text file and a batch, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Errors of this crate. Paths are as the options gave them; lines and offsets count from 1 and 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A source names a file that does not exist.
    #[error("no file {path}: correct the recipe or put the file there (if it is a link, where the link leads)", path = .path.display())]
    MissingFile {
        /// The path.
        path: PathBuf,
    },
    /// A glob pattern matches nothing.
    #[error("no file matches `{pattern}`: correct the pattern in data.sources or put files there")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// A glob pattern matches nothing but what wildcards pass over.
    #[error(
        "what matches `{pattern}` is hidden or a backup copy, which a wildcard passes over, for instance {first}: name it without a wildcard in data.sources",
        first = .first.display()
    )]
    OnlyHidden {
        /// The pattern.
        pattern: String,
        /// The first such file or folder.
        first: PathBuf,
    },
    /// A glob pattern has a syntax error.
    #[error("`{pattern}` in data.sources is not a glob pattern: {message}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What the parser says.
        message: String,
    },
    /// A source names a folder.
    #[error("{path} is a folder: name its files in data.sources, for instance {path}/**/*.txt", path = .path.display())]
    NotAFile {
        /// The folder.
        path: PathBuf,
    },
    /// A pipe, a socket, a device or a folder where a file is wanted.
    #[error(
        "{path} is not a regular file: write what it gives to a file and name that instead",
        path = .path.display()
    )]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// A file is larger than such files are.
    #[error("{path} has {bytes} bytes, and at most {limit} are read: it is not the file it is taken for", path = .path.display())]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the cache cannot be written.
    #[error("cannot write {path}: {source}; free some space, or point data.cache_dir elsewhere", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not UTF-8.
    #[error(
        "{path}:{line}: the text is not UTF-8, the first bad byte is at offset {offset} of the file: convert it (iconv -f LATIN1 -t UTF-8, if it is Latin-1) or leave it out of data.sources",
        path = .path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line with the first bad byte.
        line: u64,
        /// Offset of the first bad byte in the file.
        offset: u64,
    },
    /// A file holds text in a form that is not read.
    #[error("{path} is {form}: {advice}, and name the result in data.sources", path = .path.display())]
    OtherForm {
        /// The file.
        path: PathBuf,
        /// The form, as in "is ...".
        form: &'static str,
        /// What makes UTF-8 text of it.
        advice: String,
    },
    /// A line of a JSONL file is not a JSON object.
    #[error(
        "{path}:{line}: not a JSON object ({message}): every line must hold one whole object; correct the line or remove it",
        path = .path.display()
    )]
    BadJson {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// What the parser says.
        message: String,
    },
    /// A line of a JSONL file lacks the text field, or it is not a string.
    #[error("{path}:{line}: no string field `{field}`: correct `field` in data.sources, or the line", path = .path.display())]
    NoField {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
        /// The field.
        field: String,
    },
    /// `cargo metadata` failed.
    #[error(
        "cannot list the dependencies of {manifest}: {message}; `cargo metadata --manifest-path {manifest}` must succeed",
        manifest = .manifest.display()
    )]
    Cargo {
        /// The Cargo.toml.
        manifest: PathBuf,
        /// What cargo says.
        message: String,
    },
    /// No text at all.
    #[error(
        "the corpus is empty: none of {files} files holds text within data.max_bytes; add files to data.sources"
    )]
    EmptyCorpus {
        /// Files listed.
        files: usize,
    },
    /// The split leaves no training text.
    #[error(
        "all {documents} documents are held out for validation: lower data.validation_fraction"
    )]
    NoTrainingText {
        /// Documents of the corpus.
        documents: u64,
    },
    /// The split leaves no validation text although a fraction was asked for.
    #[error(
        "no document of {documents} is held out: raise data.validation_fraction, or hold out the end of every document: data.validation = \"tail\""
    )]
    NoValidationText {
        /// Documents of the corpus.
        documents: u64,
    },
    /// The validation fraction is not a share.
    #[error("data.validation_fraction = {fraction}: must be at least 0 and below 1")]
    BadFraction {
        /// The value.
        fraction: f64,
    },
    /// A sequence does not fit into the corpus.
    #[error(
        "a sequence needs {needed} tokens but the training text has {tokens}: shorten batch.sequence_length or add text"
    )]
    TooShort {
        /// Tokens of one sample.
        needed: u64,
        /// Tokens of the training text.
        tokens: u64,
    },
    /// The tokenizer has tokens the model cannot embed.
    #[error(
        "the tokenizer has {tokenizer} tokens but the model's vocabulary is {model}: set model.vocab_size to at least {tokenizer}"
    )]
    Vocabulary {
        /// Vocabulary of the tokenizer.
        tokenizer: usize,
        /// Vocabulary of the model.
        model: usize,
    },
    /// A character tokenizer meets a character that its corpus does not have.
    #[error(
        "the character {character:?} is not in the vocabulary of this character tokenizer: leave it out"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
    },
    /// A BPE vocabulary too small for the bytes.
    #[error(
        "tokenizer.vocab_size = {vocab_size}: a byte-level BPE needs at least 257 (256 bytes and end of document)"
    )]
    SmallVocabulary {
        /// The value.
        vocab_size: usize,
    },
    /// The `tokenizers` crate refuses.
    #[error("tokenizer {path}: {message}; it must be a tokenizer.json of the Hugging Face tokenizers library", path = .path.display())]
    Tokenizer {
        /// The tokenizer's file, or the file being tokenized.
        path: PathBuf,
        /// What the library says.
        message: String,
    },
    /// The end-of-document token is not in the vocabulary.
    #[error("{path} has no token `{token}`: set tokenizer.end_of_document to one that it has", path = .path.display())]
    NoEndOfDocument {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token.
        token: String,
    },
    /// A prepared folder is damaged or incomplete.
    #[error("{path}: {what}; remove the folder and prepare the data again", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A source changed between two readings.
    #[error("the source files changed while they were read: run again when nothing writes to them")]
    Changed,
}

impl Error {
    /// For `map_err` on reads of `path`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    }

    /// For `map_err` on writes of `path`.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    }

    /// A damaged file of a prepared folder.
    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Error {
        Error::Corrupt { path: path.to_owned(), what: what.into() }
    }
}
