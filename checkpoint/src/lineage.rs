//! Attempts and their ancestry: which checkpoints may be loaded.
//!
//! Every start of a run claims the next attempt number by creating `attempts/N` exclusively, loads a checkpoint, and only
//! then records in `lineage.jsonl` which one. Loading follows that record: the checkpoints of the newest recorded
//! attempt, then those of its parent up to the step from which it began, and so on. An attempt that was thought dead and
//! commits later is on no such path, so its checkpoints are never chosen; and it stops at its next save, because a newer
//! number is claimed.

use crate::disk::Access;
use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::run::{ATTEMPTS, LINEAGE_FILE, Run};
use lampyris_plan::Attempt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

/// One line of `lineage.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The attempt.
    pub attempt: Attempt,
    /// The checkpoint it began from; none for a fresh start.
    pub parent: Option<CheckpointId>,
}

/// All recorded attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    parents: BTreeMap<Attempt, Option<CheckpointId>>,
}

impl Lineage {
    /// Reads the text of `lineage.jsonl`. A line that a power cut tore is skipped: its attempt never began, because
    /// recording returns only after the line is safe.
    pub fn parse(text: &str) -> Lineage {
        let mut parents = BTreeMap::new();
        for line in text.lines() {
            if let Ok(record) = serde_json::from_str::<Record>(line) {
                parents.entry(record.attempt).or_insert(record.parent);
            }
        }
        Lineage { parents }
    }

    /// The newest recorded attempt.
    pub fn newest(&self) -> Option<Attempt> {
        self.parents.keys().next_back().copied()
    }

    /// Recorded attempts, oldest first.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.parents.iter().map(|(&attempt, &parent)| Record { attempt, parent })
    }

    /// The checkpoint `attempt` began from.
    ///
    /// # Errors
    /// [`Error::NotRecorded`].
    pub fn parent_of(&self, attempt: Attempt) -> Result<Option<CheckpointId>> {
        self.parents.get(&attempt).copied().ok_or(Error::NotRecorded { attempt })
    }

    /// The newest recorded attempt and those it descends from, oldest first.
    pub fn ancestry(&self) -> Vec<Record> {
        let mut path = Vec::new();
        let mut next = self.newest();
        while let Some(attempt) = next {
            let parent = self.parents.get(&attempt).copied().flatten();
            path.push(Record { attempt, parent });
            // Parents are older, so this ends.
            next = parent
                .map(|parent| parent.attempt)
                .filter(|older| *older < attempt && self.parents.contains_key(older));
        }
        path.reverse();
        path
    }

    /// Of `committed`, those on the path of the newest attempt, best first.
    pub fn follow(&self, committed: &[CheckpointId]) -> Vec<CheckpointId> {
        let mut path = Vec::new();
        let mut next = self.newest().map(|attempt| (attempt, u64::MAX));
        while let Some((attempt, last_step)) = next {
            let mut own: Vec<CheckpointId> = committed
                .iter()
                .copied()
                .filter(|id| id.attempt == attempt && id.step.0 <= last_step)
                .collect();
            own.sort();
            path.extend(own.into_iter().rev());
            // Parents are older, so this ends; a file that says otherwise is not followed.
            next = match self.parents.get(&attempt) {
                Some(Some(parent)) if parent.attempt < attempt => {
                    Some((parent.attempt, parent.step.0))
                }
                _ => None,
            };
        }
        path
    }
}

