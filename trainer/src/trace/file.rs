//! A rank's trace in the trace event format of Chrome, which ui.perfetto.dev opens: one event a line, process = rank,
//! thread = lane. `lampyris trace summary` reads it.

use super::Lane;
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
        let mut out = BufWriter::new(File::create(path)?);
        // The closing bracket is optional in this format, so that a trace of a killed rank can be read.
        write!(
            out,
            "[\n{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{rank},\"args\":{{\"name\":\"rank {rank}\"}}}}"
        )?;
        for lane in Lane::ALL {
            let (tid, name) = (lane as usize, lane.name());
            write!(
                out,
                ",\n{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{rank},\"tid\":{tid},\"args\":{{\"name\":\"{name}\"}}}}"
            )?;
        }
        Ok(TraceFile { out, rank, origin, spans: 0, failed: false })
    }

    /// Something that took from `started` to `ended`.
    pub fn span(&mut self, lane: Lane, name: &str, started: Instant, ended: Instant) {
        self.event((lane, lane.name()), name, started, ended);
    }

    /// A wait of the compute thread for what `lane` does.
    pub fn wait(&mut self, lane: Lane, started: Instant, ended: Instant) {
        self.event((Lane::Compute, "wait"), &format!("wait for {}", lane.name()), started, ended);
    }

    fn event(&mut self, (lane, category): (Lane, &str), name: &str, from: Instant, to: Instant) {
        if self.failed || self.spans == MAX_SPANS {
            return;
        }
        self.spans += 1;
        let since = |at: Instant| {
            let (origin, now) = self.origin;
            now + at.saturating_duration_since(origin).as_secs_f64() * 1e6
        };
        let (from, to) = (since(from), since(to));
        let (rank, tid, took) = (self.rank, lane as usize, to - from);
        let written = write!(
            self.out,
            ",\n{{\"ph\":\"X\",\"name\":\"{name}\",\"cat\":\"{category}\",\"pid\":{rank},\"tid\":{tid},\"ts\":{from:.1},\"dur\":{took:.1}}}"
        );
        // A full disk ends the trace, not the training.
        self.failed = written.is_err();
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
