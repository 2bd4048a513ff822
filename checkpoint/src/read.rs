//! Reads any part of any tensor from a checkpoint, whatever layout wrote it.
//!
//! A load is a set of ranges. They are cut along the chunks that hold them, each chunk is read once, checked against its
//! checksum, and copied to where its ranges belong; a few threads take chunks in file order.

use crate::agreement::{self, Extent};
use crate::aligned::Aligned;
use crate::disk::{self, Access, Disk, DiskFile};
use crate::error::{Error, Result};
use crate::format::{
    CheckpointId, Checksum, MANIFEST_FILE, MAX_JSON_BYTES, Manifest, PieceEntry, ShardEntry,
    ShardIndex, data_file, index_file, parse, unseal,
};
use crate::lineage::MAX_ATTEMPT;
use crate::tensors::Kind;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A range of a tensor to be filled.
#[derive(Debug)]
pub struct Request<'a, D = &'a mut [f32]> {
    /// Hugging Face name.
    pub tensor: &'a str,
    /// What the values are.
    pub kind: Kind,
    /// First element in the whole tensor.
    pub start: u64,
    /// Where the values go.
    pub out: D,
}

/// Where the values of a range go: memory of some elements, of any type and on any device. Values reach it part by part, in
/// any order, from several threads at once.
pub trait Destination: Send + Sized {
    /// Number of elements.
    fn elements(&self) -> usize;

    /// The first `count` elements, and the others.
    fn split_at(self, count: usize) -> (Self, Self);

    /// Takes the value of every element.
    fn fill(self, values: &[f32]);
}

impl Destination for &mut [f32] {
    fn elements(&self) -> usize {
        self.len()
    }

    fn split_at(self, count: usize) -> (Self, Self) {
        self.split_at_mut(count)
    }

    fn fill(self, values: &[f32]) {
        self.copy_from_slice(values);
    }
}

/// An open checkpoint whose manifest, indexes and file lengths are known to be right and to make sense together
/// (`agreement.rs`). Values are checked as they are read.
#[derive(Debug)]
pub struct Reader {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// Pieces of each tensor by rising start: (shard, piece).
    pieces: HashMap<(String, Kind), Vec<(usize, usize)>>,
    /// The chunk that [`Reader::read`] read last.
    last: Mutex<Option<(ChunkId, Vec<f32>)>>,
}

#[derive(Debug)]
struct Shard {
    file: String,
    bytes: u64,
    index: ShardIndex,
}

/// (shard, chunk): sorts in file order.
type ChunkId = (usize, usize);

/// Part of a request inside one chunk.
struct Cut<D> {
    /// First element in the chunk.
    at: usize,
    out: D,
}

impl<D: Destination> Cut<D> {
    fn fill(self, chunk: &[f32]) {
        let values = &chunk[self.at..self.at + self.out.elements()];
        self.out.fill(values);
    }
}

/// What is wanted of each chunk.
type Chunks<D> = BTreeMap<ChunkId, Vec<Cut<D>>>;

