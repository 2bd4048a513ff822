//! The numbers of attempts: each start takes the next one, and what is older than the newest writes no more.
//!
//! A number counts as taken wherever it was used: `attempts/N` may be lost (a file of no bytes is what a copy or a clean-up
//! leaves out), so records and the names of all checkpoints, unfinished ones included, say it too.

use crate::disk::Access;
use crate::error::{Error, Result};
use crate::format::CheckpointId;
use crate::lineage::MAX_ATTEMPT;
use crate::run::{ATTEMPTS, Run, attempts_in};
use lampyris_plan::Attempt;
use std::io;
use std::path::Path;

impl Run {
    /// Claims the next attempt number. When it returns, no later claim gets the same number, even after a power cut.
    ///
    /// # Errors
    /// [`Error::AttemptNumber`] if there is no next one, failures of the disk.
    pub fn claim_next(&self) -> Result<Attempt> {
        loop {
            let attempt = Attempt(self.newest_claim()?.0 + 1);
            match self.claim(attempt) {
                // Somebody was faster; look again.
                Err(Error::AttemptTaken { .. } | Error::Superseded { .. }) => {}
                other => return other.map(|()| attempt),
            }
        }
    }

    /// Claims attempt `attempt`, which somebody else (a scheduler) has numbered.
    ///
    /// # Errors
    /// [`Error::AttemptTaken`], [`Error::Superseded`], [`Error::AttemptNumber`], failures of the disk.
    pub fn claim(&self, attempt: Attempt) -> Result<()> {
        let dir = self.dir().join(ATTEMPTS);
        let path = dir.join(attempt.to_string());
        check_number(&path, attempt)?;
        self.refuse_superseded(attempt)?;
        if self.newest_claim()? == attempt {
            return Err(Error::AttemptTaken { attempt });
        }
        match self.disk().create(&path, Access::Plain) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::AttemptTaken { attempt });
            }
            other => other.map_err(|e| Error::io("creating", &path, e))?,
        };
        self.disk().sync_dir(&dir).map_err(|e| Error::io("syncing", &dir, e))
    }

    /// The newest attempt that anything in the run directory names, 0 if there is none.
    ///
    /// # Errors
    /// [`Error::AttemptNumber`], [`Error::Lineage`], the run directory cannot be read.
    pub fn newest_claim(&self) -> Result<Attempt> {
        Ok(self.newest_named()?.max(self.lineage()?.newest().unwrap_or_default()))
    }

    /// The newest attempt that the name of a file or folder tells of.
    pub(crate) fn newest_named(&self) -> Result<Attempt> {
        let dir = self.dir().join(ATTEMPTS);
        let mut newest = Attempt(0);
        for name in self.disk().list(&dir).map_err(|e| Error::io("reading", &dir, e))? {
            newest = newest.max(claimed(&dir, &name)?.unwrap_or_default());
        }
        for name in self.names()? {
            for attempt in attempts_in(&name) {
                check_number(&self.checkpoints_dir().join(&name), attempt)?;
                newest = newest.max(attempt);
            }
        }
        Ok(newest)
    }

    /// Refuses an attempt that is not the newest one.
    pub(crate) fn refuse_superseded(&self, attempt: Attempt) -> Result<()> {
        let by = self.newest_claim()?;
        if by > attempt { Err(Error::Superseded { attempt, by }) } else { Ok(()) }
    }

    /// Where `attempt`, which is about to commit, began.
    pub(crate) fn check_current(&self, attempt: Attempt) -> Result<Option<CheckpointId>> {
        self.refuse_superseded(attempt)?;
        self.lineage()?.parent_of(attempt)
    }

    /// What `error` of a save means: the successor of an attempt sweeps its unfinished files away.
    pub(crate) fn explain(&self, attempt: Attempt, error: Error) -> Error {
        self.refuse_superseded(attempt).err().filter(Error::is_superseded).unwrap_or(error)
    }
}

/// The attempt that `name` in `attempts/` claims, or tells the start of; none if it is another file.
fn claimed(dir: &Path, name: &str) -> Result<Option<Attempt>> {
    let digits = name.strip_suffix(".json").unwrap_or(name);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    let path = dir.join(name);
    match digits.parse() {
        Ok(number) => check_number(&path, Attempt(number)).map(|()| Some(Attempt(number))),
        Err(_) => Err(Error::AttemptNumber { path, number: digits.to_string() }),
    }
}

fn check_number(path: &Path, attempt: Attempt) -> Result<()> {
    if attempt <= MAX_ATTEMPT {
        return Ok(());
    }
    Err(Error::AttemptNumber { path: path.to_path_buf(), number: attempt.to_string() })
}
