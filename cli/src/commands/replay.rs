//! `lampyris replay RUN --step N`: the documents and tokens that a step reads, whatever ranks and attempts did it.

use crate::error::CliError;
use crate::ledger::{Place, Stretch, ledger, place};
use crate::prepare::{prepare, reopen};
use crate::run_dir::{DatasetRecord, RunDir};
use crate::screen;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::{Record, Run, Start, report};
use lampyris_data::Dataset;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run directory
    run: PathBuf,
    /// Step, counted from 1 as in metrics.jsonl
    #[arg(long)]
    step: u64,
    /// Print the text as well
    #[arg(long)]
    print: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8, CliError> {
    let run = RunDir::open(&args.run)?;
    let checkpoints = run.checkpoints_read_only();
    let records = checkpoints.lineage()?.ancestry();
    let path: Vec<Stretch> = records
        .into_iter()
        .map(|record| Ok(Stretch { record, start: start(&run, &checkpoints, record)? }))
        .collect::<Result<_, CliError>>()?;
    let Some(place) = place(&path, args.step) else {
        return Err(CliError::NoStep { run: args.run.clone(), step: args.step });
    };
    check(&run, &checkpoints, &path[place.stretch].record, place)?;
    let dataset = text(&path[place.stretch].start)?;
    let ledger = ledger(&path, (args.step, place), &dataset, args.print)?;
    match args.json {
        true => screen::json_lines(&ledger),
        false => screen::say_source(screen::ledger(&ledger)),
    }
    Ok(0)
}

/// What the attempt was started with, or, for attempts of versions that kept no record, what the run holds now.
fn start(run: &RunDir, checkpoints: &Run, record: Record) -> Result<Start, CliError> {
    if let Some(start) = checkpoints.start_of(record.attempt)? {
        return Ok(start);
    }
    let Some(DatasetRecord { fingerprint }) = run.dataset()? else {
        return Err(run.not_a_run("it has no dataset.json"));
    };
    screen::note(format_args!(
        "attempt {} kept no record of its plan: plan.toml stands in for it, which is wrong if a resume has changed batch, \
         seed or text since",
        record.attempt
    ));
    Ok(Start { dataset: fingerprint, plan: run.valid_plan()? })
}

/// Compares the count with the checkpoint that the attempt began from, if that is still there.
fn check(run: &RunDir, checkpoints: &Run, record: &Record, place: Place) -> Result<(), CliError> {
    let Some(parent) = record.parent.filter(|id| checkpoints.path(*id).exists()) else {
        return Ok(());
    };
    let shown = report::show(Arc::new(RealDisk), &checkpoints.path(parent))?;
    let samples = shown.manifest.state.get("samples").and_then(serde_json::Value::as_u64);
    if samples.is_some_and(|samples| samples != place.samples_at_start) {
        return Err(run.not_a_run(&format!(
            "checkpoint {parent} stands at {} samples, the plans of its attempts lead to {}",
            samples.unwrap_or_default(),
            place.samples_at_start
        )));
    }
    Ok(())
}

/// The text that the attempt read, prepared again if the cache has lost it.
fn text(start: &Start) -> Result<Dataset, CliError> {
    let record = DatasetRecord { fingerprint: start.dataset.clone() };
    if let Some(dataset) = reopen(&start.plan, &record)? {
        return Ok(dataset);
    }
    let dataset = prepare(&start.plan)?;
    if dataset.fingerprint() == start.dataset {
        return Ok(dataset);
    }
    Err(CliError::TextGone { fingerprint: start.dataset.clone() })
}