impl Reader {
    /// Opens the committed checkpoint in `dir`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names the file that is missing, truncated, altered or makes no sense; [`Error::NewerFormat`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Reader> {
        Reader::open_extent(Extent::Whole, disk, dir)
    }

    /// Opens a folder that holds the shards of some ranks of a checkpoint, as in the memory of a node.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub(crate) fn open_part(disk: Arc<dyn Disk>, dir: &Path) -> Result<Reader> {
        Reader::open_extent(Extent::Part, disk, dir)
    }

    fn open_extent(extent: Extent, disk: Arc<dyn Disk>, dir: &Path) -> Result<Reader> {
        let manifest = read_manifest(disk.as_ref(), dir)?;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        for entry in &manifest.shards {
            shards.push(Shard::open(disk.as_ref(), dir, entry)?);
        }
        let indexes = shards.iter().map(|shard| &shard.index);
        let agreeing: Vec<_> = manifest.shards.iter().zip(indexes).collect();
        agreement::check(extent, &manifest.tensors, manifest.world, &agreeing)
            .map_err(|problem| Error::corrupt(dir, &problem.file, problem.what))?;
        let mut pieces: HashMap<(String, Kind), Vec<(usize, usize)>> = HashMap::new();
        for (shard, held) in shards.iter().enumerate() {
            for (piece, entry) in held.index.pieces.iter().enumerate() {
                pieces.entry((entry.tensor.clone(), entry.kind)).or_default().push((shard, piece));
            }
        }
        for held in pieces.values_mut() {
            // An empty piece stands before the one that begins at the same element.
            held.sort_by_key(|&(shard, piece)| {
                let piece = &shards[shard].index.pieces[piece];
                (piece.start, piece.len)
            });
        }
        let dir = dir.to_path_buf();
        Ok(Reader { disk, dir, manifest, shards, pieces, last: Mutex::new(None) })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the checkpoint says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What a reader of its values says who finds that they make no sense.
    pub fn damaged(&self, problem: String) -> Error {
        Error::corrupt(&self.dir, MANIFEST_FILE, problem)
    }

    /// Bytes of all data files.
    pub fn data_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Fills all requests with `threads` threads. Each chunk that they touch is read once, into a buffer of its thread, and
    /// its values go from there to their destinations: what this needs beside them is one chunk per thread.
    ///
    /// # Errors
    /// [`Error::NotSaved`] if a range is not in the checkpoint; nothing was filled. [`Error::Corrupt`] with file, chunk and
    /// the tensors it touches; any part of the destinations may then be filled, with values of chunks that are good.
    pub fn load<D: Destination>(
        &self,
        requests: Vec<Request<'_, D>>,
        threads: usize,
    ) -> Result<()> {
        let mut chunks = BTreeMap::new();
        for request in requests {
            self.cut(request, &mut chunks)?;
        }
        self.each_chunk(chunks, threads, |chunk, cuts| {
            let chunk = chunk?;
            for cut in cuts {
                cut.fill(chunk);
            }
            Ok(())
        })
    }

    /// Fills one range, for readers that go through a checkpoint in small steps: the chunk read last is kept.
    ///
    /// # Errors
    /// As [`Reader::load`].
    pub fn read(&self, tensor: &str, kind: Kind, start: u64, out: &mut [f32]) -> Result<()> {
        let mut chunks = BTreeMap::new();
        self.cut(Request { tensor, kind, start, out }, &mut chunks)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, cuts) in chunks {
            if last.as_ref().is_none_or(|(held, _)| *held != id) {
                let file = self.open_data(id.0)?;
                let mut buffer = Aligned::new(self.chunk_length(id));
                *last = Some((id, self.checked_chunk(file.as_ref(), id, &mut buffer)?.to_vec()));
            }
            let chunk = last.as_ref().map_or(&[] as &[f32], |(_, chunk)| chunk);
            for cut in cuts {
                cut.fill(chunk);
            }
        }
        Ok(())
    }

    /// Reads every byte, compares every checksum and returns what is wrong, in no particular order; empty if all is well.
    ///
    /// # Errors
    /// The disk fails otherwise than by missing or short files.
    pub fn verify(&self, threads: usize) -> Result<Vec<Error>> {
        let all = self.shards.iter().enumerate();
        let chunks = all.flat_map(|(shard, held)| {
            (0..held.index.chunks.len()).map(move |chunk| ((shard, chunk), ()))
        });
        let problems = Mutex::new(Vec::new());
        self.each_chunk(chunks.collect(), threads, |chunk, ()| match chunk {
            Err(e) if e.is_corrupt() => {
                problems.lock().unwrap_or_else(PoisonError::into_inner).push(e);
                Ok(())
            }
            other => other.map(drop),
        })?;
        Ok(problems.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Cuts a request along pieces and chunks.
    fn cut<D: Destination>(&self, request: Request<'_, D>, chunks: &mut Chunks<D>) -> Result<()> {
        let Request { tensor, kind, mut start, mut out } = request;
        let held = self.pieces.get(&(tensor.to_string(), kind)).map_or(&[] as &[_], Vec::as_slice);
        let entry = |&(shard, piece): &(usize, usize)| &self.shards[shard].index.pieces[piece];
        let mut next = held.partition_point(|place| {
            let piece = entry(place);
            piece.start + piece.len <= start
        });
        while out.elements() > 0 {
            let Some(place) = held.get(next).filter(|place| entry(place).start <= start) else {
                return Err(self.not_saved(tensor, kind, start, out.elements()));
            };
            let piece: &PieceEntry = entry(place);
            let chunk_bytes = self.shards[place.0].index.chunk_bytes as u64;
            let offset = piece.offset + (start - piece.start) * 4;
            let end = piece.end_offset().min((offset / chunk_bytes + 1) * chunk_bytes);
            let count = out.elements().min(((end - offset) / 4) as usize);
            let (now, later) = out.split_at(count);
            let id = (place.0, (offset / chunk_bytes) as usize);
            let at = (offset % chunk_bytes / 4) as usize;
            chunks.entry(id).or_default().push(Cut { at, out: now });
            start += count as u64;
            out = later;
            if start == piece.start + piece.len {
                next += 1;
            }
        }
        Ok(())
    }

    fn not_saved(&self, tensor: &str, kind: Kind, start: u64, len: usize) -> Error {
        Error::NotSaved {
            dir: self.dir.clone(),
            tensor: tensor.to_string(),
            kind,
            range: start..start + len as u64,
        }
    }

    /// Reads and checks chunks with some threads, in file order, and hands each to `take`. Stops at the first error.
    fn each_chunk<T: Send>(
        &self,
        chunks: BTreeMap<ChunkId, T>,
        threads: usize,
        take: impl Fn(Result<&[f32]>, T) -> Result<()> + Sync,
    ) -> Result<()> {
        let largest = chunks.keys().map(|&id| self.chunk_length(id)).max().unwrap_or(0);
        let count = chunks.len();
        let queue = Mutex::new(chunks.into_iter());
        let pop = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut buffer = Aligned::new(largest);
            let mut open: Option<(usize, Box<dyn DiskFile>)> = None;
            while let Some((id, destination)) = pop() {
                let file = match open.take() {
                    Some((shard, file)) if shard == id.0 => file,
                    _ => self.open_data(id.0)?,
                };
                take(self.checked_chunk(file.as_ref(), id, &mut buffer), destination)?;
                open = Some((id.0, file));
            }
            Ok(())
        };
        let until_error = || {
            let done: Result<()> = work();
            if done.is_err() {
                while pop().is_some() {}
            }
            done
        };
        std::thread::scope(|scope| {
            let helpers: Vec<_> =
                (1..threads.min(count)).map(|_| scope.spawn(until_error)).collect();
            let mut done = until_error();
            for helper in helpers {
                done = done.and(helper.join().expect("a reader does not panic"));
            }
            done
        })
    }

    fn open_data(&self, shard: usize) -> Result<Box<dyn DiskFile>> {
        let file = &self.shards[shard].file;
        open_part(self.disk.as_ref(), &self.dir, file, Access::Bulk)
    }

    fn chunk_length(&self, (shard, chunk): ChunkId) -> usize {
        let Shard { bytes, index, .. } = &self.shards[shard];
        (bytes - (chunk * index.chunk_bytes) as u64).min(index.chunk_bytes as u64) as usize
    }

    fn checked_chunk<'b>(
        &self,
        file: &dyn DiskFile,
        id: ChunkId,
        buffer: &'b mut Aligned,
    ) -> Result<&'b [f32]> {
        let shard = &self.shards[id.0];
        let offset = (id.1 * shard.index.chunk_bytes) as u64;
        let bytes = &mut buffer.bytes()[..self.chunk_length(id)];
        file.read_at(offset, bytes).map_err(|e| reading(&self.dir, &shard.file, e))?;
        let (found, written) = (Checksum::of(bytes), shard.index.chunks[id.1]);
        if found == written {
            // Pages, and whole ones: so the length and the alignment are those of elements.
            return Ok(bytemuck::cast_slice(bytes));
        }
        let end = offset + bytes.len() as u64;
        let touched =
            shard.index.pieces.iter().filter(|p| p.offset < end && p.end_offset() > offset);
        let mut names: Vec<String> = touched.map(|p| format!("{} {}", p.tensor, p.kind)).collect();
        if names.len() > 3 {
            let more = names.len() - 3;
            names.truncate(3);
            names.push(format!("{more} more"));
        }
        let problem = format!(
            "chunk {} (bytes {offset}..{end}: {}) has checksum {found}, {written} was written",
            id.1,
            names.join(", ")
        );
        Err(Error::corrupt(&self.dir, &shard.file, problem))
    }
}

