//! What filling a rank from a checkpoint costs. The first start with a RUN saves initial weights there and ends; every
//! further one builds a rank, loads the checkpoint, and prints one JSON object: seconds, and resident memory before, after,
//! and at its peak.

use anyhow::{Context, Result};
use clap::Parser;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::tensors::training_tensors;
use lampyris_checkpoint::{CheckpointId, Digests, Meta, Piece, Ranks, Run, Transfer};
use lampyris_plan::{Attempt, Step};
use lampyris_trainer::bench;
use lampyris_trainer::build::Rank;
use lampyris_trainer::{ranks, snapshot};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tch::Device;

/// Reads a process's own memory.
const STATUS: &str = "/proc/self/status";

#[derive(Debug, Parser)]
struct Arguments {
    /// Recipe of the model.
    #[arg(long)]
    recipe: PathBuf,
    /// Overrides of recipe keys.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Folder of the checkpoint.
    #[arg(long)]
    run: PathBuf,
}

/// Of one load. Bytes.
#[derive(Debug, Serialize)]
struct Report {
    /// Opening included.
    seconds: f64,
    /// Resident when the rank was built and its state was zero.
    before: u64,
    /// Resident right after loading.
    after: u64,
    /// Largest resident size of the process so far.
    peak: u64,
}

fn main() -> Result<()> {
    let Arguments { recipe, sets, run: dir } = Arguments::parse();
    let plan = bench::plan_of(&bench::Options { recipe, sets, warmup: 0, steps: 0, json: true })?;
    let mut rank = Rank::of_plan(&plan, Device::Cpu, ranks::Ranks::alone())?;
    std::fs::create_dir_all(&dir)?;
    let run = Run::open(Arc::new(RealDisk), &dir)?;
    if run.committed()?.is_empty() {
        return save(&run, &mut rank, plan.seed);
    }
    let before = memory("VmRSS:")?;
    let start = Instant::now();
    let loaded = run.load_latest(&mut Ranks::alone(), |reader| {
        snapshot::load(&mut rank.state, &rank.network.inventory, reader)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    loaded.found.context("the checkpoint was set aside")?;
    let report = Report { seconds, before, after: memory("VmRSS:")?, peak: memory("VmHWM:")? };
    #[allow(clippy::print_stdout, reason = "what a measurement is for")]
    {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

/// Saves initial weights and zero moments.
fn save(run: &Run, rank: &mut Rank, seed: u64) -> Result<()> {
    let inventory = &rank.network.inventory;
    rank.state.initialize(inventory, seed);
    let mut buffers = Vec::new();
    snapshot::copy_out(&rank.state, inventory, &mut buffers)?;
    let slots = snapshot::slots(&rank.state, inventory, &rank.ranks);
    let pieces: Vec<Piece<'_>> = slots
        .iter()
        .map(|slot| Piece {
            tensor: &slot.tensor,
            kind: slot.kind,
            start: slot.start,
            data: &buffers[slot.buffer][slot.range.clone()],
        })
        .collect();
    let attempt = run.claim_next()?;
    run.record(attempt, None)?;
    let id = CheckpointId { step: Step(1), attempt: Attempt(attempt.0) };
    let shard = run.write_shard(id, lampyris_plan::Rank(0), &pieces, Transfer::default())?;
    let meta = Meta {
        id,
        digests: Digests::default(),
        fingerprint: BTreeMap::new(),
        validation_loss: None,
        state: BTreeMap::new(),
        tensors: training_tensors(inventory),
    };
    run.commit(&meta, &[shard])?;
    Ok(())
}

/// Bytes that a line of this process's status names.
fn memory(line: &str) -> Result<u64> {
    let status = std::fs::read_to_string(STATUS)?;
    let found = status.lines().find_map(|text| text.strip_prefix(line));
    let kib = found.and_then(|text| text.trim().strip_suffix(" kB")).context("no such line")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
