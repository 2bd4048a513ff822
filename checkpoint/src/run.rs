//! The checkpoints of one run directory: where they lie, and the commit that makes one appear whole or not at all.
//!
//! A save writes into `.step-N.attempt-A.tmp`, every file synced; the manifest comes last; the folder is synced, renamed
//! once to `step-N.attempt-A` and the rename synced. Nothing that has that name is ever written to again.

use crate::agreement::{self, Extent, Problem};
use crate::disk::{Access, Disk};
use crate::error::{Error, Result};
use crate::format::{CheckpointId, Digests, FORMAT, MANIFEST_FILE, Manifest};
use crate::format::{data_file, index_file, seal};
use crate::lineage::MAX_ATTEMPT;
use crate::resume::parse_quarantined;
use crate::retention::parse_trash;
use crate::shard::{ShardReport, write_small};
use crate::tensors::TensorEntry;
use lampyris_plan::Attempt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A run directory, as far as checkpoints go.
#[derive(Debug, Clone)]
pub struct Run {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// What the trainer says about a checkpoint when it is committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Meta {
    /// Step and attempt.
    pub id: CheckpointId,
    /// Digests of the recipe.
    pub digests: Digests,
    /// Numerics fingerprint of the machine.
    pub fingerprint: BTreeMap<String, String>,
    /// Validation loss, if it was measured at this step.
    pub validation_loss: Option<f64>,
    /// Small state of the trainer.
    pub state: BTreeMap<String, Value>,
    /// Every tensor that the ranks together must have written completely.
    pub tensors: Vec<TensorEntry>,
}

impl Meta {
    /// The manifest of a checkpoint of `world` ranks that is saved now, without its shards.
    pub(crate) fn manifest(&self, parent: Option<CheckpointId>, world: usize) -> Manifest {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Manifest {
            format: FORMAT,
            id: self.id,
            parent,
            saved_unix_s: now.as_secs(),
            digests: self.digests.clone(),
            fingerprint: self.fingerprint.clone(),
            validation_loss: self.validation_loss,
            state: self.state.clone(),
            world,
            tensors: self.tensors.clone(),
            shards: Vec::new(),
        }
    }
}

const CHECKPOINTS: &str = "checkpoints";
pub(crate) const ATTEMPTS: &str = "attempts";
pub(crate) const LINEAGE_FILE: &str = "lineage.jsonl";

