//! Which checkpoints stay. The newest good one always does, whatever the policy says; so does one that the records say
//! nothing about, and one of an abandoned attempt that is further than the attempt that took over.
//!
//! Deleting is a rename to a trash name, synced, and only then the removal of files: a power cut in between never leaves
//! half a checkpoint under a name that is loaded.

use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::lineage::Place;
use crate::read::{Reader, read_manifest};
use crate::run::{Run, parse_temporary};
use lampyris_plan::{Attempt, Step};
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

/// What a policy keeps of the path.
struct Keep {
    ids: BTreeSet<CheckpointId>,
    /// Of those that can be opened, whether the policy counts them or not.
    newest_good: Option<Step>,
}

/// The checkpoint whose remains are called `name`.
pub(crate) fn parse_trash(name: &str) -> Option<CheckpointId> {
    name.strip_prefix(TRASH_PREFIX)?.parse().ok()
}

impl Run {
    /// Removes what `policy` does not keep of the path of the newest attempt, what a newer attempt has superseded and
    /// overtaken, and leftovers of attempts up to `attempt`, which must be the newest (a person at the command line passes
    /// none and sweeps only what attempts before the newest left). With `dry_run` nothing is touched.
    ///
    /// # Errors
    /// [`Error::Superseded`], [`Error::Lineage`], failures of the disk.
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
        let (kept, removed) = self.divide(policy)?;
        let names = self.names()?;
        let stale = |name: &String| match parse_temporary(name) {
            Some((id, _)) => id.attempt < newest || attempt == Some(id.attempt),
            None => name.starts_with(TRASH_PREFIX),
        };
        let swept: Vec<String> = names.iter().filter(|name| stale(name)).cloned().collect();
        if !dry_run {
            for name in &swept {
                self.remove_folder(&self.checkpoints_dir().join(name))?;
            }
            self.remove(&removed)?;
        }
        Ok(Pruned { kept, removed, swept })
    }

    /// What stays and what goes of the committed checkpoints.
    fn divide(&self, policy: Retention) -> Result<(Vec<CheckpointId>, Vec<CheckpointId>)> {
        // Names before records: whoever commits has recorded its attempt.
        let committed = self.committed()?;
        let lineage = self.lineage()?;
        self.refuse_contradictions(&lineage, &committed)?;
        let keep = self.keep(policy, &lineage.follow(&committed));
        let goes = |&(id, place): &(CheckpointId, Place)| match place {
            Place::OnPath => !keep.ids.contains(&id),
            Place::Superseded => {
                keep.newest_good.is_some_and(|step| id.step <= step) && self.is_itself(id)
            }
            Place::Unknown => false,
        };
        let (removed, kept): (Vec<_>, Vec<_>) =
            lineage.places(&committed).into_iter().partition(goes);
        let ids = |places: Vec<(CheckpointId, Place)>| places.into_iter().map(|(id, _)| id);
        Ok((ids(kept).collect(), ids(removed).collect()))
    }

    /// Whether what lies under the name of `id` says itself that it is that checkpoint: a folder that was renamed may hold
    /// the newest one.
    fn is_itself(&self, id: CheckpointId) -> bool {
        read_manifest(self.disk().as_ref(), &self.path(id)).is_ok()
    }

    /// Of `path`, best first, what stays. Damaged ones stay too and count for nothing: loading quarantines them.
    fn keep(&self, policy: Retention, path: &[CheckpointId]) -> Keep {
        let mut keep = Keep { ids: BTreeSet::new(), newest_good: None };
        let mut good = 0;
        let mut best: Option<(f64, CheckpointId)> = None;
        for &id in path {
            let Ok(reader) = Reader::open(Arc::clone(self.disk()), &self.path(id)) else {
                keep.ids.insert(id);
                continue;
            };
            let due = policy.every_steps > 0 && id.step.0.is_multiple_of(policy.every_steps);
            if good < policy.last.max(1) || due {
                keep.ids.insert(id);
            }
            good += 1;
            keep.newest_good = keep.newest_good.max(Some(id.step));
            if let Some(loss) = reader.manifest().validation_loss
                && best.is_none_or(|(lowest, _)| loss < lowest)
            {
                best = Some((loss, id));
            }
        }
        keep.ids.extend(best.filter(|_| policy.best).map(|(_, id)| id));
        keep
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
