//! Measures saving and loading against `dd` and `cp` on the same disk in the same sitting, and the copy that stalls
//! training against a plain memcpy.
//!
//! `cargo run -p lampyris-checkpoint --example throughput -- DIR [GIB] [ROUNDS] [THREADS]` prints one JSON object.
#![allow(clippy::print_stdout, reason = "a measurement prints its figures")]

use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::tensors::TensorEntry;
use lampyris_checkpoint::{
    Busy, CheckpointId, Digests, Kind, Meta, Ranks, Reader, Request, Run, Saver, Slot, Snapshot,
    Target, Transfer,
};
use lampyris_plan::Step;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const KINDS: [Kind; 3] = [Kind::Weight, Kind::ExpAvg, Kind::ExpAvgSq];
/// Elements of one tensor: 2 MiB.
const TENSOR: usize = 1 << 19;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Bench {
    dir: PathBuf,
    run: Run,
    transfer: Transfer,
    tensors: usize,
    /// The "training" copy of the state, one array per kind.
    state: Vec<Vec<f32>>,
}

/// Bytes per second, in GB/s.
fn rate(bytes: usize, begun: Instant) -> f64 {
    bytes as f64 / begun.elapsed().as_secs_f64() / 1e9
}

impl Bench {
    fn new(dir: &Path, gib: f64, threads: usize) -> Result<Bench> {
        let tensors = (gib * (1u64 << 30) as f64 / (KINDS.len() * TENSOR * 4) as f64) as usize;
        let fill = |kind: usize| (0..tensors * TENSOR).map(|i| (i * 7 + kind) as f32).collect();
        std::fs::create_dir_all(dir)?;
        let run = Run::open(Arc::new(RealDisk), dir)?;
        let transfer = Transfer { threads, ..Transfer::default() };
        let state = (0..KINDS.len()).map(fill).collect();
        Ok(Bench { dir: dir.to_path_buf(), run, transfer, tensors, state })
    }

    fn bytes(&self) -> usize {
        KINDS.len() * self.tensors * TENSOR * 4
    }

    fn name(tensor: usize) -> String {
        format!("model.layers.{tensor}.weight")
    }

    fn slots(&self) -> Arc<[Slot]> {
        let of = |buffer: usize| {
            (0..self.tensors).map(move |tensor| Slot {
                tensor: Bench::name(tensor),
                kind: KINDS[buffer],
                start: 0,
                buffer,
                range: tensor * TENSOR..(tensor + 1) * TENSOR,
            })
        };
        (0..KINDS.len()).flat_map(of).collect()
    }

    fn meta(&self, id: CheckpointId) -> Meta {
        let entry = |tensor| TensorEntry {
            name: Bench::name(tensor),
            shape: vec![TENSOR],
            kinds: KINDS.to_vec(),
            optimizer: None,
        };
        Meta {
            id,
            digests: Digests::default(),
            fingerprint: BTreeMap::new(),
            validation_loss: None,
            state: BTreeMap::new(),
            tensors: (0..self.tensors).map(entry).collect(),
        }
    }

    /// `dd` or `cp`, in GB/s; the file is left for a read to follow.
    fn tool(&self, program: &str, args: &[String]) -> Result<f64> {
        let begun = Instant::now();
        let output = Command::new(program).args(args).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        Ok(rate(self.bytes(), begun))
    }

    fn round(&self, saver: &mut Saver, id: CheckpointId) -> Result<BTreeMap<&'static str, f64>> {
        let mut figures = BTreeMap::new();
        let file = |name: &str| self.dir.join(name).display().to_string();
        let count = format!("count={}", self.bytes() >> 22);
        let write = ["if=/dev/zero".into(), format!("of={}", file("dd")), "bs=4M".into(), count]
            .into_iter()
            .chain(["oflag=direct".into(), "conv=fsync".into()]);
        figures.insert("dd_write", self.tool("dd", &write.collect::<Vec<_>>())?);

