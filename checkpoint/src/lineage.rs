//! Attempts and their ancestry: which checkpoints may be loaded.
//!
//! Every start of a run claims the next attempt number by creating `attempts/N` exclusively, loads a checkpoint, and only
//! then records in `lineage.jsonl` which one. Loading follows that record: the checkpoints of the newest recorded
//! attempt, then those of its parent up to the step from which it began, and so on. An attempt that was thought dead and
//! commits later is on no such path, so its checkpoints are never chosen; and it stops at its next save, because a newer
//! number is claimed (`claims.rs`).
//!
//! The records may be lost or damaged: by a file system that crashed, a backup that is older than the checkpoints, a hand
//! that tidied up. That a checkpoint is on no path then says nothing about it. So only what a record makes superseded is
//! ([`Place`]); where there is anything else, the run stops before it writes or deletes, and a person lets `repair.rs` write
//! the records anew.

use crate::disk;
use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::read::read_manifest;
use crate::run::{LINEAGE_FILE, Run};
use lampyris_plan::Attempt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

/// Largest number of an attempt: a start per second for thirty years. Whatever names a larger one is damage.
pub const MAX_ATTEMPT: Attempt = Attempt(1_000_000_000);

/// Largest `lineage.jsonl`: a record has at most 100 bytes.
const MAX_LINEAGE_BYTES: u64 = 64 << 20;

/// At most this many checkpoints are named in one message.
const MAX_NAMED: usize = 5;

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

/// What the records say about a committed checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It may be loaded.
    OnPath,
    /// A newer attempt began from another checkpoint.
    Superseded,
    /// Nothing: records are missing.
    Unknown,
}

/// One line of the file.
enum Line {
    Record(Record),
    /// A power cut tore it while it was written.
    Torn,
    Damaged(String),
}

impl Line {
    /// A torn line ends early or, where the file had grown before its bytes were safe, in zeros. It may also stand in the
    /// middle: the next start writes on below it.
    fn parse(line: &[u8]) -> Line {
        let end = line.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let written = &line[..end];
        match serde_json::from_slice(written) {
            Ok(record) => Line::Record(record),
            Err(_) if written.is_empty() || line.starts_with(&[0]) => Line::Torn,
            Err(e) if e.is_eof() => Line::Torn,
            Err(e) => Line::Damaged(e.to_string()),
        }
    }
}

