//! `lampyris checkpoint ...`: what a run has saved, whether it is whole, how two of them differ, what may go, and how a run
//! goes on whose records are lost.

use crate::backend::local::is_over;
use crate::backend::slurm::refuse_if_queued;
use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen::{self, checkpoints};
use crate::selected::select;
use clap::Subcommand;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::report::{self, Verified};
use lampyris_checkpoint::{Reader, Retention, Transfer};
use lampyris_worker::shim::status;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the checkpoints of a run
    List {
        /// Run directory
        run: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is in a checkpoint
    Show {
        #[command(flatten)]
        which: Which,
        /// Print JSON: the manifest with all tensors
        #[arg(long)]
        json: bool,
    },
    /// Compare every checksum of a checkpoint, or of all checkpoints of a run
    Verify {
        /// Run directory or checkpoint folder
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Name the tensors in which two checkpoints differ, and by how much; exit code 1 if any does
    Diff {
        /// Run directory (its newest checkpoint) or checkpoint folder
        a: PathBuf,
        /// Another one
        b: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove older checkpoints and leftovers; the newest good one always stays
    Prune(Prune),
    /// Let a run go on whose records of attempts are lost or damaged: adopt its newest good checkpoint; deletes nothing
    Repair(Repair),
}

/// A checkpoint.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Run directory or checkpoint folder
    path: PathBuf,
    /// Of a run, the checkpoint after this step instead of the newest
    #[arg(long)]
    step: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Prune {
    /// Run directory
    run: PathBuf,
    /// Keep the newest N
    #[arg(long, value_name = "N", default_value_t = 2)]
    keep: usize,
    /// Keep those whose step is a multiple of N as well
    #[arg(long, value_name = "N", default_value_t = 0)]
    every_steps: u64,
    /// Keep the one with the lowest validation loss as well
    #[arg(long)]
    best: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Repair {
    /// Run directory
    run: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: Command) -> Result<u8, CliError> {
    match command {
        Command::List { run, json } => {
            let list = report::list(&RunDir::open(&run)?.checkpoints_read_only())?;
            show(json, &list, checkpoints::list);
        }
        Command::Show { which, json } => {
            let path = select(&which.path, which.step)?;
            let shown = report::show(Arc::new(RealDisk), &path)?;
            show(json, &shown, |shown| checkpoints::shown(&path, shown));
        }
        Command::Verify { path, json } => return verify(&path, json),
        Command::Diff { a, b, json } => {
            let open = |path: &Path| -> Result<Reader, CliError> {
                Ok(Reader::open(Arc::new(RealDisk), &select(path, None)?)?)
            };
            let diff = report::diff(&open(&a)?, &open(&b)?)?;
            show(json, &diff, checkpoints::diff);
            return Ok(u8::from(!checkpoints::are_equal(&diff)));
        }
        Command::Prune(prune) => self::prune(&prune)?,
        Command::Repair(args) => repair(&args)?,
    }
    Ok(0)
}

fn verify(path: &Path, json: bool) -> Result<u8, CliError> {
    let paths = if path.join("manifest.json").exists() {
        vec![path.to_path_buf()]
    } else {
        let run = RunDir::open(path)?.checkpoints_read_only();
        run.committed()?.into_iter().map(|id| run.path(id)).collect()
    };
    let threads = Transfer::default().threads;
    let verified: Vec<Verified> = paths
        .iter()
        .map(|path| report::verify(Arc::new(RealDisk), path, threads))
        .collect::<Result<_, _>>()?;
    show(json, &verified, |verified| checkpoints::verified(verified));
    match verified.iter().filter(|one| !one.problems.is_empty()).count() {
        0 => Ok(0),
        damaged => Err(CliError::Damaged { damaged, of: verified.len() }),
    }
}

fn prune(args: &Prune) -> Result<(), CliError> {
    let run = RunDir::open(&args.run)?;
    let policy = Retention { last: args.keep, every_steps: args.every_steps, best: args.best };
    let pruned = run.checkpoints()?.prune(policy, None, args.dry_run)?;
    screen::say(checkpoints::pruned(&pruned, args.dry_run));
    Ok(())
}

fn repair(args: &Repair) -> Result<(), CliError> {
    let run = RunDir::open(&args.run)?;
    let _lock = run.lock()?;
    refuse_if_queued(&run)?;
    refuse_if_alive(&run)?;
    let checkpoints = run.checkpoints_read_only();
    let repaired = checkpoints.repair(Transfer::default().threads, args.dry_run)?;
    show(args.json, &repaired, |repaired| {
        checkpoints::repaired(run.path(), repaired, args.dry_run)
    });
    Ok(())
}

/// Refuses a run that another machine runs, by what it has written there a moment ago.
fn refuse_if_alive(run: &RunDir) -> Result<(), CliError> {
    // A status that cannot be read is of nobody who lives.
    let nodes = status::read(run.path()).unwrap_or_default();
    match nodes.iter().find(|node| !is_over(node)) {
        None => Ok(()),
        Some(node) => {
            let (path, host) = (run.path().to_path_buf(), node.host.clone());
            Err(CliError::RunningThere { path, host })
        }
    }
}

fn show<T: Serialize>(json: bool, value: &T, text: impl Fn(&T) -> String) {
    match json {
        true => screen::json_lines(value),
        false => screen::say(text(value)),
    }
}