impl Shard {
    fn open(disk: &dyn Disk, dir: &Path, entry: &ShardEntry) -> Result<Shard> {
        let index = read_index(disk, dir, entry)?;
        let file = data_file(entry.rank);
        let bytes = open_part(disk, dir, &file, Access::Plain)?
            .length()
            .map_err(|e| reading(dir, &file, e))?;
        if bytes != entry.data_bytes {
            let problem = format!("it has {bytes} bytes, {} were written", entry.data_bytes);
            return Err(Error::corrupt(dir, &file, problem));
        }
        Ok(Shard { file, bytes, index })
    }
}

/// Reads and checks the index of a rank.
pub(crate) fn read_index(disk: &dyn Disk, dir: &Path, entry: &ShardEntry) -> Result<ShardIndex> {
    let name = index_file(entry.rank);
    let text = read_whole(disk, dir, &name)?;
    let found = Checksum::of(&text);
    if text.len() as u64 != entry.index_bytes || found != entry.index_xxh3 {
        let problem = format!("its checksum is {found}, {} was written", entry.index_xxh3);
        return Err(Error::corrupt(dir, &name, problem));
    }
    parse(dir, &name, &text)
}

/// Reads and checks only the manifest of the checkpoint in `dir`.
pub(crate) fn read_manifest(disk: &dyn Disk, dir: &Path) -> Result<Manifest> {
    let manifest = unseal(dir, &read_whole(disk, dir, MANIFEST_FILE)?)?;
    check_id(dir, &manifest)?;
    Ok(manifest)
}

