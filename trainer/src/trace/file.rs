//! A rank's trace in the trace event format of Chrome, which ui.perfetto.dev opens: one event a line, process = rank,
//! thread = track. `lampyris trace summary` reads it; what an event is of stands in its arguments, as plan writes it.

use super::{Track, Wait, track};
use lampyris_checkpoint::disk::regular;
use lampyris_plan::program::Act;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Most spans of a trace: some hundred megabytes. Later ones are left out.
const MAX_SPANS: usize = 2_000_000;

/// A trace being written.
#[derive(Debug)]
pub struct TraceFile {
    out: BufWriter<File>,
    rank: u64,
    /// The same moment on both clocks: traces of several ranks share the time of day.
    origin: (Instant, f64),
    spans: usize,
    failed: bool,
}

impl TraceFile {
    /// `traces/rank-R.attempt-A.json` in the run directory.
    pub fn path(run_dir: &Path, rank: u64, attempt: u64) -> PathBuf {
        run_dir.join("traces").join(format!("rank-{rank}.attempt-{attempt}.json"))
    }

    /// Begins a trace.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path, rank: u64) -> Result<TraceFile> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let origin = (Instant::now(), now.as_secs_f64() * 1e6);
        let mut out = BufWriter::new(regular::create(path)?);
        // The closing bracket is optional in this format, so that a trace of a killed rank can be read.
        write!(
            out,
            "[\n{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{rank},\"args\":{{\"name\":\"rank {rank}\"}}}}"
        )?;
        for track in Track::ALL {
            let (tid, name) = (track as usize, track.name());
            write!(
                out,
                ",\n{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{rank},\"tid\":{tid},\"args\":{{\"name\":\"{name}\"}}}}"
            )?;
        }
        Ok(TraceFile { out, rank, origin, spans: 0, failed: false })
    }

    /// Something that took from `started` to `ended`.
    pub fn span(&mut self, track: Track, name: &str, started: Instant, ended: Instant) {
        let event = json!({ "name": name, "cat": track.name(), "tid": track as usize });
        self.event(event, started, ended);
    }

    /// An instruction.
    pub fn act(&mut self, act: Act, started: Instant, ended: Instant) {
        let track = track(act);
        let event = json!({
            "name": act.to_string(),
            "cat": track.name(),
            "tid": track as usize,
            "args": { "act": act },
        });
        self.event(event, started, ended);
    }

    /// What the compute thread waited for, and its wait.
    pub fn wait(&mut self, wait: &Wait) {
        let track = wait.awaited.track();
        let mut event = json!({
            "name": wait.awaited.to_string(),
            "cat": track.name(),
            "tid": track as usize,
        });
        if let Some(transfer) = wait.transfer() {
            event["args"] = json!({ "transfer": transfer });
        }
        self.event(event, wait.started, wait.done);
        let event = json!({
            "name": format!("wait for {}", track.name()),
            "cat": "wait",
            "tid": Track::Compute as usize,
        });
        self.event(event, wait.asked, wait.asked + wait.waited);
    }

    /// Writes what all events have beside their own.
    fn event(&mut self, mut event: Value, from: Instant, to: Instant) {
        if self.failed || self.spans == MAX_SPANS {
            return;
        }
        self.spans += 1;
        let tenth = |us: f64| (us * 10.0).round() / 10.0;
        let (origin, now) = self.origin;
        let began = now + from.saturating_duration_since(origin).as_secs_f64() * 1e6;
        let took = to.saturating_duration_since(from).as_secs_f64() * 1e6;
        event["ph"] = json!("X");
        event["pid"] = json!(self.rank);
        event["ts"] = json!(tenth(began));
        event["dur"] = json!(tenth(took));
        // A full disk ends the trace, not the training.
        self.failed = write!(self.out, ",\n{event}").is_err();
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        if !self.failed {
            // As above: whoever reads it sees what is missing.
            let _written = self.out.write_all(b"\n]\n").and_then(|()| self.out.flush());
        }
    }
}
