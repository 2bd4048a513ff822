//! What `lampyris-steady-rank` computes and writes, shared with the tests that check it.

use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// A line of `history.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `start`, `commit`, `suspend` or `finish`.
    pub what: String,
    /// Attempt of the run directory.
    pub attempt: u64,
    /// Steps completed.
    pub step: u64,
    /// The number after that step.
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

/// Adds a line, in one write.
///
/// # Panics
/// If it cannot be written.
pub fn append(run_dir: &Path, line: &Line) {
    let file = OpenOptions::new().create(true).append(true).open(run_dir.join("history.jsonl"));
    let text = serde_json::to_string(line).expect("plain data becomes JSON") + "\n";
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the history can be written");
}

/// All lines, oldest first.
pub fn read(run_dir: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(run_dir.join("history.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
