//! Writes the records of a run anew from its checkpoints, for a person whose run does not start because the two do not fit
//! together.
//!
//! The newest checkpoint that is good to the last byte is adopted: the next start goes on from it. A manifest says where its
//! attempt began, so the checkpoints tell most of the records themselves; the rest comes from lines of the old file that can
//! still be read. Nothing is deleted: the old file stays under another name, and a checkpoint that is damaged or still fits
//! nowhere is set aside as a load would do it.

use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::lineage::{Lineage, Place, Record, origin};
use crate::read::Reader;
use crate::resume::Quarantined;
use crate::run::{LINEAGE_FILE, Run};
use crate::shard::write_small;
use lampyris_plan::Attempt;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Where the new records are written before they get their name.
const NEW_FILE: &str = ".lineage.jsonl.tmp";

/// How many old files are kept beside each other.
const MAX_OLD_FILES: usize = 1000;

/// What a repair did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// From which the next start goes on; none if the run has not saved any yet.
    pub adopted: Option<CheckpointId>,
    /// Whether anything was, or is, to be mended.
    pub changed: bool,
    /// What `lineage.jsonl` then says, oldest first.
    pub records: Vec<Record>,
    /// Where the old file is kept.
    pub old_file: Option<PathBuf>,
    /// Checkpoints that were set aside.
    pub set_aside: Vec<Quarantined>,
}

/// What the checkpoints of a run say.
#[derive(Default)]
struct Survey {
    /// Those that can be opened, best last: what the records lead to, else by attempt and step.
    good: Vec<CheckpointId>,
    /// Where attempts began, by their checkpoints.
    told: Lineage,
    /// What is wrong with the others.
    bad: BTreeMap<CheckpointId, String>,
}

impl Run {
    /// Adopts the newest good checkpoint and makes the records explain it; reads it whole with `threads` threads. With
    /// `dry_run` nothing is touched. The run must not be running.
    ///
    /// # Errors
    /// [`Error::NoneGood`]; [`Error::Lineage`] if two checkpoints of one attempt contradict each other; failures of the
    /// disk.
    pub fn repair(&self, threads: usize, dry_run: bool) -> Result<Repaired> {
        let mut survey = self.survey()?;
        let adopted = self.adopt(&mut survey, threads)?;
        let (old, is_file) = match self.lineage_text() {
            // Something else has its name, or it is far too long: there is nothing to be read from it.
            Err(Error::Lineage { .. }) => (Vec::new(), false),
            other => (other?, true),
        };
        let mut lineage = survey.told.clone();
        for record in Lineage::salvage(&old).records() {
            // Where the two contradict each other, the checkpoints are right: they are sealed.
            lineage.add(record).ok();
        }
        match adopted {
            Some(adopted) => self.lead_to(adopted, &mut lineage, &survey.good)?,
            None => self.refuse_nothing_left(&lineage)?,
        }
        for (id, place) in lineage.places(&survey.good) {
            if place == Place::Unknown {
                let problem = format!("no record says where attempt {} came from", id.attempt);
                survey.bad.insert(id, problem);
            }
        }
        let is_right = is_file && Lineage::parse(&old).is_ok_and(|old| old == lineage);
        let mut repaired = Repaired {
            adopted,
            changed: !is_right || !survey.bad.is_empty(),
            records: lineage.records().collect(),
            ..Repaired::default()
        };
        if dry_run {
            let aside = survey.bad.into_iter();
            let aside = aside.map(|(id, problem)| Quarantined { id, problem, moved_to: None });
            repaired.set_aside = aside.collect();
            return Ok(repaired);
        }
        for (id, problem) in survey.bad {
            repaired.set_aside.push(self.quarantine(id, problem));
        }
        if !is_right {
            repaired.old_file = self.replace_lineage(&repaired.records)?;
        }
        Ok(repaired)
    }

    fn survey(&self) -> Result<Survey> {
        let mut survey = Survey::default();
        for id in self.committed()? {
            let manifest = match Reader::open(Arc::clone(self.disk()), &self.path(id)) {
                Ok(reader) => reader.manifest().clone(),
                Err(e) if e.is_corrupt() => {
                    survey.bad.insert(id, e.to_string());
                    continue;
                }
                Err(e) => return Err(e),
            };
            let record = Record { attempt: id.attempt, parent: manifest.parent };
            survey.told.add(record).map_err(|problem| {
                let from = origin(manifest.parent);
                self.lineage_error(format!(
                    "{problem} ({id} says from {from}): its checkpoints are of two runs; move those of one of them out of \
                     checkpoints/"
                ))
            })?;
            survey.good.push(id);
        }
        // Records that explain everything say themselves what is best.
        let path = self.to_load().unwrap_or_default();
        let on_path = |id: &CheckpointId| path.iter().rev().position(|other| other == id);
        survey.good.sort_by_key(|id| (on_path(id), id.attempt, id.step));
        Ok(survey)
    }

    /// The newest checkpoint that is good to the last byte; those before which it is found damaged are noted.
    fn adopt(&self, survey: &mut Survey, threads: usize) -> Result<Option<CheckpointId>> {
        while let Some(&id) = survey.good.last() {
            let reader = Reader::open(Arc::clone(self.disk()), &self.path(id))?;
            let Some(problem) = reader.verify(threads)?.into_iter().next() else {
                return Ok(Some(id));
            };
            survey.bad.insert(id, problem.to_string());
            survey.good.pop();
        }
        if survey.bad.is_empty() {
            return Ok(None);
        }
        let problems = survey.bad.values().cloned().collect();
        Err(Error::NoneGood { dir: self.dir().to_path_buf(), problems })
    }

    /// Makes `adopted` the first that a start would load: if another attempt is the newest, by a record of its own.
    fn lead_to(
        &self,
        adopted: CheckpointId,
        lineage: &mut Lineage,
        good: &[CheckpointId],
    ) -> Result<()> {
        if lineage.follow(good).first() == Some(&adopted) {
            return Ok(());
        }
        let newest = self.newest_named()?.max(lineage.newest().unwrap_or_default());
        let record = Record { attempt: Attempt(newest.0 + 1), parent: Some(adopted) };
        lineage.add(record).map_err(|problem| self.lineage_error(problem))
    }

    /// Puts `records` in the place of `lineage.jsonl`, whatever that is, and returns where it is kept.
    fn replace_lineage(&self, records: &[Record]) -> Result<Option<PathBuf>> {
        let (disk, dir) = (self.disk().as_ref(), self.dir());
        let (new, path) = (dir.join(NEW_FILE), dir.join(LINEAGE_FILE));
        let lines: io::Result<Vec<String>> = records.iter().map(Record::line).collect();
        let text = lines.map_err(|e| Error::io("writing", &new, e))?.concat();
        write_small(disk, &new, text.as_bytes())?;
        let old = (1..MAX_OLD_FILES).find_map(|number| {
            let old = dir.join(format!("{LINEAGE_FILE}.before-repair-{number}"));
            match disk.rename_noreplace(&path, &old) {
                Ok(()) => Some(Ok(Some(old))),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                Err(e) if e.kind() == io::ErrorKind::NotFound => Some(Ok(None)),
                Err(e) => Some(Err(Error::io("renaming", &path, e))),
            }
        });
        let old = old.unwrap_or(Err(Error::Exists { path: path.clone() }))?;
        disk.rename_noreplace(&new, &path).map_err(|e| Error::io("renaming to", &path, e))?;
        disk.sync_dir(dir).map_err(|e| Error::io("syncing", dir, e))?;
        Ok(old)
    }
}
