//! `lampyris export RUN --to DIR`: a checkpoint as a Hugging Face folder.

use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen;
use crate::selected::select;
use clap::ValueEnum;
use indicatif::HumanBytes;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::hf::config::Tokens;
use lampyris_checkpoint::hf::{self, Options, StorageType};
use lampyris_checkpoint::{Kind, Reader};
use lampyris_plan::Inventory;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run directory
    run: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The checkpoint after this step instead of the newest
    #[arg(long)]
    step: Option<u64>,
    /// Write the MTP layer as well; transformers reports its tensors as unexpected
    #[arg(long)]
    with_mtp: bool,
    /// Element type of the matrices: fp32 as trained, bf16 as models are published
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    Fp32,
    Bf16,
}

pub(crate) fn run(args: &Args) -> Result<u8, CliError> {
    let run = RunDir::open(&args.run)?;
    let plan = run.valid_plan()?;
    let path = select(&args.run, args.step)?;
    let reader = Reader::open(Arc::new(RealDisk), &path)?;
    let tokenizer = run.tokenizer()?;
    let options = Options {
        storage: match args.dtype {
            Dtype::Fp32 => StorageType::Fp32,
            Dtype::Bf16 => StorageType::Bf16,
        },
        with_mtp: args.with_mtp,
        tokens: Tokens { bos: None, eos: Some(tokenizer.end_of_document()) },
        extra_files: tokenizer.hugging_face_files(plan.model.max_positions),
        ..Options::default()
    };
    let inventory = Inventory::new(&plan.model);
    let biases: HashSet<&str> = inventory.buffers.iter().map(|b| b.hf_name.as_str()).collect();
    let exported = hf::export(&RealDisk, &plan.model, &options, &args.to, |name, first, out| {
        let kind = if biases.contains(name) { Kind::GateBias } else { Kind::Weight };
        reader.read(name, kind, first as u64, out)
    })?;
    let (tensors, bytes) = (exported.tensors, HumanBytes(exported.bytes));
    screen::say(format_args!("{}: {tensors} tensors, {bytes}", args.to.display()));
    screen::note(format_args!("from {}", path.display()));
    Ok(0)
}