/// A folder that is named like a checkpoint holds that one; any other name is a person's choice.
fn check_id(dir: &Path, manifest: &Manifest) -> Result<()> {
    let id = manifest.id;
    let name = dir.file_name().and_then(OsStr::to_str);
    let name: Option<CheckpointId> = name.and_then(|name| name.parse().ok());
    let problem = match name {
        Some(named) if named != id => format!("it is of {id}, under the name of another one"),
        _ if id.attempt > MAX_ATTEMPT => format!("no attempt is numbered {}", id.attempt),
        _ => match manifest.parent {
            Some(parent) if parent.attempt >= id.attempt => {
                format!("{id} cannot have begun from {parent}")
            }
            _ => return Ok(()),
        },
    };
    Err(Error::corrupt(dir, MANIFEST_FILE, problem))
}

pub(crate) fn read_whole(disk: &dyn Disk, dir: &Path, file: &str) -> Result<Vec<u8>> {
    disk::read_whole(disk, &dir.join(file), MAX_JSON_BYTES).map_err(|e| reading(dir, file, e))
}

fn open_part(disk: &dyn Disk, dir: &Path, file: &str, access: Access) -> Result<Box<dyn DiskFile>> {
    disk.open(&dir.join(file), access).map_err(|e| reading(dir, file, e))
}

/// A file that is missing, ends early, or is not what a file of a checkpoint is, is corruption; anything else is the disk's
/// failure.
fn reading(dir: &Path, file: &str, e: io::Error) -> Error {
    match e.kind() {
        // Where a file lies in the place of the folder, it has no files either.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::corrupt(dir, file, "it is missing".to_string())
        }
        io::ErrorKind::InvalidData => Error::corrupt(dir, file, e.to_string()),
        io::ErrorKind::UnexpectedEof => Error::corrupt(dir, file, "it ends early".to_string()),
        _ => Error::io("reading", &dir.join(file), e),
    }
}
