//! `lampyris train RECIPE`: everything that can go wrong without starting goes wrong first (recipe, rank program, text,
//! vocabulary, sequence length); then the run directory is made and the ranks start.

use super::{Environment, RecipeArgs};
use crate::error::CliError;
use crate::prepare::prepare;
use crate::rank_program;
use crate::run_dir::RunDir;
use crate::screen;
use crate::started_run::StartedRun;
use jiff::Zoned;
use lampyris_plan::validate::check_trainable;
use lampyris_proto::Attempt;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Directory of the run, which must not exist [default: NAME-DATE-TIME in the recipe's output.runs_dir]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let plan = args.recipe.load(environment)?;
    check_trainable(&plan)?;
    if let Some(path) = args.run_dir.as_ref().filter(|path| path.exists()) {
        return Err(CliError::RunExists { path: path.clone() });
    }
    let rank_program = rank_program::find(environment.rank_program.clone())?;
    let dataset = prepare(&plan)?;
    let recipe = args.recipe.text_with_sets()?;
    let run = RunDir::create(&plan, args.run_dir.as_deref(), &Zoned::now(), &recipe)?;
    screen::note(format_args!("run directory {}", run.path().display()));
    let attempt = Attempt(1);
    StartedRun { run: &run, plan: &plan, dataset: &dataset, attempt, rank_program }.to_the_end()
}