impl Lineage {
    /// Reads the text of `lineage.jsonl`. A line that a power cut tore is left out: its attempt never began, because
    /// recording returns only after the line is safe.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub fn parse(text: &[u8]) -> std::result::Result<Lineage, String> {
        let mut lineage = Lineage::default();
        for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let added = match Line::parse(line) {
                Line::Record(record) => lineage.add(record),
                Line::Torn => Ok(()),
                Line::Damaged(problem) => Err(format!("it is damaged: {problem}")),
            };
            added.map_err(|problem| format!("line {number}: {problem}"))?;
        }
        Ok(lineage)
    }

    /// What can still be read of a damaged text: of records that contradict each other, the first.
    pub(crate) fn salvage(text: &[u8]) -> Lineage {
        let mut lineage = Lineage::default();
        for line in text.split(|&byte| byte == b'\n') {
            if let Line::Record(record) = Line::parse(line) {
                lineage.add(record).ok();
            }
        }
        lineage
    }

    /// Takes a record in.
    ///
    /// # Errors
    /// It contradicts itself or what is there.
    pub(crate) fn add(&mut self, record: Record) -> std::result::Result<(), String> {
        let Record { attempt, parent } = record;
        if attempt > MAX_ATTEMPT {
            return Err(format!("there is no attempt {attempt}: the largest is {MAX_ATTEMPT}"));
        }
        if let Some(parent) = parent.filter(|parent| parent.attempt >= attempt) {
            return Err(format!("attempt {attempt} cannot have begun from {parent}"));
        }
        match self.parents.insert(attempt, parent) {
            Some(first) if first != parent => {
                self.parents.insert(attempt, first);
                let (first, second) = (origin(first), origin(parent));
                Err(format!("attempt {attempt} began from {first}, and from {second}"))
            }
            _ => Ok(()),
        }
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
        for (attempt, _) in self.path().stretches {
            // The last one may be known from its child's record alone.
            if let Some(&parent) = self.parents.get(&attempt) {
                path.push(Record { attempt, parent });
            }
        }
        path.reverse();
        path
    }

    /// Of `committed`, those on the path of the newest attempt, best first.
    pub fn follow(&self, committed: &[CheckpointId]) -> Vec<CheckpointId> {
        let mut found = Vec::new();
        for (attempt, last_step) in self.path().stretches {
            let counts = |id: &CheckpointId| id.attempt == attempt && id.step.0 <= last_step;
            let mut own: Vec<CheckpointId> = committed.iter().copied().filter(counts).collect();
            own.sort();
            found.extend(own.into_iter().rev());
        }
        found
    }

    /// Where each of `committed` stands.
    pub(crate) fn places(&self, committed: &[CheckpointId]) -> Vec<(CheckpointId, Place)> {
        let path = self.path();
        committed.iter().map(|&id| (id, self.place(&path, id))).collect()
    }

    fn place(&self, path: &Path, id: CheckpointId) -> Place {
        let stretch = path.stretches.iter().find(|(attempt, _)| *attempt == id.attempt);
        // Beyond a record that is missing, nobody knows which attempts the path led through.
        let is_known = path.missing.is_none_or(|missing| id.attempt > missing);
        match stretch {
            Some((_, last_step)) if id.step.0 <= *last_step => Place::OnPath,
            Some(_) => Place::Superseded,
            None if is_known && self.parents.contains_key(&id.attempt) => Place::Superseded,
            None => Place::Unknown,
        }
    }

    /// Why nobody can say which of `committed` go on, if so.
    pub(crate) fn unexplained(&self, committed: &[CheckpointId]) -> Option<String> {
        let mut unknown = self.places(committed);
        unknown.retain(|(_, place)| *place == Place::Unknown);
        let unknown: Vec<CheckpointId> = unknown.into_iter().map(|(id, _)| id).collect();
        if !unknown.is_empty() {
            return Some(format!(
                "no record in {LINEAGE_FILE} says where {} came from",
                named(&unknown)
            ));
        }
        if committed.is_empty() || !self.follow(committed).is_empty() {
            return None;
        }
        let newest = self.newest().unwrap_or_default();
        let has = named(committed);
        Some(format!(
            "by {LINEAGE_FILE}, attempt {newest} began without any of its checkpoints: {has}"
        ))
    }

    fn path(&self) -> Path {
        let mut path = Path { stretches: Vec::new(), missing: None };
        let mut next = self.newest().map(|attempt| (attempt, u64::MAX));
        // Parents are older, so this ends.
        while let Some((attempt, last_step)) = next {
            path.stretches.push((attempt, last_step));
            let parent = self.parents.get(&attempt);
            if parent.is_none() {
                path.missing = Some(attempt);
            }
            next = parent.copied().flatten().map(|parent| (parent.attempt, parent.step.0));
        }
        path
    }
}

/// The attempts that led to the newest one.
struct Path {
    /// Newest first, each with the last step of it that counts.
    stretches: Vec<(Attempt, u64)>,
    /// The last of them, if it has no record.
    missing: Option<Attempt>,
}

pub(crate) fn origin(parent: Option<CheckpointId>) -> String {
    parent.map_or("nothing".to_string(), |id| id.to_string())
}

/// Some of `ids` by name, the others by number.
pub(crate) fn named(ids: &[CheckpointId]) -> String {
    let mut names: Vec<String> =
        ids.iter().rev().take(MAX_NAMED).map(ToString::to_string).collect();
    if ids.len() > MAX_NAMED {
        names.push(format!("{} more", ids.len() - MAX_NAMED));
    }
    names.join(", ")
}

impl Run {
    /// Records which checkpoint a claimed attempt has loaded; it may commit from then on.
    ///
    /// # Errors
    /// [`Error::Superseded`] if it is not the newest, [`Error::Lineage`], failures of the disk.
    pub fn record(&self, attempt: Attempt, parent: Option<CheckpointId>) -> Result<()> {
        let path = self.dir().join(LINEAGE_FILE);
        let record = Record { attempt, parent };
        let text = self.lineage_text()?;
        let mut lineage = self.parse_lineage(&text)?;
        self.refuse_superseded(attempt)?;
        lineage.add(record).map_err(|problem| self.lineage_error(problem))?;
        // After a torn line, begin a new one.
        let newline = if text.is_empty() || text.ends_with(b"\n") { "" } else { "\n" };
        let line = record.line().map_err(|e| Error::io("writing", &path, e))?;
        let file = self.disk().open_append(&path).map_err(|e| Error::io("writing", &path, e))?;
        file.append(format!("{newline}{line}").as_bytes())
            .map_err(|e| Error::io("writing", &path, e))?;
        file.sync().map_err(|e| Error::io("syncing", &path, e))
    }

