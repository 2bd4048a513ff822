//! Makes a checkpoint of what the memory of the nodes holds, where that is newer than the newest one on disk. Every host
//! copies the shards that it holds into one unfinished checkpoint, whose shards rank 0 counts and commits. From there on it is
//! a checkpoint like any other: any layout loads it, and it is safe before the first new step.

use crate::aligned::Aligned;
use crate::disk::{Access, Disk};
use crate::error::{Error, Result};
use crate::format::{
    CHUNK_BYTES, CheckpointId, Checksum, MANIFEST_FILE, Manifest, ShardEntry, data_file,
    index_file, unseal_as,
};
use crate::ranks::{Ranks, Word, first_failure};
use crate::read::{Reader, read_index, read_whole};
use crate::replica::HostMemory;
use crate::run::{Run, already, check_agreement};
use crate::shard::{ShardReport, write_small};
use lampyris_plan::{Attempt, Rank, Step};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The manifest of one shard, in an unfinished checkpoint, to make the whole one from.
const SOURCE_FILE: &str = "source.json";

/// Threads that compare the checksums of a shard in memory.
const VERIFY_THREADS: usize = 2;

/// What [`Run::restore`] found.
#[derive(Debug, Default)]
pub struct Restored {
    /// The checkpoint that it made; none if memory holds nothing newer than the disk, or nothing whole.
    pub id: Option<CheckpointId>,
    /// Why snapshots in memory were of no use.
    pub problems: Vec<String>,
}

type Held = BTreeMap<CheckpointId, Vec<(Rank, PathBuf)>>;

impl Run {
    /// Commits the newest snapshot of the last attempt that the hosts' memory holds whole, if it is newer than the newest
    /// checkpoint. All ranks call it, before they load ([`Run::load_latest`]); `attempt` is the one that starts. Whatever
    /// goes wrong with memory is told and passed over: the disk's checkpoints are untouched.
    ///
    /// # Errors
    /// The run directory cannot be read, here or on another rank; a peer is gone.
    pub fn restore(
        &self,
        ranks: &mut Ranks,
        attempt: Attempt,
        memory: &HostMemory,
    ) -> Result<Restored> {
        let mut restored = Restored::default();
        let held = self.admissible(memory.held());
        let mut below = Step(u64::MAX);
        loop {
            let newest =
                held.as_ref().map(|held| held.keys().rev().find(|id| id.step < below).copied());
            let word = match newest {
                Ok(newest) => Word::Holds(newest),
                Err(e) => Word::Failed(e.to_string()),
            };
            let words = ranks.exchange(word)?;
            if let Some(failure) = first_failure(&words) {
                return held.and(Err(failure));
            }
            let newest = words.iter().filter_map(|word| match word {
                Word::Holds(id) => *id,
                _ => None,
            });
            let Some(id) = newest.max() else { return Ok(restored) };
            let held = held.as_ref().ok().and_then(|held| held.get(&id));
            let copied = held.map_or(Ok(()), |held| self.copy_held(id, attempt, memory, held));
            let words = ranks.exchange(match copied {
                Ok(()) => Word::Good,
                Err(e) => Word::Damaged(e.to_string()),
            })?;
            let problems = words.into_iter().filter_map(Word::damage);
            restored.problems.extend(problems);
            let word = match ranks.leads().then(|| self.commit_restored(id, attempt)) {
                Some(Err(e)) => Word::Damaged(e.to_string()),
                _ => Word::Good,
            };
            match ranks.exchange(word)?.into_iter().find_map(Word::damage) {
                Some(problem) => restored.problems.push(problem),
                None => {
                    restored.id = Some(id);
                    return Ok(restored);
                }
            }
            below = id.step;
        }
    }

    /// Snapshots of the last attempt that began, newer than the newest checkpoint on its path.
    fn admissible(&self, mut held: Held) -> Result<Held> {
        let (lineage, committed) = self.explained()?;
        let last = lineage.newest();
        let on_disk = lineage.follow(&committed).first().map_or(Step(0), |id| id.step);
        held.retain(|id, _| Some(id.attempt) == last && id.step > on_disk);
        Ok(held)
    }

