//! Loads the newest good checkpoint. A damaged one is reported, set aside under another name, and the one before it is
//! tried.

use crate::error::{Error, Result};
use crate::format::CheckpointId;
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
    /// Its new name; none if it could not be renamed (a read-only disk).
    pub moved_to: Option<PathBuf>,
}

impl Run {
    /// Calls `load` with the newest checkpoint of the lineage; where that turns out damaged, quarantines it and goes on
    /// with the one before.
    ///
    /// # Errors
    /// Any error of `load` that is not damage, [`Error::NoneGood`] if checkpoints exist and all are damaged: a run never
    /// starts over silently.
    pub fn load_latest<T>(&self, mut load: impl FnMut(&Reader) -> Result<T>) -> Result<Loaded<T>> {
        let mut quarantined = Vec::new();
        for id in self.candidates()? {
            let opened = Reader::open(Arc::clone(self.disk()), &self.path(id));
            match opened.and_then(|reader| load(&reader)) {
                Ok(value) => return Ok(Loaded { found: Some((id, value)), quarantined }),
                Err(e) if e.is_corrupt() => quarantined.push(self.quarantine(id, &e)),
                Err(e) => return Err(e),
            }
        }
        if !quarantined.is_empty() {
            let problems = quarantined.iter().map(|q| q.problem.clone()).collect();
            return Err(Error::NoneGood { dir: self.dir().to_path_buf(), problems });
        }
        Ok(Loaded { found: None, quarantined })
    }

    /// Renames a damaged checkpoint so that nothing loads it again, and leaves a report in it. With several ranks, one
    /// of them calls this.
    pub fn quarantine(&self, id: CheckpointId, problem: &Error) -> Quarantined {
        let all = self.checkpoints_dir();
        let target = all.join(format!("{QUARANTINE_PREFIX}{id}"));
        let renamed = self
            .disk()
            .rename_noreplace(&self.path(id), &target)
            .and_then(|()| self.disk().sync_dir(&all));
        let report = Quarantined {
            id,
            problem: problem.to_string(),
            moved_to: renamed.is_ok().then(|| target.clone()),
        };
        if report.moved_to.is_some()
            && let Ok(text) = serde_json::to_vec_pretty(&report)
        {
            // The report is a courtesy to people; the caller logs the same text.
            write_small(self.disk().as_ref(), &target.join(REPORT_FILE), &text).ok();
        }
        report
    }
}
