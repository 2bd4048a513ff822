//! Token shards and the document index: how they are written, once, and read in place.
//!
//! A part (training or validation) is one stream of tokens, every document followed by end of document, cut into files
//! `<part>-00000.tokens`, ... of equal length (the last is shorter). `<part>.documents` has one record of four u64 per
//! document: first token, bytes of text, file (index into `files.json`), line (0: the whole file). All little-endian.

use crate::error::Error;
use crate::manifest::{FileSum, Manifest, PartSummary, hex};
use crate::mapped::Mapped;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3Default;

/// Tokens of a shard: 256 MiB of u16.
pub(crate) const SHARD_TOKENS: u64 = 1 << 27;

/// A file being written, with its checksum.
pub(crate) struct SummedFile {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Xxh3Default,
    bytes: u64,
}

impl SummedFile {
    pub(crate) fn create(path: PathBuf) -> Result<Self, Error> {
        let file = File::create(&path).map_err(Error::write(&path))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 18, file),
            hash: Xxh3Default::new(),
            bytes: 0,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(Error::write(&self.path))
    }

    /// Makes it durable; its name and sum are for the manifest.
    pub(crate) fn finish(mut self) -> Result<(String, FileSum), Error> {
        self.file.flush().map_err(Error::write(&self.path))?;
        self.file.get_ref().sync_all().map_err(Error::write(&self.path))?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, FileSum { bytes: self.bytes, xxh3: hex(self.hash.digest()) }))
    }
}

/// What the index says of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) first_token: u64,
    pub(crate) bytes: u64,
    pub(crate) file: u64,
    pub(crate) line: u64,
}

/// Layout of a part's files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// 2 or 4.
    pub(crate) token_bytes: usize,
    /// Tokens of a full shard.
    pub(crate) shard_tokens: u64,
}

impl Layout {
    /// The narrowest for a vocabulary.
    pub(crate) fn of(vocabulary_size: usize) -> Self {
        let token_bytes = if vocabulary_size <= 1 << 16 { 2 } else { 4 };
        Self { token_bytes, shard_tokens: SHARD_TOKENS }
    }
}

/// Writes one part.
pub(crate) struct PartWriter {
    folder: PathBuf,
    part: &'static str,
    layout: Layout,
    shard: Option<SummedFile>,
    index: SummedFile,
    sums: Vec<(String, FileSum)>,
    summary: PartSummary,
}

impl PartWriter {
    pub(crate) fn create(folder: &Path, part: &'static str, layout: Layout) -> Result<Self, Error> {
        let index = SummedFile::create(folder.join(format!("{part}.documents")))?;
        let (folder, summary) = (folder.to_owned(), PartSummary::default());
        Ok(Self { folder, part, layout, shard: None, index, sums: Vec::new(), summary })
    }

    /// Appends a document: its tokens, the last of which is end of document, and the length of its text.
    pub(crate) fn push(
        &mut self,
        tokens: &[u32],
        bytes: u64,
        file: u64,
        line: u64,
    ) -> Result<(), Error> {
        let record = [self.summary.tokens, bytes, file, line];
        self.index.write(bytemuck::cast_slice(&record))?;
        self.summary.documents += 1;
        self.summary.bytes += bytes;
        let mut rest = tokens;
        while !rest.is_empty() {
            let room = self.layout.shard_tokens - self.summary.tokens % self.layout.shard_tokens;
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            self.write_tokens(now)?;
            rest = later;
        }
        Ok(())
    }

    /// Tokens that fit into the current shard.
    fn write_tokens(&mut self, tokens: &[u32]) -> Result<(), Error> {
        if self.summary.tokens.is_multiple_of(self.layout.shard_tokens) {
            let number = self.summary.tokens / self.layout.shard_tokens;
            let path = self.folder.join(shard_name(self.part, number));
            if let Some(full) = self.shard.replace(SummedFile::create(path)?) {
                self.sums.push(full.finish()?);
            }
        }
        let shard = self.shard.as_mut().expect("a shard was opened at token 0");
        if self.layout.token_bytes == 2 {
            let narrow: Vec<u16> = tokens.iter().map(|&token| token as u16).collect();
            shard.write(bytemuck::cast_slice(&narrow))?;
        } else {
            shard.write(bytemuck::cast_slice(tokens))?;
        }
        self.summary.tokens += tokens.len() as u64;
        Ok(())
    }

