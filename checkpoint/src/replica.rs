//! Snapshots in the memory of nodes, between checkpoints (as in Gemini, SOSP 2023): each rank keeps its shard in a folder in
//! memory (a tmpfs) of its own node and of the next one, so that losing a node loses nothing.
//!
//! ```text
//! MEMORY/RUN/node-N/rank-R/step-S.attempt-A/    rank-R.data  rank-R.index.json  manifest.json
//! ```
//!
//! Each folder is a checkpoint of format 1 that holds the shard of one rank and no other. A folder appears by one rename, and
//! older ones go only when all ranks keep the new one. Files in a tmpfs outlive every process of the node, and need none to
//! hold them; they are gone with the node, with a finished run, or when the next attempt has started
//! ([`Run::restore`](crate::Run::restore)).

use crate::aligned::Aligned;
use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Result};
use crate::format::{
    CHUNK_BYTES, CheckpointId, Checksum, MANIFEST_FILE, MAX_JSON_BYTES, Manifest, data_file,
    index_file, seal,
};
use crate::read::read_whole;
use crate::run::already;
use crate::shard::{Piece, Transfer, write_files, write_small};
use bytemuck::{bytes_of, bytes_of_mut};
use lampyris_plan::Rank;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sends the first bytes to this rank's counterpart on the next node and fills the second with what its counterpart on the
/// previous node sends; either may be empty. Called from the saver's thread: it needs a communication group of its own.
pub type Shift = Box<
    dyn FnMut(&[u8], &mut [u8]) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>
        + Send,
>;

/// The folder in memory of one run on one host.
#[derive(Debug, Clone)]
pub struct HostMemory {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// The counterpart of a rank on the previous node.
pub struct Neighbour {
    /// Whose shard arrives here.
    pub rank: Rank,
    /// How it does.
    pub shift: Shift,
}

/// What one rank keeps in memory, and passes on.
#[derive(Debug)]
pub struct Replica {
    memory: HostMemory,
    node: usize,
    /// None where there is one node: its own memory still outlives its ranks.
    neighbour: Option<Neighbour>,
    held: Option<CheckpointId>,
}

impl fmt::Debug for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of the node before", self.rank)
    }
}

impl HostMemory {
    /// Of the run at `run_dir`, below `base`, which is in memory.
    pub fn of_run(disk: Arc<dyn Disk>, base: &Path, run_dir: &Path) -> HostMemory {
        let name = Checksum::of(run_dir.as_os_str().as_encoded_bytes());
        HostMemory { disk, dir: base.join(name.to_string()) }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    fn rank_dir(&self, node: usize, rank: Rank) -> PathBuf {
        self.dir.join(format!("node-{node}")).join(format!("rank-{rank}"))
    }

    /// The shards that this host holds: of whichever node it was.
    pub(crate) fn held(&self) -> BTreeMap<CheckpointId, Vec<(Rank, PathBuf)>> {
        let names = |dir: &Path| self.disk.list(dir).unwrap_or_default();
        let mut held: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for node in names(&self.dir) {
            let node = self.dir.join(node);
            for rank in names(&node) {
                let dir = node.join(&rank);
                let Some(Ok(rank)) = rank.strip_prefix("rank-").map(str::parse) else { continue };
                for name in names(&dir) {
                    if let Ok(id) = name.parse() {
                        held.entry(id).or_default().push((Rank(rank), dir.join(name)));
                    }
                }
            }
        }
        held
    }

    /// Removes everything of this run. Several ranks may do it at once.
    pub fn clear(&self) {
        // What is left costs memory, and the next attempt tries again.
        remove_tree(self.disk.as_ref(), &self.dir);
    }
}

fn remove_tree(disk: &dyn Disk, path: &Path) {
    match disk.list(path) {
        Ok(names) => {
            names.iter().for_each(|name| remove_tree(disk, &path.join(name)));
            disk.remove_dir(path).ok();
        }
        Err(_) => {
            disk.remove_file(path).ok();
        }
    }
}

/// What is sent before the files: their lengths, all 0 if the sender has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Lengths {
    data: u64,
    index: u64,
    manifest: u64,
}

