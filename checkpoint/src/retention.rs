//! Which checkpoints stay. The newest good one always does, whatever the policy says.
//!
//! Deleting is a rename to a trash name, synced, and only then the removal of files: a power cut in between never leaves
//! half a checkpoint under a name that is loaded.

use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::read::{Reader, read_manifest};
use crate::run::{Run, parse_temporary};
use lampyris_plan::Attempt;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

const TRASH_PREFIX: &str = ".trash.";

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest this many (at least one).
    pub last: usize,
    /// Those whose step is a multiple of this; 0 = none for this reason.
    pub every_steps: u64,
    /// The one with the lowest validation loss.
    pub best: bool,
}

/// What a prune did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Still there.
    pub kept: Vec<CheckpointId>,
    /// Removed.
    pub removed: Vec<CheckpointId>,
    /// Leftovers of saves and removals that were cut off.
    pub swept: Vec<String>,
}

impl Run {
    /// Removes what `policy` does not keep: older checkpoints of the lineage, those of attempts that are not part of it,
    /// and leftovers of attempts up to `attempt`, which must be the newest (a person at the command line passes none and
    /// sweeps only what attempts before the newest left). With `dry_run` nothing is touched.
    ///
    /// # Errors
    /// [`Error::Superseded`], failures of the disk.
    pub fn prune(
        &self,
        policy: Retention,
        attempt: Option<Attempt>,
        dry_run: bool,
    ) -> Result<Pruned> {
        let newest = self.newest_claim()?;
        if let Some(attempt) = attempt.filter(|&attempt| attempt < newest) {
            return Err(Error::Superseded { attempt, by: newest });
        }
        let keep = self.keep(policy)?;
        let names = self.names()?;
        let stale = |name: &String| match parse_temporary(name) {
            Some(id) => id.attempt < newest || attempt == Some(id.attempt),
            None => name.starts_with(TRASH_PREFIX),
        };
        let swept: Vec<String> = names.iter().filter(|name| stale(name)).cloned().collect();
        let (kept, removed): (Vec<_>, Vec<_>) =
            self.committed()?.into_iter().partition(|id| keep.contains(id));
        if !dry_run {
            self.remove(&removed)?;
            for name in &swept {
                self.remove_folder(&self.checkpoints_dir().join(name))?;
            }
        }
        Ok(Pruned { kept, removed, swept })
    }

    /// Checkpoints that stay. Damaged ones of the lineage stay too and count for nothing: loading quarantines them.
    fn keep(&self, policy: Retention) -> Result<BTreeSet<CheckpointId>> {
        let mut keep = BTreeSet::new();
        let mut good = 0;
        let mut best: Option<(f64, CheckpointId)> = None;
        for id in self.candidates()? {
            let path = self.path(id);
            let due = policy.every_steps > 0 && id.step.0.is_multiple_of(policy.every_steps);
            if Reader::open(Arc::clone(self.disk()), &path).is_err() {
                keep.insert(id);
                continue;
            }
            if good < policy.last.max(1) || due {
                keep.insert(id);
            }
            good += 1;
            if let Some(loss) = read_manifest(self.disk().as_ref(), &path)?.validation_loss
                && best.is_none_or(|(lowest, _)| loss < lowest)
            {
                best = Some((loss, id));
            }
        }
        if let Some((_, id)) = best.filter(|_| policy.best) {
            keep.insert(id);
        }
        Ok(keep)
    }

    fn remove(&self, ids: &[CheckpointId]) -> Result<()> {
        let all = self.checkpoints_dir();
        let trash = |id: &CheckpointId| all.join(format!("{TRASH_PREFIX}{id}"));
        for id in ids {
            let path = self.path(*id);
            self.disk()
                .rename_noreplace(&path, &trash(id))
                .map_err(|e| Error::io("removing", &path, e))?;
        }
        if !ids.is_empty() {
            self.disk().sync_dir(&all).map_err(|e| Error::io("syncing", &all, e))?;
        }
        ids.iter().try_for_each(|id| self.remove_folder(&trash(id)))
    }
}
