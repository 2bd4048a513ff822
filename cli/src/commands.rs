//! The sub-commands, one file each, and what they take from the environment of the process.

use crate::error::CliError;
use crate::rank_program;
use clap::{Parser, Subcommand};
use lampyris_plan::TrainPlan;
use lampyris_recipes::Defaults;
use std::path::PathBuf;
use std::sync::LazyLock;

mod bench;
mod checkpoint;
mod export;
mod import;
mod passthrough;
mod plan;
mod ranks;
mod resume;
mod suspend;
mod train;

/// Trains mixture-of-experts language models.
#[derive(Debug, Parser)]
#[command(name = "lampyris", version = VERSION.as_str(), max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a recipe computes: parameters, FLOPs, memory, steps
    Plan(plan::Args),
    /// Train a recipe on this machine
    Train(train::Args),
    /// Continue a run from its last checkpoint
    Resume(resume::Args),
    /// Ask a run to checkpoint and stay stopped until resumed
    Suspend(suspend::Args),
    /// Show what every rank of a run is at
    Ranks(ranks::Args),
    /// List, check, compare and remove checkpoints
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Write a checkpoint as a Hugging Face folder
    Export(export::Args),
    /// Make a run from a Hugging Face folder
    Import(import::Args),
    /// Continue a text with a trained model
    Generate(passthrough::Args),
    /// Compare logits, loss and gradients with recorded ones
    Parity(passthrough::Args),
    /// Measure collectives, or the speed of a step and of its parts
    #[command(subcommand)]
    Bench(bench::Command),
    /// Check what this machine computes, and how fast
    Validate(passthrough::Args),
}

/// A recipe as a person names it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RecipeArgs {
    /// Recipe file
    recipe: PathBuf,
    /// Override a value of the recipe, e.g. --set schedule.peak_lr=1e-3; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl RecipeArgs {
    /// The same recipe with this many data-parallel ranks, if some are asked for.
    fn with_ranks(&self, ranks: Option<usize>) -> RecipeArgs {
        let mut recipe = self.clone();
        recipe.sets.extend(ranks.map(|ranks| format!("parallel.data={ranks}")));
        recipe
    }

    fn load(&self, environment: &Environment) -> Result<TrainPlan, CliError> {
        let defaults = Defaults {
            current_dir: environment.current_dir.clone(),
            runs_dir: "runs".into(),
            cache_dir: environment.cache_dir.join("data"),
        };
        Ok(lampyris_recipes::load(&self.recipe, &self.sets, &defaults)?)
    }

    /// The recipe as written, then the `--set` values as comments.
    fn text_with_sets(&self) -> Result<String, CliError> {
        let mut text = std::fs::read_to_string(&self.recipe)
            .map_err(|source| CliError::read(&self.recipe, source))?;
        for set in &self.sets {
            text.push_str(&format!("\n# --set {set}"));
        }
        Ok(text)
    }
}

/// What the environment of the process contributes, read once.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    /// `LAMPYRIS_RANK`.
    pub(crate) rank_program: Option<PathBuf>,
    /// `LAMPYRIS_CACHE`, else `~/.cache/lampyris`.
    pub(crate) cache_dir: PathBuf,
    /// Folder in which the program was started.
    pub(crate) current_dir: PathBuf,
}

impl Environment {
    pub(crate) fn of_process() -> Environment {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let home = || path("HOME").unwrap_or_else(std::env::temp_dir);
        Environment {
            rank_program: path(rank_program::VARIABLE),
            cache_dir: path("LAMPYRIS_CACHE").unwrap_or_else(|| home().join(".cache/lampyris")),
            current_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
        }
    }
}

/// Runs the command and gives the exit code.
pub(crate) fn run(cli: Cli, environment: &Environment) -> Result<u8, CliError> {
    let rank = || environment.rank_program.clone();
    match cli.command {
        Command::Plan(args) => plan::run(&args, environment),
        Command::Train(args) => train::run(&args, environment),
        Command::Resume(args) => resume::run(&args, environment),
        Command::Suspend(args) => suspend::run(&args),
        Command::Ranks(args) => ranks::run(&args),
        Command::Checkpoint(command) => checkpoint::run(command),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args, environment),
        Command::Generate(args) => passthrough::run("generate", args, rank()),
        Command::Parity(args) => passthrough::run("parity", args, rank()),
        Command::Bench(command) => bench::run(command, environment),
        Command::Validate(args) => passthrough::run("validate", args, rank()),
    }
}

/// What `--version` says after the name.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (build {})", env!("CARGO_PKG_VERSION"), rank_program::build_id()));