    /// Copies the shards that this host holds and nobody else copies, each checked before.
    ///
    /// # Errors
    /// The first problem; what could be copied is.
    fn copy_held(
        &self,
        id: CheckpointId,
        attempt: Attempt,
        memory: &HostMemory,
        held: &[(Rank, PathBuf)],
    ) -> Result<()> {
        let dir = self.restoring_path(id, attempt);
        already(self.disk().create_dir(&dir)).map_err(|e| Error::io("creating", &dir, e))?;
        let mut outcome = Ok(());
        for (rank, from) in held {
            outcome = outcome.and(self.copy_shard(*rank, memory, from, &dir));
        }
        outcome
    }

    fn copy_shard(&self, rank: Rank, memory: &HostMemory, from: &Path, to: &Path) -> Result<()> {
        let source = memory.disk();
        let reader = Reader::open_part(Arc::clone(source), from)?;
        if let Some(problem) = reader.verify(VERIFY_THREADS)?.into_iter().next() {
            return Err(problem);
        }
        let path = to.join(data_file(rank));
        let target = match self.disk().create(&path, Access::Bulk) {
            // Another rank of this host, or the other node that holds this shard.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            other => other.map_err(|e| Error::io("creating", &path, e))?,
        };
        let file = source.open(&from.join(data_file(rank)), Access::Bulk);
        let copy = || -> io::Result<()> {
            let file = file?;
            let bytes = file.length()?;
            let mut buffer = Aligned::new(CHUNK_BYTES);
            for offset in (0..bytes).step_by(CHUNK_BYTES) {
                let part = &mut buffer.bytes()[..(bytes - offset).min(CHUNK_BYTES as u64) as usize];
                file.read_at(offset, part)?;
                target.write_at(offset, part)?;
            }
            target.sync()
        };
        copy().map_err(|e| Error::io("writing", &path, e))?;
        let (disk, index) = (self.disk().as_ref(), index_file(rank));
        write_small(disk, &to.join(&index), &read_whole(source.as_ref(), from, &index)?)?;
        let manifest = read_whole(source.as_ref(), from, MANIFEST_FILE)?;
        let path = to.join(SOURCE_FILE);
        match disk.create(&path, Access::Plain) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other
                .and_then(|file| file.write_at(0, &manifest))
                .map_err(|e| Error::io("writing", &path, e)),
        }
    }

    /// Rank 0, when all have copied: commits, or removes what there is.
    fn commit_restored(&self, id: CheckpointId, attempt: Attempt) -> Result<()> {
        let dir = self.restoring_path(id, attempt);
        let committed = self.commit_shards(id, attempt, &dir);
        if committed.is_err() {
            // The next prune tries again.
            self.remove_folder(&dir).ok();
        }
        committed
    }

    fn commit_shards(&self, id: CheckpointId, attempt: Attempt, dir: &Path) -> Result<()> {
        let disk = self.disk().as_ref();
        let source = unseal_as(dir, SOURCE_FILE, &read_whole(disk, dir, SOURCE_FILE)?)?;
        let mut reports = Vec::new();
        for rank in (0..source.world as u64).map(Rank) {
            let entry = entry_of(disk, dir, rank).map_err(|e| Error::Incomplete {
                problem: format!(
                    "no node holds a good shard of rank {rank} of {id} in memory ({e})"
                ),
            })?;
            let index = read_index(disk, dir, &entry)?;
            reports.push(ShardReport { id, entry, index });
        }
        check_agreement(&source.tensors, source.world, &reports)?;
        let newest = self.newest_claim()?;
        if newest > attempt {
            return Err(Error::Superseded { attempt, by: newest });
        }
        let shards = reports.into_iter().map(|report| report.entry).collect();
        let path = dir.join(SOURCE_FILE);
        disk.remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
        self.publish(&Manifest { shards, ..source }, dir).map(drop)
    }
}

/// What the files of `rank` are; they were checked when they were copied.
fn entry_of(disk: &dyn Disk, dir: &Path, rank: Rank) -> Result<ShardEntry> {
    let index = read_whole(disk, dir, &index_file(rank))?;
    let path = dir.join(data_file(rank));
    let data_bytes = disk.open(&path, Access::Plain).and_then(|file| file.length());
    let data_bytes = data_bytes.map_err(|e| Error::io("reading", &path, e))?;
    let index_xxh3 = Checksum::of(&index);
    Ok(ShardEntry { rank, data_bytes, index_bytes: index.len() as u64, index_xxh3 })
}
