//! What an attempt was started with. `plan.toml` of a run is that of its next start and changes when the run is resumed
//! under another recipe; `attempts/N.json` stays, so that it can be said of every step what it computed and read.

use crate::disk;
use crate::error::{Error, Result};
use crate::run::{ATTEMPTS, Run};
use crate::shard::write_small;
use lampyris_plan::{Attempt, TrainPlan};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Largest `attempts/N.json`: a plan has a few kilobytes.
const MAX_START_BYTES: u64 = 16 << 20;

/// Plan and text of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Fingerprint of the prepared text.
    pub dataset: String,
    /// What the ranks compute.
    pub plan: TrainPlan,
}

impl Run {
    /// Keeps what a claimed attempt was started with; one rank calls it, before it records the attempt
    /// ([`Run::record`]).
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn keep_start(&self, attempt: Attempt, start: &Start) -> Result<()> {
        let path = self.start_path(attempt);
        let text =
            serde_json::to_vec_pretty(start).map_err(|e| Error::io("writing", &path, e.into()))?;
        write_small(self.disk().as_ref(), &path, &text)?;
        let dir = self.dir().join(ATTEMPTS);
        self.disk().sync_dir(&dir).map_err(|e| Error::io("syncing", &dir, e))
    }

    /// What `attempt` was started with; none if a version that kept no such record started it.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn start_of(&self, attempt: Attempt) -> Result<Option<Start>> {
        let path = self.start_path(attempt);
        match disk::read_whole(self.disk().as_ref(), &path, MAX_START_BYTES) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| Error::malformed(&path, e.to_string())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Err(Error::malformed(&path, e.to_string()))
            }
            Err(e) => Err(Error::io("reading", &path, e)),
        }
    }

    fn start_path(&self, attempt: Attempt) -> PathBuf {
        self.dir().join(ATTEMPTS).join(format!("{attempt}.json"))
    }
}
