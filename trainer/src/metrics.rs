//! Metrics of a run: `metrics.jsonl`, one object a line, and TensorBoard event files of the same numbers. Both hold one
//! value a step, also of a run that went on from a checkpoint and took some steps again: the later values supersede.

mod superseded;

use crate::tensorboard::EventFile;
use lampyris_checkpoint::disk::regular;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Which attempt writes metrics, and after which step it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Began {
    /// Attempt of the run.
    pub attempt: u64,
    /// Steps completed in the checkpoint it began from; 0 without one.
    pub step: u64,
}

/// Writes metrics lines.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    lines: File,
    events: Option<EventFile>,
}

impl Metrics {
    /// Opens the files of a run directory. Of an attempt that goes on, the lines that it will write again are moved to
    /// `metrics.superseded.jsonl`, and a line `resumed` says from which step on the new ones count.
    ///
    /// # Errors
    /// They cannot be read or created; the message names the file.
    pub fn open(run_dir: &Path, began: Began, tensorboard: bool) -> io::Result<Metrics> {
        let path = run_dir.join("metrics.jsonl");
        let goes_on = began.attempt > 1 || began.step > 0;
        let superseded = match goes_on {
            true => superseded::set_aside(run_dir, &path, began.step)?,
            false => 0,
        };
        let lines = regular::append_or_create(&path).map_err(|error| at(&path, &error))?;
        let folder = run_dir.join("tensorboard");
        let next_step = began.step + 1;
        let create = || EventFile::create(&folder, began.attempt, goes_on.then_some(next_step));
        let events = tensorboard.then(create).transpose().map_err(|error| at(&folder, &error))?;
        let mut metrics = Metrics { path, lines, events };
        if goes_on {
            let resumed = json!({
                "attempt": began.attempt, "next_step": next_step, "superseded_lines": superseded
            });
            metrics.line(&json!({ "step": began.step, "resumed": resumed }))?;
        }
        Ok(metrics)
    }

    /// Appends one line; every number in it, nested ones by dotted name, becomes a TensorBoard scalar of `step`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&mut self, step: u64, values: Map<String, Value>) -> io::Result<()> {
        let values = Value::Object(values);
        if let Some(events) = &mut self.events {
            let mut scalars = Vec::new();
            flatten("", &values, &mut scalars);
            events.scalars(step, &scalars)?;
        }
        self.line(&values)
    }

    fn line(&mut self, values: &Value) -> io::Result<()> {
        let line = format!("{values}\n");
        self.lines.write_all(line.as_bytes()).map_err(|error| at(&self.path, &error))
    }
}

/// `error` with the file it is about.
fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, f32)>) {
    match value {
        Value::Number(number) => {
            let value = number.as_f64().unwrap_or(f64::NAN) as f32;
            out.push((prefix.to_string(), value));
        }
        Value::Object(map) => {
            for (key, value) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}/{key}") };
                flatten(&name, value, out);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