    /// Reads `lineage.jsonl`; a run that has none has no records.
    ///
    /// # Errors
    /// [`Error::Lineage`] names the line that is damaged; the file cannot be read.
    pub fn lineage(&self) -> Result<Lineage> {
        self.parse_lineage(&self.lineage_text()?)
    }

    fn parse_lineage(&self, text: &[u8]) -> Result<Lineage> {
        let parsed = Lineage::parse(text);
        parsed.map_err(|problem| self.lineage_error(format!("{LINEAGE_FILE}, {problem}")))
    }

    pub(crate) fn lineage_text(&self) -> Result<Vec<u8>> {
        let path = self.dir().join(LINEAGE_FILE);
        match disk::read_whole(self.disk().as_ref(), &path, MAX_LINEAGE_BYTES) {
            Ok(text) => Ok(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Err(self.lineage_error(format!("{LINEAGE_FILE}: {e}")))
            }
            Err(e) => Err(Error::io("reading", &path, e)),
        }
    }

    pub(crate) fn lineage_error(&self, problem: String) -> Error {
        Error::Lineage { dir: self.dir().to_path_buf(), problem }
    }

    /// The checkpoints on the path of the newest recorded attempt, best first; those that the records say nothing about are
    /// left out. What starts from one uses [`Run::to_load`].
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub fn candidates(&self) -> Result<Vec<CheckpointId>> {
        Ok(self.lineage()?.follow(&self.committed()?))
    }

    /// The records, and the committed checkpoints, every one of which they explain.
    ///
    /// # Errors
    /// [`Error::Lineage`] if they do not; the run directory cannot be read.
    pub(crate) fn explained(&self) -> Result<(Lineage, Vec<CheckpointId>)> {
        // Names before records: whoever commits has recorded its attempt.
        let committed = self.committed()?;
        let lineage = self.lineage()?;
        if let Some(problem) = lineage.unexplained(&committed) {
            return Err(self.lineage_error(problem));
        }
        Ok((lineage, committed))
    }

    /// The checkpoints that a start may load, best first; empty only if the run has not saved any yet.
    ///
    /// # Errors
    /// [`Error::Lineage`]; [`Error::NoneGood`] if it has, and none is left: a run never starts over silently.
    pub fn to_load(&self) -> Result<Vec<CheckpointId>> {
        let (lineage, committed) = self.explained()?;
        self.refuse_contradictions(&lineage, &committed)?;
        let path = lineage.follow(&committed);
        if !path.is_empty() {
            return Ok(path);
        }
        self.refuse_nothing_left(&lineage).map(|()| path)
    }

