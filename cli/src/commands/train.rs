//! `lampyris train RECIPE`: everything that can go wrong without starting goes wrong first (recipe, rank program, text,
//! vocabulary, sequence length); then the run directory is made and the ranks start.

use super::{Environment, RecipeArgs};
use crate::error::CliError;
use crate::launch::{Announced, LaunchArgs, Layout, Place, await_word};
use crate::memory;
use crate::prepare::{check_evaluation, check_sample, prepare, reopen};
use crate::rank_program;
use crate::run_dir::RunDir;
use crate::screen;
use crate::started_run::Start;
use jiff::Zoned;
use lampyris_plan::validate::check_trainable;
use lampyris_proto::Attempt;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run_dir: RunDirArgs,
    #[command(flatten)]
    launch: LaunchArgs,
}

/// Where a new run goes.
#[derive(Debug, clap::Args)]
pub(crate) struct RunDirArgs {
    /// Directory of the run, which must not exist [default: NAME-DATE-TIME in the recipe's output.runs_dir]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

impl RunDirArgs {
    /// The directory as named; refused if it exists, so that nothing long happens before that is found out.
    pub(crate) fn named(&self) -> Result<Option<&Path>, CliError> {
        match &self.run_dir {
            Some(path) if path.exists() => Err(CliError::RunExists { path: path.clone() }),
            named => Ok(named.as_deref()),
        }
    }
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let place = args.launch.place()?;
    if let (Some(place), Some(path)) = (&place, &args.run_dir.run_dir)
        && place.node > 0
    {
        return join(path, &args.launch, place, environment);
    }
    if place.is_some() && args.run_dir.run_dir.is_none() {
        return Err(CliError::RunDirNeeded);
    }
    let recipe = args.recipe.with_ranks(args.launch.ranks());
    let plan = recipe.load(environment)?;
    check_trainable(&plan)?;
    let layout = args.launch.layout(&plan)?;
    let named = args.run_dir.named()?;
    let rank_program = rank_program::find(environment.rank_program.clone())?;
    memory::check(&plan, layout, place.as_ref())?;
    let dataset = prepare(&plan)?;
    check_evaluation(&plan, &dataset)?;
    check_sample(&plan, &dataset)?;
    let run = RunDir::create(&plan, named, &Zoned::now(), &recipe.text_with_sets()?)?;
    screen::note(format_args!("run directory {}", run.path().display()));
    let (run, plan, dataset, trace) = (&run, &plan, &dataset, args.launch.trace);
    let start = Start { run, plan, dataset, rank_program, layout, place, trace };
    run.or_remove(start_first(start))
}

/// The first attempt of a new run, to its end.
fn start_first(start: Start<'_>) -> Result<u8, CliError> {
    start.run.record_dataset(start.dataset)?;
    let _lock = start.run.lock()?;
    Announced::forget(start.run)?;
    start.claim()?.to_the_end()
}

/// Takes part in the run at `path`, which another host starts: plan and attempt are its, the text must be the same.
pub(crate) fn join(
    path: &Path,
    launch: &LaunchArgs,
    place: &Place,
    environment: &Environment,
) -> Result<u8, CliError> {
    screen::note(format_args!("waiting for node 0 to start {}", path.display()));
    let (run, attempt) = await_word(path, launch)?;
    let layout = launch.layout(&run.plan()?)?;
    take_part(&run, attempt, (layout, launch.trace), Some(place.clone()), environment)
}

/// This host's ranks of an attempt that is claimed already; with a trace of each if asked for.
pub(crate) fn take_part(
    run: &RunDir,
    attempt: Attempt,
    (layout, trace): (Layout, bool),
    place: Option<Place>,
    environment: &Environment,
) -> Result<u8, CliError> {
    let rank_program = rank_program::find(environment.rank_program.clone())?;
    let plan = run.valid_plan()?;
    memory::check(&plan, layout, place.as_ref())?;
    let record = run.dataset()?;
    let kept = record.as_ref().map(|record| reopen(&plan, record)).transpose()?.flatten();
    let dataset = kept.map_or_else(|| prepare(&plan), Ok)?;
    if record.is_none_or(|record| record.fingerprint != dataset.fingerprint()) {
        return Err(CliError::OtherText { run: run.path().to_path_buf() });
    }
    let (plan, dataset) = (&plan, &dataset);
    Start { run, plan, dataset, rank_program, layout, place, trace }.join(attempt).to_the_end()
}
