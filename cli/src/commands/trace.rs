//! `lampyris trace summary RUN`: what communication took in the newest traced attempt, how much of it the ranks waited
//! for, and how near a step is to the least that it can take.

use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen;
use crate::trace_summary::{RankTrace, table};
use lampyris_checkpoint::disk::regular;
use lampyris_plan::Shares;
use lampyris_plan::timeline;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line of a trace: one has a few hundred bytes.
const MOST_LINE_BYTES: u64 = 64 << 10;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show, per rank and kind of communication, the time under way and the time in which the rank waited for it
    Summary {
        /// Run directory
        run: PathBuf,
        /// Print JSON: one object per rank
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: Command) -> Result<u8, CliError> {
    let Command::Summary { run, json } = command;
    let ranks = summary(&RunDir::open(&run)?)?;
    match json {
        true => screen::json(&ranks),
        false => screen::say(table(&ranks)),
    }
    Ok(0)
}

/// The sums of every rank that has left a trace of the newest traced attempt.
pub(crate) fn summary(run: &RunDir) -> Result<Vec<RankTrace>, CliError> {
    let shares = Shares::of(&run.valid_plan()?);
    let mut ranks = Vec::new();
    for (rank, path) in newest(&run.path().join("traces"))? {
        let mut trace = read(rank, &path)?;
        // A later resume may have fewer ranks: what this one computed is not in its plan.
        if trace.names_acts() && rank < shares.mesh().data {
            let share = shares.rank(rank);
            trace.bound = Some(timeline::bound(share.program(), |act| trace.cost(act)));
        }
        ranks.push(trace);
    }
    Ok(ranks)
}

/// The traces of the newest attempt that has any, by rank.
fn newest(folder: &Path) -> Result<Vec<(usize, PathBuf)>, CliError> {
    let entries = fs::read_dir(folder).map_err(|source| CliError::read(folder, source))?;
    let mut found: Vec<(u64, usize, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| CliError::read(folder, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let numbers = || {
            let rest = name.strip_prefix("rank-")?.strip_suffix(".json")?;
            let (rank, attempt) = rest.split_once(".attempt-")?;
            Some((attempt.parse().ok()?, rank.parse().ok()?))
        };
        found.extend(numbers().map(|(attempt, rank)| (attempt, rank, path)));
    }
    let last = found.iter().map(|(attempt, ..)| *attempt).max();
    let mut ranks: Vec<(usize, PathBuf)> = found
        .into_iter()
        .filter(|(attempt, ..)| Some(*attempt) == last)
        .map(|(_, rank, path)| (rank, path))
        .collect();
    ranks.sort_unstable();
    Ok(ranks)
}

/// One event a line. What is none is left out: a last line that was cut off, and a longer one, read in pieces.
fn read(rank: usize, path: &Path) -> Result<RankTrace, CliError> {
    let failed = |source| CliError::read(path, source);
    let mut file = BufReader::new(regular::open(path).map_err(failed)?);
    let (mut trace, mut line) = (RankTrace::new(rank), Vec::new());
    while file.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let event = line.trim_ascii_end();
        if let Ok(event) = serde_json::from_slice(event.strip_suffix(b",").unwrap_or(event)) {
            trace.add(&event);
        }
        line.clear();
    }
    trace.end();
    Ok(trace)
}
