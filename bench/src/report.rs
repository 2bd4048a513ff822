//! What a bench says, for people and for programs.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Results of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What was measured, in words.
    pub title: String,
    /// One line per size.
    pub lines: Vec<Line>,
    /// One raw tcp stream between two nodes, bytes per second.
    pub raw_stream: Option<f64>,
    /// The host's one-minute load at start and end: more than the ranks themselves make the figures doubtful.
    pub load: (f64, f64),
}

/// Results of one size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Bytes per rank.
    pub bytes: usize,
    /// Operations measured.
    pub operations: usize,
    /// Seconds of the fastest one.
    pub min_s: f64,
    /// Seconds of the median one (the slowest rank of each).
    pub median_s: f64,
    /// Seconds from the first to the last, divided by their number; between nodes only.
    pub mean_s: f64,
    /// Factor from algorithm to bus bandwidth.
    pub bus_factor: f64,
    /// Bytes sent over the network per operation, all ranks of a node.
    pub network_bytes: f64,
    /// Bytes that the cores of a node read and wrote per operation: counted in our own copies and sums.
    pub host_bytes: f64,
    /// The same by the paper's model without its device terms, in bytes.
    pub model_bytes: f64,
    /// Seconds of one memcpy of this size on one core.
    pub memcpy_s: f64,
    /// Median seconds of the floor in the same rounds.
    pub floor_s: Option<f64>,
    /// Bound of the shaped link divided by the mean time.
    pub share_of_bound: Option<f64>,
}

impl Line {
    /// Algorithm bandwidth of the median, bytes per second.
    pub fn algorithm_bandwidth(&self) -> f64 {
        self.bytes as f64 / self.median_s
    }

    /// Speed as a part of the floor's.
    pub fn share_of_floor(&self) -> Option<f64> {
        self.floor_s.map(|floor| floor / self.median_s)
    }
}

impl Report {
    /// The same for programs.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data becomes JSON")
    }

    /// Geometric mean of the shares of the floor, when there are any.
    pub fn share_of_floor(&self) -> Option<f64> {
        let shares: Vec<f64> = self.lines.iter().filter_map(Line::share_of_floor).collect();
        let mean = shares.iter().map(|share| share.ln()).sum::<f64>() / shares.len() as f64;
        (!shares.is_empty()).then(|| mean.exp())
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b >= (1 << 20) as f64 => format!("{:.1} MiB", b / (1 << 20) as f64),
        b if b >= 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b => format!("{b:.0} B"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        writeln!(f, "load {:.2} at start, {:.2} at end", self.load.0, self.load.1)?;
        if let Some(raw) = self.raw_stream {
            writeln!(f, "one raw cubic stream: {:.3} GB/s", raw / 1e9)?;
        }
        let columns = [
            "size",
            "min ms",
            "median ms",
            "alg GB/s",
            "bus GB/s",
            "network",
            "host",
            "model",
            "memcpy ms",
            "of floor",
            "of bound",
        ];
        writeln!(f, "{}", columns.map(|column| format!("{column:>11}")).join(""))?;
        for line in &self.lines {
            let bandwidth = line.algorithm_bandwidth() / 1e9;
            let percent = |part: Option<f64>| part.map_or("-".into(), |p| format!("{p:.3}"));
            let cells = [
                size(line.bytes as f64),
                format!("{:.3}", line.min_s * 1e3),
                format!("{:.3}", line.median_s * 1e3),
                format!("{bandwidth:.2}"),
                format!("{:.2}", bandwidth * line.bus_factor),
                size(line.network_bytes),
                size(line.host_bytes),
                size(line.model_bytes),
                format!("{:.3}", line.memcpy_s * 1e3),
                percent(line.share_of_floor()),
                percent(line.share_of_bound),
            ];
            writeln!(f, "{}", cells.map(|cell| format!("{cell:>11}")).join(""))?;
        }
        if let Some(share) = self.share_of_floor() {
            writeln!(f, "geometric mean of the shares of the floor: {share:.3}")?;
        }
        Ok(())
    }
}