impl Run {
    /// Claims the next attempt number. When it returns, no later claim gets the same number, even after a power cut.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn claim_next(&self) -> Result<Attempt> {
        loop {
            let attempt = Attempt(self.newest_claim()?.0 + 1);
            match self.claim(attempt) {
                // Somebody was faster; look again.
                Err(Error::AttemptTaken { .. }) => {}
                other => return other.map(|()| attempt),
            }
        }
    }

    /// Claims attempt `attempt`, which somebody else (a scheduler) has numbered.
    ///
    /// # Errors
    /// [`Error::AttemptTaken`], failures of the disk.
    pub fn claim(&self, attempt: Attempt) -> Result<()> {
        let dir = self.dir().join(ATTEMPTS);
        let path = dir.join(attempt.to_string());
        match self.disk().create(&path, Access::Plain) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::AttemptTaken { attempt });
            }
            other => other.map_err(|e| Error::io("creating", &path, e))?,
        };
        self.disk().sync_dir(&dir).map_err(|e| Error::io("syncing", &dir, e))
    }

    /// The newest claimed attempt, 0 if there is none.
    pub fn newest_claim(&self) -> Result<Attempt> {
        let dir = self.dir().join(ATTEMPTS);
        let names = self.disk().list(&dir).map_err(|e| Error::io("reading", &dir, e))?;
        let newest = names.iter().filter_map(|name| name.parse().ok()).max();
        Ok(Attempt(newest.unwrap_or(0)))
    }

    /// Records which checkpoint a claimed attempt has loaded; it may commit from then on.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn record(&self, attempt: Attempt, parent: Option<CheckpointId>) -> Result<()> {
        let path = self.dir().join(LINEAGE_FILE);
        let text = self.lineage_text()?;
        // After a torn line, begin a new one.
        let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let record = serde_json::to_string(&Record { attempt, parent })
            .map_err(|e| Error::io("writing", &path, e.into()))?;
        let file = self.disk().open_append(&path).map_err(|e| Error::io("writing", &path, e))?;
        file.append(format!("{newline}{record}\n").as_bytes())
            .map_err(|e| Error::io("writing", &path, e))?;
        file.sync().map_err(|e| Error::io("syncing", &path, e))
    }

    /// Reads `lineage.jsonl`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn lineage(&self) -> Result<Lineage> {
        Ok(Lineage::parse(&self.lineage_text()?))
    }

    fn lineage_text(&self) -> Result<String> {
        let path = self.dir().join(LINEAGE_FILE);
        let read = || {
            let file = self.disk().open(&path, Access::Plain)?;
            let mut text = vec![0; file.length()? as usize];
            file.read_at(0, &mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        read().map_err(|e| Error::io("reading", &path, e))
    }

    /// The checkpoints that may be loaded, best first.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub fn candidates(&self) -> Result<Vec<CheckpointId>> {
        Ok(self.lineage()?.follow(&self.committed()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lampyris_plan::Step;

    fn id(step: u64, attempt: u64) -> CheckpointId {
        CheckpointId { step: Step(step), attempt: Attempt(attempt) }
    }

    fn line(attempt: u64, parent: Option<CheckpointId>) -> String {
        serde_json::to_string(&Record { attempt: Attempt(attempt), parent }).unwrap()
    }

    #[test]
    fn the_path_leads_from_the_newest_attempt_to_its_ancestors() {
        // 1 commits 5, 10, 15; 2 begins from 10 and commits 12, 20; 3 was claimed, loaded 10 too, and is a zombie;
        // 4 begins from 20.
        let text = [
            line(1, None),
            line(2, Some(id(10, 1))),
            line(4, Some(id(20, 2))),
            line(3, Some(id(10, 1))),
        ]
        .join("\n");
        let committed =
            [id(5, 1), id(10, 1), id(12, 2), id(15, 1), id(20, 2), id(25, 3), id(30, 2), id(40, 1)];
        let path = Lineage::parse(&text).follow(&committed);
        assert_eq!(path, [id(20, 2), id(12, 2), id(10, 1), id(5, 1)]);
        assert_eq!(Lineage::parse("").follow(&committed), []);
        let ancestry = Lineage::parse(&text).ancestry();
        let attempts: Vec<u64> = ancestry.iter().map(|record| record.attempt.0).collect();
        assert_eq!(attempts, [1, 2, 4]);
        assert_eq!(ancestry[2].parent, Some(id(20, 2)));
    }

    #[test]
    fn torn_lines_and_loops_do_no_harm() {
        let text =
            format!("{}\n{{\"attempt\": 2, \"par\n{}\n", line(1, None), line(3, Some(id(7, 9))));
        let lineage = Lineage::parse(&text);
        assert_eq!(lineage.records().map(|r| r.attempt.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(lineage.follow(&[id(7, 9), id(8, 3)]), [id(8, 3)]);
        let own = format!("{}\n", line(1, Some(id(3, 1))));
        assert_eq!(Lineage::parse(&own).follow(&[id(3, 1)]), [id(3, 1)]);
    }
}
