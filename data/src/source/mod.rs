//! From sources to files to documents.
//!
//! `list` names the files once; `Corpus::visit` reads them in order, as often as needed, a bounded chunk at a time:
//! reading is sequential, what is done with each document runs on all cores, and results come back in order. Large files
//! of many lines and many small files go the same way, and no pass holds more than a chunk of text.

mod cargo;
mod jsonl;
mod reader;

pub(crate) use reader::{Corpus, Document, Visited};

use crate::error::Error;
use crate::options::Source;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One file of a source.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Which source, from 0.
    pub(crate) source: usize,
    /// The path below the source's fixed folder: equal on every machine.
    pub(crate) name: String,
    /// Where it is here.
    pub(crate) path: PathBuf,
    /// How it holds documents.
    pub(crate) format: Format,
    /// Its state when it was listed.
    pub(crate) stamp: Stamp,
}

/// How a file holds documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// The file is the document.
    Text,
    /// Each line is an object with the document in this field.
    Jsonl(String),
    /// The file is the document; not-UTF-8 and generated files are skipped and counted.
    Rust,
}

/// What `stat` says: two readings between which nothing of it changed saw the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Bytes.
    pub(crate) size: u64,
    /// Last change of the contents, nanoseconds since 1970.
    pub(crate) modified_ns: i128,
    /// Last change of contents or attributes: cannot be set back by `touch` or `cp -p`.
    pub(crate) changed_ns: i128,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            size: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp of a file, following links.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::MissingFile { path: path.to_owned() });
            }
            Err(e) => return Err(Error::read(path)(e)),
        };
        if metadata.is_dir() {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        Ok(Self::of(&metadata))
    }
}

/// All files of all sources, in document order: by source, then by name.
pub(crate) fn list(sources: &[Source]) -> Result<Vec<SourceFile>, Error> {
    let mut files = Vec::new();
    for (source, spec) in sources.iter().enumerate() {
        let (found, format) = match spec {
            Source::Text { path } => (match_files(path)?, Format::Text),
            Source::Jsonl { path, field } => (match_files(path)?, Format::Jsonl(field.clone())),
            Source::CargoSources { manifest } => (cargo::list(Path::new(manifest))?, Format::Rust),
        };
        for (name, path) in found {
            let stamp = Stamp::read(&path)?;
            files.push(SourceFile { source, name, path, format: format.clone(), stamp });
        }
    }
    Ok(files)
}

/// The files of a glob pattern, or the one file of a plain path, as (name, path) by rising path.
fn match_files(pattern: &str) -> Result<Vec<(String, PathBuf)>, Error> {
    let Some(first) = pattern.find(['*', '?', '[']) else {
        let path = PathBuf::from(pattern);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        return Ok(vec![(name, path)]);
    };
    let fixed = pattern[..first].rfind('/').map_or(0, |slash| slash + 1);
    let bad = |message: String| Error::BadPattern { pattern: pattern.to_owned(), message };
    let mut files = Vec::new();
    for entry in glob::glob(pattern).map_err(|e| bad(e.to_string()))? {
        let path = entry.map_err(|e| Error::read(e.path())(e.into()))?;
        if !path.is_dir() {
            let name = path.strip_prefix(&pattern[..fixed]).unwrap_or(&path);
            files.push((name.to_string_lossy().into_owned(), path));
        }
    }
    if files.is_empty() {
        return Err(Error::NoMatch { pattern: pattern.to_owned() });
    }
    files.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_give_names_below_their_fixed_folder_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a.txt", "x.md", "sub/c.txt"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            let path = format!("{}/{pattern}", dir.path().display());
            list(&[Source::Text { path }]).unwrap().into_iter().map(|f| f.name).collect()
        };
        assert_eq!(names("*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(names("**/*.txt"), ["a.txt", "b.txt", "sub/c.txt"]);
        assert_eq!(names("sub/c.txt"), ["c.txt"]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let source =
            |path: &str| [Source::Text { path: format!("{}/{path}", dir.path().display()) }];
        assert!(
            matches!(list(&source("none.txt")), Err(Error::MissingFile { path }) if path.ends_with("none.txt"))
        );
        assert!(
            matches!(list(&source("*.txt")), Err(Error::NoMatch { pattern }) if pattern.ends_with("/*.txt"))
        );
        assert!(matches!(list(&source("a***")), Err(Error::BadPattern { .. })));
        assert!(matches!(list(&source("")), Err(Error::NotAFile { .. })));
    }
}
