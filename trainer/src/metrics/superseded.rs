//! What becomes of `metrics.jsonl` when a run goes on from a checkpoint: lines of steps that will be taken again leave it for
//! `metrics.superseded.jsonl`, so that a reader who knows nothing of attempts finds every step once.
//!
//! The new file appears by a rename. An older attempt that was thought dead goes on writing into the file that nobody sees
//! any more.

use super::at;
use lampyris_checkpoint::disk::regular;
use serde::Deserialize;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::Path;

/// Of a line, what decides.
#[derive(Debug, Deserialize)]
struct Line {
    step: u64,
    /// Only in lines of training steps; an evaluation or a save may be told some steps late.
    tokens: Option<u64>,
}

/// Moves the lines of `path` that steps after `step` supersede, and torn ones, and says how many. Lines that an earlier
/// release left standing there twice are moved as well.
pub(super) fn set_aside(run_dir: &Path, path: &Path, step: u64) -> io::Result<u64> {
    let file = match regular::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        other => other.map_err(|error| at(path, &error))?,
    };
    let mut lines = Vec::new();
    for_each_line(&file, |line| {
        lines.push(serde_json::from_slice::<Line>(line).ok());
        Ok(())
    })
    .map_err(|error| at(path, &error))?;
    let keep = kept(&lines, step);
    let moved = keep.iter().filter(|keep| !**keep).count() as u64;

    let temporary = run_dir.join("metrics.jsonl.tmp");
    let aside = run_dir.join("metrics.superseded.jsonl");
    let kept = regular::create(&temporary);
    let mut kept = kept.map(BufWriter::new).map_err(|error| at(&temporary, &error))?;
    let old = regular::append_or_create(&aside);
    let mut old = old.map(BufWriter::new).map_err(|error| at(&aside, &error))?;
    let file = regular::open(path).map_err(|error| at(path, &error))?;
    let mut keep = keep.into_iter();
    for_each_line(&file, |line| {
        // What another attempt has added meanwhile is not of this run's history.
        let Some(keep) = keep.next() else { return Ok(()) };
        let to = if keep { &mut kept } else { &mut old };
        to.write_all(line)?;
        to.write_all(b"\n")
    })
    .map_err(|error| at(path, &error))?;
    // The old values are safe before they leave the file.
    finish(old).map_err(|error| at(&aside, &error))?;
    finish(kept).map_err(|error| at(&temporary, &error))?;
    fs::rename(&temporary, path).map_err(|error| at(path, &error))?;
    Ok(moved)
}

/// Which lines stay: those that no later line, and no step after `step`, takes back.
fn kept(lines: &[Option<Line>], step: u64) -> Vec<bool> {
    // The first step that what comes later takes again.
    let mut again = step.saturating_add(1);
    let mut keep = vec![false; lines.len()];
    for (line, keep) in lines.iter().zip(&mut keep).rev() {
        let Some(line) = line else { continue };
        *keep = line.step < again;
        if line.tokens.is_some() {
            again = again.min(line.step);
        }
    }
    keep
}

fn for_each_line(file: &File, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        each(line.strip_suffix(b"\n").unwrap_or(&line))?;
        line.clear();
    }
    Ok(())
}

fn finish(file: BufWriter<File>) -> io::Result<()> {
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}
