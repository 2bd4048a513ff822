//! The sub-commands, one file each, and what they take from the environment of the process.

use crate::error::CliError;
use crate::rank_program;
use clap::{Parser, Subcommand};
use lampyris_plan::{TrainPlan, visible};
use lampyris_recipes::Defaults;
use std::path::PathBuf;
use std::sync::LazyLock;

mod bench;
mod checkpoint;
mod cluster;
mod completions;
mod daemon;
mod export;
mod import;
mod jobs;
mod nodes;
mod passthrough;
mod pilot;
mod plan;
mod ranks;
mod replay;
mod resume;
mod run;
pub(crate) mod scheduler;
mod shim;
mod slurm;
mod submit;
mod submit_job;
mod submit_slurm;
mod suspend;
pub(crate) mod trace;
mod train;
mod up;

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
    /// Train a recipe on a cluster that is made for it on this machine
    Run(run::Args),
    /// Start a scheduler and workers on this machine
    Up(up::Args),
    /// Hand a recipe to a cluster
    Submit(submit::Args),
    /// Hand an existing run to a cluster
    Adopt(submit::AdoptArgs),
    /// List jobs
    List(jobs::ListArgs),
    /// Show one job: why it stands where it stands, and what its ranks are at
    Show(jobs::JobArgs),
    /// Print the output of a rank
    Logs(jobs::LogsArgs),
    /// Watch nodes and jobs
    Top(jobs::TopArgs),
    /// Checkpoint and end a job for good
    Stop(jobs::JobArgs),
    /// Continue a run from its last checkpoint, or let a suspended job go on
    Resume(resume::Args),
    /// What the batch script of a job calls
    #[command(subcommand, hide = true)]
    Slurm(slurm::Command),
    /// Ask a run or a job to checkpoint and stay stopped until resumed
    Suspend(suspend::Args),
    /// List the nodes of a cluster
    Nodes(nodes::NodesArgs),
    /// Give a node nothing new, or put it back in service
    Drain(nodes::DrainArgs),
    /// Show what was decided and why
    Events(nodes::EventsArgs),
    /// Run the scheduler of a cluster
    Scheduler(scheduler::Args),
    /// Make this machine a node of a cluster
    Worker(daemon::WorkerArgs),
    /// Lend nodes of Slurm to a cluster, for as long as their allocation lasts
    Pilot(pilot::Args),
    #[command(hide = true)]
    Shim(shim::Args),
    /// Show what every rank of a run is at
    Ranks(ranks::Args),
    /// Look at the traces of a run
    #[command(subcommand)]
    Trace(trace::Command),
    /// Name the documents and tokens that a step reads
    Replay(replay::Args),
    /// List, check, compare, remove and adopt checkpoints
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
    #[command(subcommand, after_help = "`lampyris bench step` measures a step of a recipe.")]
    Bench(bench::Command),
    /// Check what this machine computes, and how fast
    Validate(passthrough::Args),
    /// Check that a recipe's layout over ranks computes what one rank computes
    Verify(passthrough::Args),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Write manual pages
    Man(completions::ManArgs),
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
            // One line, whatever is in it: the next would not be a comment.
            text.push_str(&format!("\n# --set {}", visible::line(set)));
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
    /// `LAMPYRIS_CONFIG`, else `~/.config/lampyris/config.toml`.
    pub(crate) configuration: PathBuf,
    /// Folder in which the program was started.
    pub(crate) current_dir: PathBuf,
    /// `LAMPYRIS_SCHEDULER`.
    pub(crate) scheduler: Option<String>,
    /// `LAMPYRIS_CA`.
    pub(crate) ca: Option<PathBuf>,
    /// `LAMPYRIS_TOKEN_FILE`.
    pub(crate) token_file: Option<PathBuf>,
    /// `USER`.
    pub(crate) user: String,
}

impl Environment {
    pub(crate) fn of_process() -> Environment {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let home = || path("HOME").unwrap_or_else(std::env::temp_dir);
        Environment {
            rank_program: path(rank_program::VARIABLE),
            cache_dir: path("LAMPYRIS_CACHE").unwrap_or_else(|| home().join(".cache/lampyris")),
            configuration: path("LAMPYRIS_CONFIG")
                .unwrap_or_else(|| home().join(".config/lampyris/config.toml")),
            current_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            scheduler: std::env::var("LAMPYRIS_SCHEDULER").ok(),
            ca: path("LAMPYRIS_CA"),
            token_file: path("LAMPYRIS_TOKEN_FILE"),
            user: std::env::var("USER").unwrap_or_else(|_| "nobody".into()),
        }
    }

    /// Where `lampyris up` keeps its state.
    pub(crate) fn cluster_dir(&self) -> PathBuf {
        self.cache_dir.join("cluster")
    }
}

/// Runs the command and gives the exit code.
pub(crate) fn run(cli: Cli, environment: &Environment) -> Result<u8, CliError> {
    let rank = || environment.rank_program.clone();
    match cli.command {
        Command::Plan(args) => plan::run(&args, environment),
        Command::Train(args) => train::run(&args, environment),
        Command::Slurm(command) => slurm::run(command, environment),
        Command::Resume(args) => resume::run(&args, environment),
        Command::Run(args) => run::run(&args, environment),
        Command::Up(args) => up::run(&args, environment),
        Command::Submit(args) => submit::run(&args, environment),
        Command::Adopt(args) => submit::adopt(&args, environment),
        Command::List(args) => jobs::list(&args, environment),
        Command::Show(args) => jobs::show(&args, environment),
        Command::Logs(args) => jobs::logs(&args, environment),
        Command::Top(args) => jobs::top(&args, environment),
        Command::Stop(args) => jobs::stop(&args, environment),
        Command::Suspend(args) => suspend::run(&args, environment),
        Command::Nodes(args) => nodes::nodes(&args, environment),
        Command::Drain(args) => nodes::drain(&args, environment),
        Command::Events(args) => nodes::events(&args, environment),
        Command::Scheduler(args) => scheduler::run(&args, environment),
        Command::Worker(args) => daemon::worker(&args, environment),
        Command::Pilot(args) => pilot::run(&args, environment),
        Command::Shim(args) => shim::run(&args, environment),
        Command::Ranks(args) => ranks::run(&args),
        Command::Trace(command) => trace::run(command),
        Command::Replay(args) => replay::run(&args),
        Command::Checkpoint(command) => checkpoint::run(command),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args, environment),
        Command::Generate(args) => passthrough::run("generate", args, rank()),
        Command::Parity(args) => passthrough::run("parity", args, rank()),
        Command::Bench(command) => bench::run(command, environment),
        Command::Validate(args) => passthrough::run("validate", args, rank()),
        Command::Verify(args) => passthrough::run("verify", args, rank()),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    }
}

/// What `--version` says after the name.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (build {})", env!("CARGO_PKG_VERSION"), rank_program::build_id()));