impl Lengths {
    fn chunks(&self) -> u64 {
        self.data.div_ceil(CHUNK_BYTES as u64)
    }

    /// The bytes of a chunk; none past the end.
    fn chunk(&self, nth: u64) -> usize {
        let begin = nth * CHUNK_BYTES as u64;
        self.data.saturating_sub(begin).min(CHUNK_BYTES as u64) as usize
    }
}

/// The files of one rank, open to be sent.
struct Files {
    lengths: Lengths,
    data: Box<dyn DiskFile>,
    index: Vec<u8>,
    manifest: Vec<u8>,
}

impl Replica {
    /// Keeps shards in `memory` of node `node`.
    pub fn new(memory: HostMemory, node: usize, neighbour: Option<Neighbour>) -> Replica {
        Replica { memory, node, neighbour, held: None }
    }

    /// Whether all ranks keep this snapshot already.
    pub(crate) fn holds(&self, id: CheckpointId) -> bool {
        self.held == Some(id)
    }

    /// Keeps `pieces` of `rank` here and on the next node, and the previous node's shard here. `manifest` has no shards
    /// yet; it is an error where this rank cannot even say what it would save. Older ones stay ([`Replica::agreed`]).
    ///
    /// # Errors
    /// The memory is full; the previous node had nothing to send; a peer is gone. All ranks make the call to its end unless
    /// a peer is gone.
    pub(crate) fn keep(
        &mut self,
        manifest: Result<Manifest>,
        (id, rank): (CheckpointId, Rank),
        pieces: &[Piece<'_>],
        transfer: Transfer,
    ) -> Result<()> {
        let own = manifest.and_then(|manifest| self.write_own(&manifest, rank, pieces, transfer));
        let taken = self.pass_on(id, own.as_ref().ok());
        own?;
        taken
    }

    fn write_own(
        &self,
        manifest: &Manifest,
        rank: Rank,
        pieces: &[Piece<'_>],
        transfer: Transfer,
    ) -> Result<Files> {
        let disk = self.memory.disk.as_ref();
        let (id, dir) = (manifest.id, self.begin(manifest.id, rank)?);
        let report = write_files(disk, &dir, (id, rank), pieces, transfer)?;
        let text = seal(&Manifest { shards: vec![report.entry.clone()], ..manifest.clone() })?;
        write_small(disk, &dir.join(MANIFEST_FILE), &text)?;
        let dir = self.end(id, rank)?;
        let index = read_whole(disk, &dir, &index_file(rank))?;
        let path = dir.join(data_file(rank));
        let data = disk.open(&path, Access::Bulk).map_err(|e| Error::io("reading", &path, e))?;
        let (data_bytes, index_bytes) = (report.entry.data_bytes, index.len() as u64);
        let lengths = Lengths { data: data_bytes, index: index_bytes, manifest: text.len() as u64 };
        Ok(Files { lengths, data, index, manifest: text })
    }

    /// A fresh folder for the shard of `rank`.
    fn begin(&self, id: CheckpointId, rank: Rank) -> Result<PathBuf> {
        let disk = self.memory.disk.as_ref();
        let dir = self.memory.rank_dir(self.node, rank);
        let path = dir.join(format!(".{id}.tmp"));
        remove_tree(disk, &path);
        for folder in [self.memory.dir.as_path(), dir.parent().unwrap_or(&dir), &dir, &path] {
            already(disk.create_dir(folder)).map_err(|e| Error::io("creating", folder, e))?;
        }
        Ok(path)
    }

    /// Gives it its name.
    fn end(&self, id: CheckpointId, rank: Rank) -> Result<PathBuf> {
        let dir = self.memory.rank_dir(self.node, rank);
        let target = dir.join(id.to_string());
        let from = dir.join(format!(".{id}.tmp"));
        let renamed = self.memory.disk.rename_noreplace(&from, &target);
        renamed.map_err(|e| Error::io("renaming to", &target, e))?;
        Ok(target)
    }

    /// Sends `own` to the next node and takes what the previous one sends, chunk by chunk.
    fn pass_on(&mut self, id: CheckpointId, own: Option<&Files>) -> Result<()> {
        let Some(Neighbour { rank, mut shift }) = self.neighbour.take() else { return Ok(()) };
        let taken = self.exchange(id, rank, own, &mut shift);
        self.neighbour = Some(Neighbour { rank, shift });
        taken
    }

    fn exchange(
        &self,
        id: CheckpointId,
        from: Rank,
        own: Option<&Files>,
        shift: &mut Shift,
    ) -> Result<()> {
        let lost = |source| Error::Ranks { source };
        let mine = own.map_or_else(Lengths::default, |files| files.lengths);
        let mut theirs = Lengths::default();
        shift(bytes_of(&mine), bytes_of_mut(&mut theirs)).map_err(lost)?;
        if theirs.index.max(theirs.manifest) > MAX_JSON_BYTES {
            return Err(lost(format!("rank {from} announces {theirs:?}").into()));
        }
        let mut taking = self.take(id, from, theirs);
        let target = self.memory.rank_dir(self.node, from);
        let (mut out, mut into) = (Aligned::new(CHUNK_BYTES), Aligned::new(CHUNK_BYTES));
        for nth in 0..mine.chunks().max(theirs.chunks()) {
            let offset = nth * CHUNK_BYTES as u64;
            let send = &mut out.bytes()[..mine.chunk(nth)];
            if let Some(files) = own.filter(|_| !send.is_empty()) {
                // What cannot be read is sent all the same: the other side's checksums say so.
                files.data.read_at(offset, send).ok();
            }
            let receive = &mut into.bytes()[..theirs.chunk(nth)];
            shift(send, receive).map_err(lost)?;
            // The transfer goes on whatever happens here: the others count on it.
            taking = taking.and_then(|file| {
                let write =
                    || if receive.is_empty() { Ok(()) } else { file.write_at(offset, receive) };
                write().map_err(|e| Error::io("writing", &target, e))?;
                Ok(file)
            });
        }
        let (index, manifest) = own.map_or((&[] as &[u8], &[] as &[u8]), |files| {
            (files.index.as_slice(), files.manifest.as_slice())
        });
        let (mut their_index, mut their_manifest) =
            (vec![0; theirs.index as usize], vec![0; theirs.manifest as usize]);
        shift(index, &mut their_index).map_err(lost)?;
        shift(manifest, &mut their_manifest).map_err(lost)?;
        taking?;
        let (disk, dir) = (self.memory.disk.as_ref(), target.join(format!(".{id}.tmp")));
        write_small(disk, &dir.join(index_file(from)), &their_index)?;
        write_small(disk, &dir.join(MANIFEST_FILE), &their_manifest)?;
        self.end(id, from).map(drop)
    }

    /// The data file that is about to arrive.
    fn take(&self, id: CheckpointId, from: Rank, theirs: Lengths) -> Result<Box<dyn DiskFile>> {
        if theirs.index == 0 {
            let problem = format!("rank {from} has no snapshot of {id} to pass on");
            return Err(Error::Incomplete { problem });
        }
        let path = self.begin(id, from)?.join(data_file(from));
        let file = self.memory.disk.create(&path, Access::Bulk);
        let file = file.map_err(|e| Error::io("creating", &path, e))?;
        if theirs.data > 0 {
            file.reserve(theirs.data).map_err(|e| Error::io("writing", &path, e))?;
        }
        Ok(file)
    }

    /// All ranks keep snapshot `id` (`by_all`), so that older ones may go, or not all do, so that it is of no use to any.
    pub(crate) fn agreed(&mut self, id: CheckpointId, rank: Rank, by_all: bool) {
        if by_all {
            self.held = Some(id);
        }
        let disk = self.memory.disk.as_ref();
        let from = self.neighbour.as_ref().map(|neighbour| neighbour.rank);
        for rank in std::iter::once(rank).chain(from) {
            let dir = self.memory.rank_dir(self.node, rank);
            for name in disk.list(&dir).unwrap_or_default() {
                let is_new = name.parse() == Ok(id);
                if is_new != by_all {
                    remove_tree(disk, &dir.join(name));
                }
            }
        }
    }
}
