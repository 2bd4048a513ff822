//! `logits`: what the model of a Hugging Face folder says to random tokens, as JSON, so that another implementation can
//! be compared with it (`tests/peers/export_transformers.py`).

use crate::build::Rank;
use crate::{parity, sampling};
use anyhow::{Result, ensure};
use lampyris_checkpoint::hf::{Folder, Import};
use lampyris_model::{MicroBatch, head};
use lampyris_plan::train_plan::Compute;
use serde_json::{Value, json};
use std::path::PathBuf;
use tch::Device;

/// Which model and how many tokens.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Hugging Face folder.
    pub folder: PathBuf,
    /// Sequences.
    #[arg(long, default_value_t = 2)]
    pub sequences: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 64)]
    pub length: usize,
    /// Seed of the tokens.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `{"input_ids": [[..]], "logits": [[[..]]]}`, fp32 on the CPU.
pub fn run(options: &Options) -> Result<Value> {
    let Options { sequences, length, seed, .. } = *options;
    ensure!(sequences > 0 && length > 0, "--sequences and --length must be positive");
    let import = Import::new(Folder::open(&options.folder)?)?;
    let mut rank = Rank::alone(&import.spec, length, Compute::Fp32, Device::Cpu)?;
    parity::load(&mut rank, &import)?;
    let vocab = import.spec.vocab_size as f64;
    let token = |i: usize| (sampling::uniform(seed, i as u64) * vocab) as i64;
    let ids: Vec<Vec<i64>> =
        (0..sequences).map(|s| (0..length).map(|i| token(s * length + i)).collect()).collect();
    let windows: Vec<i64> = ids.iter().flat_map(|row| row.iter().copied().chain([0])).collect();
    let batch = MicroBatch::new(&windows, length, 1, |_, _| false, Device::Cpu);
    let hidden = rank.reader()?.hidden(&batch)?;
    let weight = rank.state.weights.get(rank.network.head()).0;
    let logits = tch::no_grad(|| head::logits(&hidden, weight));
    let rows = Vec::<Vec<f32>>::try_from(logits)?;
    let logits: Vec<&[Vec<f32>]> = rows.chunks(length).collect();
    Ok(json!({ "input_ids": ids, "logits": logits }))
}
