//! Reading all documents of a list of files, in order, a chunk at a time.

use super::{Format, SourceFile, cargo, jsonl, signature};
use crate::error::Error;
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::string::FromUtf8Error;

/// Bytes of text in flight: enough to occupy many cores, little beside any machine's memory.
const CHUNK_BYTES: usize = 8 << 20;
/// Documents in flight, for corpora of tiny ones.
const CHUNK_DOCUMENTS: usize = 1 << 14;

/// The files of a corpus and where it ends.
pub(crate) struct Corpus<'a> {
    /// The files, in order.
    pub(crate) files: &'a [SourceFile],
    /// Documents to read, those without text included; `u64::MAX` for all.
    pub(crate) limit: u64,
}

/// A document with text.
pub(crate) struct Document {
    /// Index into the list of files.
    pub(crate) file: usize,
    /// Line in the file, from 1; 0 when the whole file is the document.
    pub(crate) line: u64,
    /// The text, not empty.
    pub(crate) text: String,
    /// Whether it has U+FFFD where the line had half of a surrogate pair.
    pub(crate) mended: bool,
}

/// What reading makes of a document.
pub(crate) enum Visited<T> {
    /// Has text.
    Text(T),
    /// Has none.
    Empty,
    /// Skipped: not UTF-8, in a source where that is no error.
    NotUtf8,
    /// Skipped: written by a program, in a source where that matters.
    Generated,
}

/// A document as read, not looked at.
struct Raw {
    file: usize,
    line: u64,
    /// Offset in the file.
    offset: u64,
    bytes: Vec<u8>,
}

impl Corpus<'_> {
    /// Reads the corpus in order: `each` sees every document on some core, `sink` gets the results in document order on
    /// this thread, with the bytes read so far, and ends the reading by returning false.
    pub(crate) fn visit<T: Send>(
        &self,
        each: impl Fn(Document) -> Result<T, Error> + Sync,
        mut sink: impl FnMut(Visited<T>, u64) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut reader = Reader { files: self.files, next_file: 0, lines: None };
        let mut left = self.limit;
        let mut read = 0;
        while left > 0 {
            let chunk = reader.chunk(left)?;
            if chunk.is_empty() {
                break;
            }
            left -= chunk.len() as u64;
            let visited: Vec<(u64, Result<Visited<T>, Error>)> = chunk
                .into_par_iter()
                .map(|raw| {
                    let bytes = raw.bytes.len() as u64;
                    (bytes, parse(raw, self.files).and_then(|v| v.map(&each)))
                })
                .collect();
            // In order, so that of several errors the first in the corpus is reported.
            for (bytes, result) in visited {
                read += bytes;
                if !sink(result?, read)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Visited<Document> {
    fn map<T>(self, f: impl Fn(Document) -> Result<T, Error>) -> Result<Visited<T>, Error> {
        Ok(match self {
            Visited::Text(document) => Visited::Text(f(document)?),
            Visited::Empty => Visited::Empty,
            Visited::NotUtf8 => Visited::NotUtf8,
            Visited::Generated => Visited::Generated,
        })
    }
}

fn parse(raw: Raw, files: &[SourceFile]) -> Result<Visited<Document>, Error> {
    let SourceFile { path, format, .. } = &files[raw.file];
    let (file, line) = (raw.file, raw.line);
    let begins = raw.offset == 0 && *format != Format::Rust;
    let bytes = if begins { signature::text(raw.bytes, path)? } else { raw.bytes };
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) if *format == Format::Rust => return Ok(Visited::NotUtf8),
        Err(e) => return Err(not_utf8(path, line, raw.offset, &e)),
    };
    let (text, mended) = match format {
        Format::Text => (text, false),
        Format::Rust if cargo::is_generated(&text) => return Ok(Visited::Generated),
        Format::Rust => (text, false),
        Format::Jsonl(_) if text.trim().is_empty() => return Ok(Visited::Empty),
        Format::Jsonl(field) => jsonl::text_field(&text, field).map_err(|e| match e {
            jsonl::LineError::Json(message) => Error::BadJson { path: path.clone(), line, message },
            jsonl::LineError::NoField => {
                Error::NoField { path: path.clone(), line, field: field.clone() }
            }
        })?,
    };
    if text.is_empty() {
        return Ok(Visited::Empty);
    }
    Ok(Visited::Text(Document { file, line, text, mended }))
}

/// The error of bytes that begin at `offset` of the file, which is `line` of a JSONL file or the whole text.
fn not_utf8(path: &Path, line: u64, offset: u64, error: &FromUtf8Error) -> Error {
    let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let lines_before = good.iter().filter(|&&byte| byte == b'\n').count() as u64;
    Error::NotUtf8 {
        path: path.to_owned(),
        line: if line > 0 { line } else { lines_before + 1 },
        offset: offset + good.len() as u64,
    }
}

/// Reads files one after the other, JSONL files line by line.
struct Reader<'a> {
    files: &'a [SourceFile],
    next_file: usize,
    lines: Option<Lines>,
}

struct Lines {
    file: usize,
    reader: BufReader<File>,
    line: u64,
    offset: u64,
}

impl Reader<'_> {
    /// The next documents: at most `limit`, none at the end.
    fn chunk(&mut self, limit: u64) -> Result<Vec<Raw>, Error> {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let count = limit.min(CHUNK_DOCUMENTS as u64) as usize;
        while chunk.len() < count && bytes < CHUNK_BYTES {
            let Some(raw) = self.next()? else { break };
            bytes += raw.bytes.len();
            chunk.push(raw);
        }
        Ok(chunk)
    }

    fn next(&mut self) -> Result<Option<Raw>, Error> {
        loop {
            if let Some(lines) = &mut self.lines {
                if let Some(raw) = lines.next(self.files)? {
                    return Ok(Some(raw));
                }
                self.lines = None;
            }
            let file = self.next_file;
            let Some(SourceFile { path, format, .. }) = self.files.get(file) else {
                return Ok(None);
            };
            self.next_file += 1;
            if matches!(format, Format::Jsonl(_)) {
                let reader = BufReader::new(File::open(path).map_err(Error::read(path))?);
                self.lines = Some(Lines { file, reader, line: 0, offset: 0 });
            } else {
                let bytes = std::fs::read(path).map_err(Error::read(path))?;
                return Ok(Some(Raw { file, line: 0, offset: 0, bytes }));
            }
        }
    }
}

impl Lines {
    fn next(&mut self, files: &[SourceFile]) -> Result<Option<Raw>, Error> {
        let mut bytes = Vec::new();
        let path = &files[self.file].path;
        if self.reader.read_until(b'\n', &mut bytes).map_err(Error::read(path))? == 0 {
            return Ok(None);
        }
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        self.line += 1;
        Ok(Some(Raw { file: self.file, line: self.line, offset, bytes }))
    }
}
