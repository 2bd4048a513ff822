//! Writes the pieces of one rank into its data file: laid out one after another, cut into chunks, gathered, hashed and
//! written chunk by chunk by a few threads.
//!
//! Per byte that is one copy and one hash (about 10 GB/s each on one core) against a disk of one to a few GB/s, and
//! memory of one chunk per thread.

use crate::aligned::Aligned;
use crate::disk::{ALIGN_BYTES, Access, Disk, DiskFile};
use crate::error::{Error, Result};
use crate::format::{
    CHUNK_BYTES, CheckpointId, Checksum, PIECE_ALIGN_BYTES, PieceEntry, ShardEntry, ShardIndex,
    check_length, data_file, index_file,
};
use crate::read::read_index;
use crate::run::Run;
use crate::tensors::Kind;
use lampyris_plan::Rank;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_endian = "big")]
compile_error!("data files are little-endian and are written as they lie in memory");

/// Elements of a tensor in host memory.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Hugging Face name.
    pub tensor: &'a str,
    /// What the values are.
    pub kind: Kind,
    /// First element in the whole tensor.
    pub start: u64,
    /// The values.
    pub data: &'a [f32],
}

/// How transfers are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Threads that read or write: the number of transfers in flight. They mostly wait, so it is no number of cores.
    pub threads: usize,
    /// Size of a chunk when writing, a multiple of [`ALIGN_BYTES`].
    pub chunk_bytes: usize,
}

impl Default for Transfer {
    fn default() -> Transfer {
        Transfer { threads: 4, chunk_bytes: CHUNK_BYTES }
    }
}

/// What one rank wrote; every rank's report goes to the one that commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// The checkpoint it belongs to.
    pub id: CheckpointId,
    /// Lengths and checksum of the files.
    pub entry: ShardEntry,
    /// Where the pieces lie, so that the committer can tell whether anything is missing.
    pub index: ShardIndex,
}

impl Run {
    /// Writes and syncs the files of `rank` in the unfinished checkpoint `id`. The ranks of a run do it in any order, and
    /// then one of them commits.
    ///
    /// # Errors
    /// [`Error::Exists`] if `id` is committed already; failures of the disk. What was written stays: the rank that
    /// commits removes the unfinished checkpoint as a whole ([`Run::abandon`]).
    pub fn write_shard(
        &self,
        id: CheckpointId,
        rank: Rank,
        pieces: &[Piece<'_>],
        transfer: Transfer,
    ) -> Result<ShardReport> {
        let dir = self.begin(id)?;
        write_files(self.disk().as_ref(), &dir, (id, rank), pieces, transfer)
    }

    /// The report of another rank that says it wrote `entry` for checkpoint `of`: its index is read from the unfinished
    /// checkpoint `id` and checked.
    pub(crate) fn report_of(
        &self,
        id: CheckpointId,
        of: CheckpointId,
        entry: &ShardEntry,
    ) -> Result<ShardReport> {
        let dir = self.temporary_path(id);
        // Another step's index is not the one here; `commit` says so.
        if of != id {
            let problem = format!("rank {} wrote {of}, not {id}", entry.rank);
            return Err(Error::Incomplete { problem });
        }
        let index =
            read_index(self.disk().as_ref(), &dir, entry).map_err(|e| match e.is_corrupt() {
                true => Error::Incomplete {
                    problem: format!("{e}; do all nodes see the same run directory?"),
                },
                false => e,
            })?;
        Ok(ShardReport { id, entry: entry.clone(), index })
    }
}

pub(crate) fn write_files(
    disk: &dyn Disk,
    dir: &Path,
    (id, rank): (CheckpointId, Rank),
    pieces: &[Piece<'_>],
    transfer: Transfer,
) -> Result<ShardReport> {
    let layout = Layout::new(pieces, transfer.chunk_bytes);
    let chunks = layout.write(disk, &dir.join(data_file(rank)), transfer.threads)?;
    let index = ShardIndex { chunk_bytes: layout.chunk_bytes, chunks, pieces: layout.entries };
    let text = serde_json::to_vec(&index)
        .map_err(|e| Error::Incomplete { problem: format!("the index has no JSON form: {e}") })?;
    check_length(&text)?;
    write_small(disk, &dir.join(index_file(rank)), &text)?;
    let entry = ShardEntry {
        rank,
        data_bytes: layout.bytes,
        index_bytes: text.len() as u64,
        index_xxh3: Checksum::of(&text),
    };
    Ok(ShardReport { id, entry, index })
}

/// Writes and syncs a small file.
pub(crate) fn write_small(disk: &dyn Disk, path: &Path, content: &[u8]) -> Result<()> {
    let file = create_anew(disk, path, Access::Plain)?;
    file.write_at(0, content).map_err(|e| Error::io("writing", path, e))?;
    file.sync().map_err(|e| Error::io("syncing", path, e))
}

/// Creates a file of this rank and attempt; one that is there is left from a save of the same step that failed.
fn create_anew(disk: &dyn Disk, path: &Path, access: Access) -> Result<Box<dyn DiskFile>> {
    let made = match disk.create(path, access) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove_file(path).map_err(|e| Error::io("removing", path, e))?;
            disk.create(path, access)
        }
        other => other,
    };
    made.map_err(|e| Error::io("creating", path, e))
}

