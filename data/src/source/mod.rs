//! From sources to files to documents.
//!
//! `list` names the files once; `Corpus::visit` reads them in order, as often as needed, a bounded chunk at a time:
//! reading is sequential, what is done with each document runs on all cores, and results come back in order. Large files
//! of many lines and many small files go the same way, and no pass holds more than a chunk of text.

mod cargo;
mod jsonl;
mod pattern;
mod reader;
mod signature;

pub(crate) use reader::{Corpus, Document, Visited};

use crate::error::Error;
use crate::options::Source;
use std::collections::HashSet;
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
    /// Device and number of the file: equal under all its names.
    identity: (u64, u64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            size: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            identity: (metadata.dev(), metadata.ino()),
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
        if !metadata.is_file() {
            return Err(Error::NotRegular { path: path.to_owned() });
        }
        Ok(Self::of(&metadata))
    }
}

/// The files of all sources.
#[derive(Debug)]
pub(crate) struct Listing {
    /// In document order: by source, then by path.
    pub(crate) files: Vec<SourceFile>,
    /// What wildcards matched besides.
    pub(crate) left_out: LeftOut,
}

/// What wildcards matched and nobody wants to train on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Hidden files and folders, and backup copies.
    pub hidden: Counted,
    /// Further names of files that the same source has already (links).
    pub repeated: Counted,
}

/// How many paths, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// The first by name.
    pub first: PathBuf,
}

impl Counted {
    fn add(&mut self, path: PathBuf) {
        if self.count == 0 || path < self.first {
            self.first = path;
        }
        self.count += 1;
    }
}

/// Lists the files of all sources. A file that one pattern finds under several names is taken once, under the first; a
/// source that is named twice is read twice.
pub(crate) fn list(sources: &[Source]) -> Result<Listing, Error> {
    let mut files = Vec::new();
    let mut left_out = LeftOut::default();
    for (source, spec) in sources.iter().enumerate() {
        let (found, format) = match spec {
            Source::Text { path } => (pattern::match_files(path, &mut left_out)?, Format::Text),
            Source::Jsonl { path, field } => {
                (pattern::match_files(path, &mut left_out)?, Format::Jsonl(field.clone()))
            }
            Source::CargoSources { manifest } => (cargo::list(Path::new(manifest))?, Format::Rust),
        };
        let mut seen = HashSet::new();
        for (name, path) in found {
            let stamp = Stamp::read(&path)?;
            if format != Format::Rust && !seen.insert(stamp.identity) {
                left_out.repeated.add(path);
                continue;
            }
            files.push(SourceFile { source, name, path, format: format.clone(), stamp });
        }
    }
    Ok(Listing { files, left_out })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let error = list(&[Source::Text { path: "/dev/null".to_owned() }]).unwrap_err();
        assert!(matches!(error, Error::NotRegular { .. }), "{error}");
        std::os::unix::fs::symlink("gone.txt", dir.path().join("link.txt")).unwrap();
        let error = list(&source("*.txt")).unwrap_err();
        assert!(matches!(&error, Error::MissingFile { path } if path.ends_with("link.txt")));
        assert!(error.to_string().contains("a link"), "{error}");
    }

    #[test]
    fn a_file_of_several_names_is_one_document_of_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a.txt"), "text").unwrap();
        std::os::unix::fs::symlink("a.txt", path("b.txt")).unwrap();
        std::fs::hard_link(path("a.txt"), path("c.txt")).unwrap();
        let source = Source::Text { path: path("*.txt").display().to_string() };
        let listing = list(&[source.clone(), source]).unwrap();
        let names: Vec<_> = listing.files.iter().map(|f| (f.source, f.name.as_str())).collect();
        assert_eq!(names, [(0, "a.txt"), (1, "a.txt")]);
        assert_eq!(listing.left_out.repeated, Counted { count: 4, first: path("b.txt") });
    }
}
