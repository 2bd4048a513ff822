//! What `lampyris-steady-rank` computes and writes, shared with the tests that check it.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;

/// A line of `history.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `start`, `saving` before the rename of a checkpoint, `commit` after it, `suspend`, `finish`, or `beside`: another
    /// process was this rank when this one began.
    pub what: String,
    /// Attempt of the run directory.
    pub attempt: u64,
    /// Steps completed.
    pub step: u64,
    /// The number after that step, as loaded or computed.
    pub state: u64,
}

/// The number after `step`, given the one before.
pub fn next_state(state: u64, step: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step)
}

/// The number after `steps` undisturbed steps.
pub fn state_after(steps: u64) -> u64 {
    (1..=steps).fold(0, next_state)
}

/// Adds a line, in one write. A line that a full disk cuts off spoils no other.
///
/// # Errors
/// Failures of the disk.
///
/// # Panics
/// Never.
pub fn append(run_dir: &Path, line: &Line) -> io::Result<()> {
    let text = serde_json::to_string(line).expect("plain data becomes JSON");
    let path = run_dir.join("history.jsonl");
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("\n{text}\n").as_bytes())
}

/// Takes rank `rank` of the run for the life of this process; none if another process has it.
///
/// # Errors
/// Failures of the disk.
pub fn take_rank(run_dir: &Path, rank: u64) -> io::Result<Option<File>> {
    let path = run_dir.join(format!("rank-{rank}.lock"));
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// All lines, oldest first.
pub fn read(run_dir: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(run_dir.join("history.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