/// Where each piece lies in the data file.
struct Layout<'a> {
    pieces: &'a [Piece<'a>],
    entries: Vec<PieceEntry>,
    bytes: u64,
    chunk_bytes: usize,
}

impl<'a> Layout<'a> {
    fn new(pieces: &'a [Piece<'a>], chunk_bytes: usize) -> Layout<'a> {
        assert!(chunk_bytes > 0 && chunk_bytes.is_multiple_of(ALIGN_BYTES), "{chunk_bytes}");
        let mut bytes = 0;
        let place = |piece: &Piece<'_>| {
            let offset = bytes;
            bytes = (offset + piece.data.len() as u64 * 4).next_multiple_of(PIECE_ALIGN_BYTES);
            PieceEntry {
                tensor: piece.tensor.to_string(),
                kind: piece.kind,
                start: piece.start,
                len: piece.data.len() as u64,
                offset,
            }
        };
        let entries = pieces.iter().map(place).collect();
        Layout { pieces, entries, bytes: bytes.next_multiple_of(ALIGN_BYTES as u64), chunk_bytes }
    }

    fn write(&self, disk: &dyn Disk, path: &Path, threads: usize) -> Result<Vec<Checksum>> {
        let file = create_anew(disk, path, Access::Bulk)?;
        let count = self.bytes.div_ceil(self.chunk_bytes as u64) as usize;
        if self.bytes > 0 {
            file.reserve(self.bytes).map_err(|e| Error::io("writing", path, e))?;
        }
        let next = AtomicUsize::new(0);
        let work = || self.write_some(file.as_ref(), &next, count);
        let done = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads.min(count)).map(|_| scope.spawn(work)).collect();
            let mut done = vec![work()];
            done.extend(helpers.into_iter().map(|h| h.join().expect("a writer does not panic")));
            done
        });
        let mut checksums = vec![Checksum(0); count];
        for part in done {
            for (chunk, checksum) in part.map_err(|e| Error::io("writing", path, e))? {
                checksums[chunk] = checksum;
            }
        }
        file.sync().map_err(|e| Error::io("syncing", path, e))?;
        Ok(checksums)
    }

    /// One thread: takes chunks until none is left.
    fn write_some(
        &self,
        file: &dyn DiskFile,
        next: &AtomicUsize,
        count: usize,
    ) -> io::Result<Vec<(usize, Checksum)>> {
        let mut buffer = Aligned::new(self.chunk_bytes.min(self.bytes as usize));
        let mut done = Vec::new();
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= count {
                return Ok(done);
            }
            let offset = (chunk * self.chunk_bytes) as u64;
            let length = (self.bytes - offset).min(self.chunk_bytes as u64) as usize;
            let bytes = &mut buffer.bytes()[..length];
            self.gather(offset, bytes);
            done.push((chunk, Checksum::of(bytes)));
            if let Err(e) = file.write_at(offset, bytes) {
                // The other threads stop too.
                next.store(count, Ordering::Relaxed);
                return Err(e);
            }
        }
    }

    /// Fills `out` with the bytes of the file from `offset` on.
    fn gather(&self, offset: u64, out: &mut [u8]) {
        let end = offset + out.len() as u64;
        let first = self.entries.partition_point(|entry| entry.end_offset() <= offset);
        let mut filled = 0;
        for (entry, piece) in self.entries[first..].iter().zip(&self.pieces[first..]) {
            if entry.offset >= end {
                break;
            }
            let from = offset.max(entry.offset);
            let to = end.min(entry.end_offset());
            let at = (from - offset) as usize;
            let source: &[u8] = bytemuck::cast_slice(piece.data);
            let source = &source[(from - entry.offset) as usize..(to - entry.offset) as usize];
            out[filled..at].fill(0);
            out[at..at + source.len()].copy_from_slice(source);
            filled = at + source.len();
        }
        out[filled..].fill(0);
    }
}