impl Run {
    /// Opens the existing folder `dir` as a run directory and makes what is missing in it.
    ///
    /// # Errors
    /// [`Error::Lineage`] if its records do not explain its checkpoints; `dir` does not exist or cannot be written.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Run> {
        let run = Run { disk, dir: dir.to_path_buf() };
        match run.explained() {
            // A new run.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => drop(other?),
        }
        run.make_missing()?;
        // Again: the folder may be a link that leads nowhere.
        run.names().map(|_| run)
    }

    pub(crate) fn make_missing(&self) -> Result<()> {
        let (run, dir) = (self, &self.dir);
        for name in [CHECKPOINTS, ATTEMPTS] {
            let path = dir.join(name);
            already(run.disk.create_dir(&path)).map_err(|e| Error::io("creating", &path, e))?;
        }
        let path = dir.join(LINEAGE_FILE);
        already(run.disk.create(&path, Access::Plain).map(drop))
            .map_err(|e| Error::io("creating", &path, e))?;
        // Also when all was there: who made it may have died before this line.
        run.disk.sync_dir(dir).map_err(|e| Error::io("syncing", dir, e))
    }

    /// Opens the existing run directory `dir` without writing anything, for reading on a disk that may be read-only.
    pub fn open_read_only(disk: Arc<dyn Disk>, dir: &Path) -> Run {
        Run { disk, dir: dir.to_path_buf() }
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of all checkpoints.
    pub fn checkpoints_dir(&self) -> PathBuf {
        self.dir.join(CHECKPOINTS)
    }

    /// The folder of a committed checkpoint.
    pub fn path(&self, id: CheckpointId) -> PathBuf {
        self.checkpoints_dir().join(id.to_string())
    }

    pub(crate) fn temporary_path(&self, id: CheckpointId) -> PathBuf {
        self.checkpoints_dir().join(format!("{TEMPORARY_PREFIX}{id}{TEMPORARY_SUFFIX}"))
    }

    /// Where `attempt` puts a snapshot of an earlier attempt together.
    pub(crate) fn restoring_path(&self, id: CheckpointId, attempt: Attempt) -> PathBuf {
        let name = format!("{TEMPORARY_PREFIX}{id}{RESTORING_INFIX}{attempt}{TEMPORARY_SUFFIX}");
        self.checkpoints_dir().join(name)
    }

    /// Every committed checkpoint, by rising step, whatever its attempt. What may be loaded is [`Run::candidates`].
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn committed(&self) -> Result<Vec<CheckpointId>> {
        let mut ids: Vec<CheckpointId> =
            self.names()?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let dir = self.checkpoints_dir();
        self.disk.list(&dir).map_err(|e| Error::io("reading", &dir, e))
    }

    /// Makes the folder into which the ranks write their shards; each rank calls it, in any order.
    pub(crate) fn begin(&self, id: CheckpointId) -> Result<PathBuf> {
        if self.committed()?.contains(&id) {
            return Err(Error::Exists { path: self.path(id) });
        }
        let path = self.temporary_path(id);
        already(self.disk.create_dir(&path)).map_err(|e| Error::io("creating", &path, e))?;
        Ok(path)
    }

    /// Commits what the ranks wrote: one rank calls it, with the reports of all. When it returns, the checkpoint
    /// survives a power cut.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if the shards do not hold every tensor exactly once or are of another checkpoint,
    /// [`Error::Superseded`] if a newer attempt has begun, failures of the disk. Call [`Run::abandon`] then.
    pub fn commit(&self, meta: &Meta, reports: &[ShardReport]) -> Result<PathBuf> {
        let id = meta.id;
        if let Some(other) = reports.iter().find(|report| report.id != id) {
            let problem = format!("rank {} reported {}, not {id}", other.entry.rank, other.id);
            return Err(Error::Incomplete { problem });
        }
        check_agreement(&meta.tensors, reports.len(), reports)?;
        self.check_files(id, reports)?;
        let parent = self.check_current(id.attempt)?;
        let mut shards: Vec<_> = reports.iter().map(|report| report.entry.clone()).collect();
        shards.sort_by_key(|shard| shard.rank);
        let manifest = Manifest { shards, ..meta.manifest(parent, reports.len()) };
        self.publish(&manifest, &self.temporary_path(id))
    }

    /// Makes the checkpoint `manifest` of the folder `unfinished`, whose other files are safe.
    pub(crate) fn publish(&self, manifest: &Manifest, unfinished: &Path) -> Result<PathBuf> {
        write_small(self.disk.as_ref(), &unfinished.join(MANIFEST_FILE), &seal(manifest)?)?;
        self.disk.sync_dir(unfinished).map_err(|e| Error::io("syncing", unfinished, e))?;
        let target = self.path(manifest.id);
        self.disk.rename_noreplace(unfinished, &target).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: target.clone() },
            _ => Error::io("renaming to", &target, e),
        })?;
        let all = self.checkpoints_dir();
        self.disk.sync_dir(&all).map_err(|e| Error::io("syncing", &all, e))?;
        Ok(target)
    }

    /// The files of all ranks are where this rank is about to commit them.
    fn check_files(&self, id: CheckpointId, reports: &[ShardReport]) -> Result<()> {
        let dir = self.temporary_path(id);
        for ShardReport { entry, .. } in reports {
            let files = [
                (data_file(entry.rank), entry.data_bytes),
                (index_file(entry.rank), entry.index_bytes),
            ];
            for (name, bytes) in files {
                let path = dir.join(name);
                let found = self.disk.open(&path, Access::Plain).and_then(|file| file.length());
                match found {
                    Ok(found) if found == bytes => {}
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("reading", &path, e));
                    }
                    _ => {
                        let problem = format!(
                            "{}, which rank {} wrote, is missing or short here; do all nodes see the same run directory?",
                            path.display(),
                            entry.rank
                        );
                        return Err(Error::Incomplete { problem });
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes what a failed save left, as far as it can be removed.
    pub fn abandon(&self, id: CheckpointId) {
        // Whatever fails here, the error that led here matters more, and the next attempt's sweep tries again.
        self.remove_folder(&self.temporary_path(id)).ok();
    }

    /// Removes a flat folder.
    pub(crate) fn remove_folder(&self, dir: &Path) -> Result<()> {
        let io = |e| Error::io("removing", dir, e);
        for name in self.disk.list(dir).map_err(io)? {
            self.disk.remove_file(&dir.join(name)).map_err(io)?;
        }
        self.disk.remove_dir(dir).map_err(io)
    }
}

const TEMPORARY_PREFIX: &str = ".";
const TEMPORARY_SUFFIX: &str = ".tmp";
const RESTORING_INFIX: &str = ".restored-by-";

/// The checkpoint whose unfinished folder is called `name`, and the attempt that puts it together if that is another one.
pub(crate) fn parse_temporary(name: &str) -> Option<(CheckpointId, Option<Attempt>)> {
    let name = name.strip_prefix(TEMPORARY_PREFIX)?.strip_suffix(TEMPORARY_SUFFIX)?;
    match name.split_once(RESTORING_INFIX) {
        Some((id, by)) => Some((id.parse().ok()?, Some(Attempt(by.parse().ok()?)))),
        None => Some((name.parse().ok()?, None)),
    }
}

/// The attempts that the name of a folder of checkpoints tells of. What was set aside may have a number that was its
/// damage; it does not count.
pub(crate) fn attempts_in(name: &str) -> Vec<Attempt> {
    if let Ok(id) = name.parse::<CheckpointId>() {
        return vec![id.attempt];
    }
    if let Some((id, by)) = parse_temporary(name) {
        return std::iter::once(id.attempt).chain(by).collect();
    }
    let aside = parse_quarantined(name).or_else(|| parse_trash(name));
    aside.map(|id| id.attempt).filter(|attempt| *attempt <= MAX_ATTEMPT).into_iter().collect()
}

/// Success where the name was there before.
pub(crate) fn already(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Refuses a checkpoint whose shards do not make sense together.
pub(crate) fn check_agreement(
    tensors: &[TensorEntry],
    world: usize,
    reports: &[ShardReport],
) -> Result<()> {
    let shards: Vec<_> = reports.iter().map(|report| (&report.entry, &report.index)).collect();
    agreement::check(Extent::Whole, tensors, world, &shards).map_err(|Problem { file, what }| {
        let problem = if file == MANIFEST_FILE { what } else { format!("{file}: {what}") };
        Error::Incomplete { problem }
    })
}