        let (buffers, _) = saver.buffers(Busy::Wait);
        let mut buffers = buffers.ok_or("the saver is idle")?;
        buffers.resize_with(KINDS.len(), || vec![1.0; self.tensors * TENSOR]);
        let copy = |buffers: &mut [Vec<f32>]| {
            for (buffer, state) in buffers.iter_mut().zip(&self.state) {
                buffer.copy_from_slice(state);
            }
        };
        // Not timed: brings the pages back after dd.
        copy(&mut buffers);
        let begun = Instant::now();
        copy(&mut buffers);
        figures.insert("memcpy", rate(self.bytes(), begun));
        let meta = self.meta(id);
        let slots = self.slots();
        // What the training loop waits for: the copy and the hand-over.
        let begun = Instant::now();
        copy(&mut buffers);
        saver.begin(Snapshot { meta, slots, buffers, to: Target::Disk });
        figures.insert("stall_copy", rate(self.bytes(), begun));
        let saved = saver.wait().ok_or("a save was begun")??;
        let write = self.bytes() as f64 / saved.write_time.as_secs_f64() / 1e9;
        figures.insert("save", write);

        let read = [format!("if={}", file("dd")), "of=/dev/null".into(), "bs=4M".into()];
        let read = read.into_iter().chain(["iflag=direct".into()]).collect::<Vec<_>>();
        figures.insert("dd_read", self.tool("dd", &read)?);
        figures.insert("load", self.load(&self.run.path(id))?);
        std::fs::remove_file(file("dd"))?;
        let data = self.run.path(id).join("rank-00000.data").display().to_string();
        figures.insert("cp", self.tool("cp", &[data, file("cp")])?);
        std::fs::remove_file(file("cp"))?;
        std::fs::remove_dir_all(self.run.path(id))?;
        Ok(figures)
    }

    fn load(&self, path: &Path) -> Result<f64> {
        let mut out: Vec<Vec<f32>> =
            KINDS.iter().map(|_| vec![1.0; self.tensors * TENSOR]).collect();
        let names: Vec<String> = (0..self.tensors).map(Bench::name).collect();
        let begun = Instant::now();
        let reader = Reader::open(Arc::new(RealDisk), path)?;
        let requests = out.iter_mut().zip(KINDS).flat_map(|(all, kind)| {
            let parts = all.chunks_mut(TENSOR).zip(&names);
            parts.map(move |(out, tensor)| Request { tensor, kind, start: 0, out })
        });
        reader.load(requests.collect(), self.transfer.threads)?;
        let rate = rate(self.bytes(), begun);
        if out != self.state {
            return Err("the loaded state differs".into());
        }
        Ok(rate)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = args.first().ok_or("usage: throughput DIR [GIB] [ROUNDS] [THREADS]")?;
    let number = |at: usize, default: f64| args.get(at).map_or(Ok(default), |text| text.parse());
    let (gib, rounds, threads) =
        (number(1, 1.0)?, number(2, 5.0)? as u64, number(3, 2.0)? as usize);
    let bench = Bench::new(Path::new(dir), gib, threads)?;
    let attempt = bench.run.claim_next()?;
    bench.run.record(attempt, None)?;
    let mut saver = Saver::new(bench.run.clone(), Ranks::alone(), bench.transfer, None);
    let mut all: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..=rounds {
        let figures = bench.round(&mut saver, CheckpointId { step: Step(round), attempt })?;
        // The first round touches the buffers' pages.
        for (name, figure) in figures.into_iter().filter(|_| round > 0) {
            all.entry(name).or_default().push(figure);
        }
    }
    let ratio = |a: &str, b: &str| {
        median(all[a].iter().zip(&all[b]).map(|(a, b)| a / b).collect::<Vec<f64>>())
    };
    let ratios = json!({ "save_to_dd": ratio("save", "dd_write"), "load_to_dd": ratio("load", "dd_read"),
        "stall_to_memcpy": ratio("memcpy", "stall_copy") });
    let medians: BTreeMap<&str, f64> =
        all.iter().map(|(name, values)| (*name, median(values.clone()))).collect();
    let report: Value = json!({ "bytes": bench.bytes(), "threads": threads, "rounds": rounds,
        "median_gb_per_s": medians, "median_ratio": ratios, "gb_per_s": all });
    println!("{report:#}");
    Ok(())
}