    /// Makes the part durable; the sums of its files are for the manifest.
    pub(crate) fn finish(mut self) -> Result<(PartSummary, Vec<(String, FileSum)>), Error> {
        if let Some(last) = self.shard {
            self.sums.push(last.finish()?);
        }
        self.sums.push(self.index.finish()?);
        Ok((self.summary, self.sums))
    }
}

fn shard_name(part: &str, number: u64) -> String {
    format!("{part}-{number:05}.tokens")
}

/// One part, mapped.
#[derive(Debug)]
pub(crate) struct Part {
    shards: Vec<Mapped>,
    layout: Layout,
    tokens: u64,
    index: Mapped,
}

impl Part {
    pub(crate) fn open(folder: &Path, part: &str, manifest: &Manifest) -> Result<Self, Error> {
        let summary = if part == "training" { manifest.training } else { manifest.validation };
        let layout =
            Layout { token_bytes: manifest.token_bytes, shard_tokens: manifest.shard_tokens };
        let open = |name: &str, bytes: u64| {
            let listed = manifest.sum(folder, name)?.bytes;
            if listed == bytes {
                Mapped::open(&folder.join(name), bytes)
            } else {
                let what = format!("is listed with {listed} bytes instead of {bytes}");
                Err(Error::corrupt(&folder.join(name), what))
            }
        };
        let mut shards = Vec::new();
        for number in 0..summary.tokens.div_ceil(layout.shard_tokens) {
            let tokens = (summary.tokens - number * layout.shard_tokens).min(layout.shard_tokens);
            shards.push(open(&shard_name(part, number), tokens * layout.token_bytes as u64)?);
        }
        let index = open(&format!("{part}.documents"), summary.documents * 32)?;
        Ok(Self { shards, layout, tokens: summary.tokens, index })
    }

    /// Tokens of the part.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Copies the tokens from `start` on into `out`. Panics beyond the end.
    pub(crate) fn read(&self, start: u64, out: &mut [i64]) {
        assert!(start + out.len() as u64 <= self.tokens, "read beyond the end of the tokens");
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let shard = &self.shards[(at / self.layout.shard_tokens) as usize];
            let from = (at % self.layout.shard_tokens) as usize;
            let count = rest.len().min((self.layout.shard_tokens as usize) - from);
            let (now, later) = rest.split_at_mut(count);
            if self.layout.token_bytes == 2 {
                widen(&shard.as_slice::<u16>()[from..from + count], now);
            } else {
                widen(&shard.as_slice::<u32>()[from..from + count], now);
            }
            at += count as u64;
            rest = later;
        }
    }

    /// Documents of the part.
    pub(crate) fn documents(&self) -> u64 {
        self.index.as_slice::<[u64; 4]>().len() as u64
    }

    /// The record of a document.
    pub(crate) fn record(&self, document: u64) -> Record {
        let [first_token, bytes, file, line] = self.index.as_slice::<[u64; 4]>()[document as usize];
        Record { first_token, bytes, file, line }
    }

    /// Refuses an index whose documents are not in order, or come from files beyond the first `files`.
    pub(crate) fn verify_index(&self, files: usize) -> Result<(), Error> {
        let mut next = 0;
        for (document, [first_token, _, file, _]) in
            self.index.as_slice::<[u64; 4]>().iter().enumerate()
        {
            let in_order = if document == 0 { *first_token == 0 } else { *first_token >= next };
            if !in_order || *first_token >= self.tokens || *file >= files as u64 {
                let what =
                    format!("places document {document} at token {first_token} of file {file}");
                return Err(Error::corrupt(self.index.path(), what));
            }
            next = first_token + 1;
        }
        Ok(())
    }

    /// The documents that have a token in `tokens`.
    pub(crate) fn documents_of(&self, tokens: &Range<u64>) -> Range<u64> {
        if tokens.is_empty() {
            return 0..0;
        }
        let records = self.index.as_slice::<[u64; 4]>();
        let first = records.partition_point(|r| r[0] <= tokens.start) - 1;
        first as u64..records.partition_point(|r| r[0] < tokens.end) as u64
    }
}

fn widen<T: Copy + Into<i64>>(from: &[T], to: &mut [i64]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_reported_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("training-00000.tokens")).unwrap();
        let mut writer = PartWriter::create(dir.path(), "training", Layout::of(257)).unwrap();
        writer.push(&[1, 2, 256], 2, 0, 0).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(
            matches!(&error, Error::Write { path, source }
                if path.ends_with("training-00000.tokens")
                && source.kind() == std::io::ErrorKind::StorageFull),
            "{error}"
        );
        assert!(error.to_string().contains("free some space"), "{error}");
    }
}
