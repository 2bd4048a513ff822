//! `lampyris submit --cluster slurm RECIPE`: everything that can go wrong without the cluster goes wrong first (recipe,
//! rank program, text), as in `train`; then the run directory is made and its job handed to Slurm.

use super::{Environment, RecipeArgs};
use crate::error::CliError;
use crate::launch::{LaunchArgs, Layout};
use crate::prepare::{check_evaluation, check_sample, prepare};
use crate::rank_program;
use crate::run_dir::RunDir;
use crate::screen;
use crate::slurm::script::{self, Job};
use crate::slurm::settings::{Settings, SlurmArgs, SlurmConfig};
use crate::slurm::submission;
use jiff::Zoned;
use lampyris_plan::validate::check_trainable;
use std::path::Path;

/// What a run can be handed to besides a scheduler of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Cluster {
    /// A batch job of Slurm
    Slurm,
}

/// How a job of Slurm is submitted.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SlurmJobArgs {
    #[command(flatten)]
    slurm: SlurmArgs,
    /// Print the batch script; make and submit nothing
    #[arg(long, help_heading = "Slurm")]
    dry_run: bool,
}

/// Makes the run and submits its job. `named` is its directory, if a person named one.
pub(crate) fn run(
    recipe: &RecipeArgs,
    named: Option<&Path>,
    launch: &LaunchArgs,
    args: &SlurmJobArgs,
    environment: &Environment,
) -> Result<u8, CliError> {
    let recipe = recipe.with_ranks(launch.ranks());
    let plan = recipe.load(environment)?;
    check_trainable(&plan)?;
    let layout = launch.layout(&plan)?;
    let now = Zoned::now();
    let path = RunDir::path_for(&plan, named, &now);
    let script = render(&path, &plan.name, layout, &args.slurm, environment)?;
    if args.dry_run {
        screen::say_source(script.trim_end());
        return Ok(0);
    }
    rank_program::find(environment.rank_program.clone())?;
    let dataset = prepare(&plan)?;
    check_evaluation(&plan, &dataset)?;
    check_sample(&plan, &dataset)?;
    let run = RunDir::create(&plan, named, &now, &recipe.text_with_sets()?)?;
    run.or_remove(run.record_dataset(&dataset))?;
    screen::note(format_args!("run directory {}", run.path().display()));
    let script = render(run.path(), &plan.name, layout, &args.slurm, environment)?;
    submit(&run, &script, layout.nodes)
}

/// Hands the job over and says what it is.
pub(crate) fn submit(run: &RunDir, script: &str, nodes: usize) -> Result<u8, CliError> {
    let path = screen::word(run.path());
    let job = submission::submit(run, script, nodes).inspect_err(|_| {
        screen::note(format_args!(
            "not submitted; `lampyris resume {path} --cluster slurm` tries again"
        ));
    })?;
    screen::say(format_args!("slurm:{job}"));
    screen::note(format_args!(
        "job {job} is in the queue; `lampyris ranks {path}` shows its ranks, \
         `lampyris suspend {path}` stops it"
    ));
    Ok(0)
}

/// The batch script of a run; Slurm starts it in another folder, so its paths are absolute.
pub(crate) fn render(
    run_dir: &Path,
    name: &str,
    layout: Layout,
    args: &SlurmArgs,
    environment: &Environment,
) -> Result<String, CliError> {
    let settings = Settings::new(args, &SlurmConfig::read(&environment.configuration)?)?;
    let program = std::env::current_exe().map_err(|source| CliError::OwnPath { source })?;
    let run_dir = environment.current_dir.join(run_dir);
    let job = Job { run_dir: &run_dir, program: &program, name, layout };
    script::render(&job, &settings)
}
