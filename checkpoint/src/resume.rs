//! Loads the newest good checkpoint. A damaged one is reported, set aside under another name, and the one before it is
//! tried.

use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::ranks::{Ranks, Word, first_failure};
use crate::read::Reader;
use crate::run::Run;
use crate::shard::write_small;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) const QUARANTINE_PREFIX: &str = "quarantine.";
const REPORT_FILE: &str = "quarantine.json";

/// What [`Run::load_latest`] found.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The checkpoint and what the caller made of it; none if the run has none yet.
    pub found: Option<(CheckpointId, T)>,
    /// Checkpoints that were damaged.
    pub quarantined: Vec<Quarantined>,
}

/// A damaged checkpoint that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// Its step and attempt.
    pub id: CheckpointId,
    /// What is wrong with it.
    pub problem: String,
    /// Its new name; none if it could not be renamed (a read-only disk), and on ranks other than 0.
    pub moved_to: Option<PathBuf>,
}

impl Run {
    /// Calls `load` with the newest checkpoint of the lineage; where that turns out damaged, quarantines it and goes on
    /// with the one before. With several ranks all call it, `load` fills the part of this rank, and all end up with the
    /// same checkpoint or all with an error; rank 0 alone then records what was loaded ([`Run::record`]).
    ///
    /// # Errors
    /// Any error of `load` that is not damage, on this or another rank; [`Error::NoneGood`] if checkpoints exist and all
    /// are damaged: a run never starts over silently.
    pub fn load_latest<T>(
        &self,
        ranks: &mut Ranks,
        mut load: impl FnMut(&Reader) -> Result<T>,
    ) -> Result<Loaded<T>> {
        let mut quarantined = Vec::new();
        // Only rank 0's list counts: the others may look while it renames.
        let mut candidates =
            if ranks.leads() { self.candidates() } else { Ok(Vec::new()) }.map(|mut ids| {
                ids.reverse();
                ids
            });
        loop {
            let word = match &mut candidates {
                Ok(ids) => Word::Load(ids.pop()),
                Err(e) => Word::Failed(e.to_string()),
            };
            let words = ranks.exchange(word)?;
            let id = match (first_failure(&words), words.first()) {
                (None, Some(Word::Load(Some(id)))) => *id,
                (None, _) => break,
                (Some(failure), _) => return candidates.and(Err(failure)),
            };
            let opened = Reader::open(Arc::clone(self.disk()), &self.path(id));
            let loaded = opened.and_then(|reader| load(&reader));
            let word = match &loaded {
                Ok(_) => Word::Good,
                Err(e) if e.is_corrupt() => Word::Damaged(e.to_string()),
                Err(e) => Word::Failed(e.to_string()),
            };
            let words = ranks.exchange(word)?;
            if let Some(failure) = first_failure(&words) {
                return loaded.and(Err(failure));
            }
            match (words.into_iter().find_map(Word::damage), loaded) {
                (None, Ok(value)) => return Ok(Loaded { found: Some((id, value)), quarantined }),
                (None, Err(e)) => return Err(e),
                (Some(problem), _) if ranks.leads() => {
                    quarantined.push(self.quarantine(id, problem))
                }
                (Some(problem), _) => quarantined.push(Quarantined { id, problem, moved_to: None }),
            }
        }
        if !quarantined.is_empty() {
            let problems = quarantined.into_iter().map(|q| q.problem).collect();
            return Err(Error::NoneGood { dir: self.dir().to_path_buf(), problems });
        }
        Ok(Loaded { found: None, quarantined })
    }

    /// Renames a damaged checkpoint so that nothing loads it again, and leaves a report in it.
    fn quarantine(&self, id: CheckpointId, problem: String) -> Quarantined {
        let all = self.checkpoints_dir();
        let target = all.join(format!("{QUARANTINE_PREFIX}{id}"));
        let renamed = self
            .disk()
            .rename_noreplace(&self.path(id), &target)
            .and_then(|()| self.disk().sync_dir(&all));
        let moved_to = renamed.is_ok().then(|| target.clone());
        let report = Quarantined { id, problem, moved_to };
        if report.moved_to.is_some()
            && let Ok(text) = serde_json::to_vec_pretty(&report)
        {
            // The report is a courtesy to people; the caller logs the same text.
            write_small(self.disk().as_ref(), &target.join(REPORT_FILE), &text).ok();
        }
        report
    }
}
