//! Metrics of a run: `metrics.jsonl`, one object a line, and TensorBoard event files of the same numbers.

use crate::tensorboard::EventFile;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Writes metrics lines. A resumed run appends; lines of steps that were done again stand there again.
#[derive(Debug)]
pub struct Metrics {
    lines: File,
    events: Option<EventFile>,
}

impl Metrics {
    /// Opens the files of a run directory.
    ///
    /// # Errors
    /// They cannot be created.
    pub fn open(run_dir: &Path, attempt: u64, tensorboard: bool) -> io::Result<Metrics> {
        let path = run_dir.join("metrics.jsonl");
        let lines = OpenOptions::new().create(true).append(true).open(path)?;
        let events = match tensorboard {
            true => Some(EventFile::create(&run_dir.join("tensorboard"), attempt)?),
            false => None,
        };
        Ok(Metrics { lines, events })
    }

    /// Appends one line; every number in it, nested ones by dotted name, becomes a TensorBoard scalar of `step`.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&mut self, step: u64, values: Map<String, Value>) -> io::Result<()> {
        if let Some(events) = &mut self.events {
            let mut scalars = Vec::new();
            flatten("", &Value::Object(values.clone()), &mut scalars);
            events.scalars(step, &scalars)?;
        }
        let mut line = Value::Object(values).to_string();
        line.push('\n');
        self.lines.write_all(line.as_bytes())
    }
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