    /// Refuses records that the checkpoints themselves contradict: each says where its attempt began.
    pub(crate) fn refuse_contradictions(
        &self,
        lineage: &Lineage,
        committed: &[CheckpointId],
    ) -> Result<()> {
        for &id in committed {
            let Some(&recorded) = lineage.parents.get(&id.attempt) else { continue };
            match read_manifest(self.disk().as_ref(), &self.path(id)) {
                Ok(manifest) if manifest.parent != recorded => {
                    let (recorded, found) = (origin(recorded), origin(manifest.parent));
                    let attempt = id.attempt;
                    return Err(self.lineage_error(format!(
                        "by {LINEAGE_FILE}, attempt {attempt} began from {recorded}; by its checkpoint {id}, from {found}"
                    )));
                }
                // What is damaged says nothing, and whoever loads it says so.
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses a run that has saved before, by what its records and folders say, and has nothing to load.
    pub(crate) fn refuse_nothing_left(&self, lineage: &Lineage) -> Result<()> {
        let quarantined = self.quarantined()?;
        let mut problems: Vec<String> =
            quarantined.iter().map(|name| format!("{name} was set aside")).collect();
        for Record { attempt, parent } in lineage.records() {
            if let Some(parent) = parent {
                problems
                    .push(format!("{parent}, from which attempt {attempt} began, is not there"));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::NoneGood { dir: self.dir().to_path_buf(), problems })
    }
}

impl Record {
    /// The line of the file, its end included.
    pub(crate) fn line(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
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
        let path = Lineage::parse(text.as_bytes()).unwrap().follow(&committed);
        assert_eq!(path, [id(20, 2), id(12, 2), id(10, 1), id(5, 1)]);
        assert_eq!(Lineage::parse(b"").unwrap().follow(&committed), []);
        let ancestry = Lineage::parse(text.as_bytes()).unwrap().ancestry();
        let attempts: Vec<u64> = ancestry.iter().map(|record| record.attempt.0).collect();
        assert_eq!(attempts, [1, 2, 4]);
        assert_eq!(ancestry[2].parent, Some(id(20, 2)));
    }

    #[test]
    fn a_torn_line_never_was_and_a_damaged_one_is_an_error() {
        let (one, two, three) = (line(1, None), line(2, Some(id(10, 1))), line(3, Some(id(10, 1))));
        let attempts = |text: &[u8]| -> std::result::Result<Vec<u64>, String> {
            Ok(Lineage::parse(text)?.records().map(|record| record.attempt.0).collect())
        };
        for end in 0..two.len() {
            // At the end of the file, in the middle, with zeros where bytes were not safe, and zeros alone.
            let torn = &two[..end];
            let zeros = "\0".repeat(two.len() - end);
            assert_eq!(attempts(format!("{one}\n{torn}").as_bytes()), Ok(vec![1]), "{torn}");
            assert_eq!(attempts(format!("{one}\n{torn}{zeros}").as_bytes()), Ok(vec![1]));
            let text = format!("{one}\n{torn}{zeros}\n{three}\n");
            assert_eq!(attempts(text.as_bytes()), Ok(vec![1, 3]), "{torn}");
        }
        assert_eq!(attempts(format!("{one}\n{two}").as_bytes()), Ok(vec![1, 2]), "only its end");
        assert_eq!(attempts(format!("{one}\n{one}\n").as_bytes()), Ok(vec![1]), "said twice");
        let cases = [
            (two.replace("parent", "pa\u{1}ent"), "line 2: it is damaged"),
            (two.replace('{', "["), "line 2: it is damaged"),
            (two[3..].to_string(), "line 2: it is damaged"),
            (line(1, Some(id(10, 0))), "attempt 1 began from nothing, and from step-10.attempt-0"),
            (line(2, Some(id(10, 2))), "attempt 2 cannot have begun from step-10.attempt-2"),
            (line(2, Some(id(10, 9))), "attempt 2 cannot have begun from step-10.attempt-9"),
            (line(u64::MAX, None), "there is no attempt 18446744073709551615"),
        ];
        for (bad, words) in cases {
            let text = format!("{one}\n{bad}\n{three}\n");
            let problem = attempts(text.as_bytes()).unwrap_err();
            assert!(problem.contains(words), "{bad}: {problem}");
            let salvaged = Lineage::salvage(text.as_bytes());
            assert_eq!(salvaged.records().map(|r| r.attempt.0).collect::<Vec<_>>(), [1, 3]);
        }
    }

    #[test]
    fn only_what_a_record_supersedes_is_superseded() {
        use Place::{OnPath, Superseded, Unknown};
        let records = [(1, None), (2, Some(id(10, 1))), (3, Some(id(10, 1))), (5, Some(id(20, 3)))];
        let text = |without: u64| {
            let kept = records.iter().filter(|(attempt, _)| *attempt != without);
            kept.map(|&(attempt, parent)| line(attempt, parent) + "\n").collect::<String>()
        };
        let committed =
            [id(5, 1), id(15, 1), id(12, 2), id(20, 3), id(25, 3), id(22, 4), id(30, 6)];
        let places = |without| {
            let lineage = Lineage::parse(text(without).as_bytes()).unwrap();
            let problem = lineage.unexplained(&committed).unwrap();
            assert!(problem.contains("step-30.attempt-6"), "{problem}");
            lineage.places(&committed).into_iter().map(|(_, place)| place).collect::<Vec<_>>()
        };
        let all = [OnPath, Superseded, Superseded, OnPath, Superseded, Unknown, Unknown];
        assert_eq!(places(0), all);
        // Without the record of 3, nobody knows whether 1 or 2 led there.
        let lost = [Unknown, Unknown, Unknown, OnPath, Superseded, Unknown, Unknown];
        assert_eq!(places(3), lost);
        assert!(places(1).starts_with(&[OnPath, Superseded, Superseded]));
        assert_eq!(Lineage::default().places(&[id(5, 1)]), [(id(5, 1), Unknown)]);
        assert_eq!(Lineage::default().unexplained(&[]), None);
        // All is known, and nothing may be loaded.
        let anew = [line(1, None), line(2, None)].join("\n");
        let problem = Lineage::parse(anew.as_bytes()).unwrap().unexplained(&[id(5, 1)]).unwrap();
        assert!(problem.contains("attempt 2 began without any"), "{problem}");
    }
}
