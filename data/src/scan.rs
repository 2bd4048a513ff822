//! The first reading of the sources: what the text is (its digest), how much of it is taken, and what a tokenizer must know.

use crate::error::Error;
use crate::manifest::Skipped;
use crate::options::{Options, TokenizerSpec};
use crate::progress::{Notice, Phase, Progress};
use crate::source::{Corpus, Document, SourceFile, Visited};
use blake3::Hash;

/// What the first reading found.
pub(crate) struct Scan {
    /// Hash of every document taken, and of its place.
    pub(crate) digest: Hash,
    /// Documents read until `max_bytes`, those without text included: where later readings stop.
    pub(crate) limit: u64,
    /// Documents taken.
    pub(crate) documents: u64,
    /// Bytes of text taken.
    pub(crate) bytes: u64,
    /// Of these, for training.
    pub(crate) training_bytes: u64,
    /// Documents left out.
    pub(crate) skipped: Skipped,
    /// Characters that occur, for the character tokenizer.
    pub(crate) characters: Option<CharacterSet>,
}

/// A document's content hash, and the parts of it that matter in a reading.
struct Read {
    document: Document,
    hash: Hash,
    training_bytes: u64,
}

/// Hash of a sequence of documents; the same in every reading of unchanged sources.
#[derive(Default)]
pub(crate) struct CorpusDigest(blake3::Hasher);

impl CorpusDigest {
    /// Adds a document: its name does not depend on the machine.
    pub(crate) fn add(&mut self, file: &SourceFile, line: u64, hash: &Hash) {
        let place = [file.source as u64, file.name.len() as u64, line];
        self.0.update(bytemuck::cast_slice(&place));
        self.0.update(file.name.as_bytes());
        self.0.update(hash.as_bytes());
    }

    pub(crate) fn finish(&self) -> Hash {
        self.0.finalize()
    }
}

/// Lines in which half a surrogate pair was replaced.
#[derive(Default)]
struct Mended {
    lines: u64,
    /// File and line of the first.
    first: Option<(usize, u64)>,
}

impl Mended {
    fn add(&mut self, file: usize, line: u64) {
        self.lines += 1;
        self.first.get_or_insert((file, line));
    }
}

/// Reads everything once.
pub(crate) fn scan(
    files: &[SourceFile],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Scan, Error> {
    let corpus = Corpus { files, limit: u64::MAX };
    let total: u64 = files.iter().map(|f| f.stamp.size).sum();
    let mut digest = CorpusDigest::default();
    let mut mended = Mended::default();
    let characters = (options.tokenizer == TokenizerSpec::Char).then(CharacterSet::default);
    let mut scan = Scan {
        digest: digest.finish(),
        limit: 0,
        documents: 0,
        bytes: 0,
        training_bytes: 0,
        skipped: Skipped::default(),
        characters,
    };
    let each = |document: Document| {
        let hash = blake3::hash(document.text.as_bytes());
        let training_bytes = options.validation.cut(&hash, &document.text).0.len() as u64;
        Ok(Read { document, hash, training_bytes })
    };
    corpus.visit(each, |visited, read| {
        match visited {
            Visited::Empty => scan.skipped.empty += 1,
            Visited::NotUtf8 => scan.skipped.not_utf8 += 1,
            Visited::Generated => scan.skipped.generated += 1,
            Visited::Text(Read { document, hash, training_bytes }) => {
                let bytes = document.text.len() as u64;
                if options.max_bytes.is_some_and(|max| scan.bytes + bytes > max) {
                    return Ok(false);
                }
                digest.add(&files[document.file], document.line, &hash);
                if document.mended {
                    mended.add(document.file, document.line);
                }
                if let Some(characters) = &mut scan.characters {
                    characters.add(&document.text);
                }
                scan.documents += 1;
                scan.bytes += bytes;
                scan.training_bytes += training_bytes;
            }
        }
        scan.limit += 1;
        progress.update(Phase::Scan, read.min(total), total);
        Ok(true)
    })?;
    progress.update(Phase::Scan, total, total);
    if let Some((file, line)) = mended.first {
        let path = files[file].path.clone();
        progress.notice(Notice::Mended { lines: mended.lines, path, line });
    }
    scan.digest = digest.finish();
    scan.check(files.len(), options)?;
    Ok(scan)
}

impl Scan {
    /// Refuses a corpus that lacks a part.
    fn check(&self, files: usize, options: &Options) -> Result<(), Error> {
        let documents = self.documents;
        if self.bytes == 0 {
            return Err(Error::EmptyCorpus { files });
        }
        if self.training_bytes == 0 {
            return Err(Error::NoTrainingText { documents });
        }
        if self.training_bytes == self.bytes && options.validation.fraction() > 0.0 {
            return Err(Error::NoValidationText { documents });
        }
        Ok(())
    }
}

/// A set of characters: one flag per code point.
pub(crate) struct CharacterSet(Vec<bool>);

impl Default for CharacterSet {
    fn default() -> Self {
        Self(vec![false; char::MAX as usize + 1])
    }
}

impl CharacterSet {
    fn add(&mut self, text: &str) {
        for character in text.chars() {
            self.0[character as usize] = true;
        }
    }

    /// The characters, rising.
    pub(crate) fn iter(&self) -> impl Iterator<Item = char> {
        ('\0'..=char::MAX).filter(|&character| self.0[character as usize])
    }
}
