//! `generate`: text from a run or a Hugging Face folder, streamed.

use crate::build::Rank;
use crate::sampling::{self, Sampling};
use crate::{machine, parity, snapshot, train};
use anyhow::{Context, Result, bail, ensure};
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::hf::{Folder, Import};
use lampyris_checkpoint::{Reader, Run};
use lampyris_data::Tokenizer;
use lampyris_plan::train_plan::Compute;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::Device;

/// What to write and how.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Run directory, or Hugging Face folder with a tokenizer.
    pub from: PathBuf,
    /// Text to continue.
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Divides the logits; 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,
    /// Draw among the most likely tokens that together reach this probability.
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens to write.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Tokens the model sees at once, in a Hugging Face folder.
    #[arg(long, default_value_t = 512)]
    pub window: usize,
    /// The token that ends a document, for a folder whose tokenizer.json does not come from this project.
    #[arg(long, default_value = "<|endoftext|>")]
    pub end_of_document: String,
}

/// Writes the text to `out` as it appears.
pub fn run(options: &Options, out: &mut impl Write) -> Result<()> {
    ensure!(options.temperature >= 0.0, "--temperature must not be negative");
    ensure!(options.top_p > 0.0 && options.top_p <= 1.0, "--top-p lies in (0, 1]");
    let (mut rank, tokenizer, window) = open(options)?;
    tokenizer.check_vocabulary(rank.network.spec.vocab_size)?;
    let mut tokens: Vec<i64> =
        tokenizer.encode(&options.prompt)?.into_iter().map(i64::from).collect();
    if tokens.is_empty() {
        tokens.push(i64::from(tokenizer.end_of_document()));
    }
    write!(out, "{}", options.prompt)?;
    let sampling = Sampling {
        temperature: options.temperature,
        top_p: options.top_p,
        seed: options.seed,
        count: options.tokens,
        window,
    };
    let (mut decoder, mut failed) = (tokenizer.decoder(), None);
    let end = i64::from(tokenizer.end_of_document());
    let device = rank.state.arrays[0].master.device();
    let each = |token: i64| {
        let piece = decoder.push(u32::try_from(token).unwrap_or(u32::MAX));
        let written = piece.map_err(anyhow::Error::from).and_then(|piece| {
            write!(out, "{piece}")?;
            Ok(out.flush()?)
        });
        failed = written.err();
        token != end && failed.is_none()
    };
    sampling::continue_tokens(&mut rank.reader()?, &mut tokens, sampling, device, each)?;
    if let Some(error) = failed {
        return Err(error);
    }
    writeln!(out, "{}", decoder.finish()?)?;
    Ok(())
}

fn open(options: &Options) -> Result<(Rank, Tokenizer, usize)> {
    let from = &options.from;
    if from.join("plan.toml").exists() {
        return open_run(from);
    }
    if !from.join("config.json").exists() {
        bail!(
            "{} is neither a run directory (plan.toml) nor a Hugging Face folder (config.json)",
            from.display()
        );
    }
    let import = Import::new(Folder::open(from)?)?;
    let mut rank = Rank::alone(&import.spec, options.window, Compute::Fp32, Device::Cpu)?;
    parity::load(&mut rank, &import)?;
    let json = from.join("tokenizer.json");
    ensure!(
        json.exists(),
        "{} has no tokenizer.json, without which there is no text; generate from the run itself, \
         or put the model's tokenizer.json there",
        from.display()
    );
    let tokenizer = match Tokenizer::load(from) {
        Ok(tokenizer) => tokenizer,
        Err(_) => Tokenizer::from_file(&json, &options.end_of_document)?,
    };
    Ok((rank, tokenizer, options.window))
}

fn open_run(dir: &Path) -> Result<(Rank, Tokenizer, usize)> {
    let plan = train::read_plan(&dir.join("plan.toml"))?;
    let device = machine::set_up(&plan, 0, 1)?;
    let run = Run::open_read_only(Arc::new(RealDisk), dir);
    let newest = run.to_load()?.into_iter().next();
    let id = newest.with_context(|| format!("{} has no checkpoint yet", dir.display()))?;
    let reader = Reader::open(Arc::clone(run.disk()), &run.path(id))?;
    let length = plan.batch.sequence_length;
    let mut rank = Rank::alone(&plan.model, length, plan.compute, device)?;
    snapshot::load_weights(&mut rank.state, &rank.network.inventory, &reader)?;
    let tokenizer = Tokenizer::load(&dir.join("tokenizer"))?;
    Ok((rank, tokenizer, length))
}
