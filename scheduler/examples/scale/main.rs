//! Measures the scheduler at the size it is made for.
//!
//!     cargo run -p lampyris-scheduler --example scale -- core
//!     cargo run -p lampyris-scheduler --example scale -- wire [SECONDS]
//!     cargo run -p lampyris-scheduler --example scale -- idle [SECONDS]
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

mod deciding;
mod wire;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = |default| arguments.get(1).and_then(|s| s.parse().ok()).unwrap_or(default);
    match arguments.first().map(String::as_str) {
        Some("core") => deciding::run(),
        Some("wire") => wire::heartbeats(seconds(60)),
        Some("idle") => wire::idle(seconds(20)),
        // The daemon that the other two measure, in a process of its own.
        Some("serve") => wire::serve(arguments.get(1).map_or("", String::as_str)),
        _ => bail!("say core, wire or idle"),
    }
}

/// Prints a line of a table: count, median, 99th percentile and maximum of durations in microseconds.
fn print_row(what: &str, mut micros: Vec<f64>) {
    micros.sort_by(f64::total_cmp);
    let at = |quantile: f64| {
        let index = (micros.len() as f64 * quantile) as usize;
        micros.get(index.min(micros.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    let (count, median, p99, max) = (micros.len(), at(0.5), at(0.99), at(1.0));
    println!("{what:<24} {count:>7} {median:>12.1} {p99:>12.1} {max:>12.1}");
}
