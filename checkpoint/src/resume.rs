//! Loads the newest good checkpoint. A damaged one is reported, set aside under another name, and the one before it is
//! tried.

use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::ranks::{Ranks, Word, first_failure};
use crate::read::Reader;
use crate::run::Run;
use crate::shard::write_small;
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

const QUARANTINE_PREFIX: &str = "quarantine.";
const REPORT_FILE: &str = "quarantine.json";

/// How often one checkpoint can be put back and set aside again.
const MAX_QUARANTINES: usize = 100;

/// The checkpoint that was set aside under `name`.
pub(crate) fn parse_quarantined(name: &str) -> Option<CheckpointId> {
    let name = name.strip_prefix(QUARANTINE_PREFIX)?;
    let numbered = || name.rsplit_once('.').and_then(|(id, _)| id.parse().ok());
    name.parse().ok().or_else(numbered)
}

/// What [`Run::load_latest`] found.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The checkpoint and what the caller made of it; none if the run has none yet.
    pub found: Option<(CheckpointId, T)>,
    /// Checkpoints that were damaged.
    pub quarantined: Vec<Quarantined>,
}

/// A checkpoint that was set aside: it is damaged, or fits nowhere.
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
    /// Any error of `load` that is not damage, on this or another rank; [`Error::Lineage`] if the run's records and its
    /// checkpoints do not fit together; [`Error::NoneGood`] if there were checkpoints and none is good: a run never starts
    /// over silently.
    pub fn load_latest<T>(
        &self,
        ranks: &mut Ranks,
        mut load: impl FnMut(&Reader) -> Result<T>,
    ) -> Result<Loaded<T>> {
        let mut quarantined = Vec::new();
        // Only rank 0's list counts: the others may look while it renames.
        let candidates = if ranks.leads() { self.to_load() } else { Ok(Vec::new()) };
        let mut candidates = candidates.map(|ids| ids.into_iter().rev().collect::<Vec<_>>());
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

    /// Names of the checkpoints that were set aside.
    pub(crate) fn quarantined(&self) -> Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|name| name.starts_with(QUARANTINE_PREFIX));
        Ok(names)
    }

    /// Renames a checkpoint so that nothing loads it again, and leaves a report in it.
    pub(crate) fn quarantine(&self, id: CheckpointId, problem: String) -> Quarantined {
        let all = self.checkpoints_dir();
        let mut target = all.join(format!("{QUARANTINE_PREFIX}{id}"));
        let mut renamed = self.disk().rename_noreplace(&self.path(id), &target);
        for number in 2..MAX_QUARANTINES {
            if !renamed.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists) {
                break;
            }
            target = all.join(format!("{QUARANTINE_PREFIX}{id}.{number}"));
            renamed = self.disk().rename_noreplace(&self.path(id), &target);
        }
        let renamed = renamed.and_then(|()| self.disk().sync_dir(&all));
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
