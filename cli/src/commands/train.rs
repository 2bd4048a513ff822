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
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run_dir: RunDirArgs,
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
    let plan = args.recipe.load(environment)?;
    check_trainable(&plan)?;
    let named = args.run_dir.named()?;
    let rank_program = rank_program::find(environment.rank_program.clone())?;
    let dataset = prepare(&plan)?;
    let run = RunDir::create(&plan, named, &Zoned::now(), &args.recipe.text_with_sets()?)?;
    run.record_dataset(&dataset)?;
    screen::note(format_args!("run directory {}", run.path().display()));
    let _lock = run.lock()?;
    StartedRun::claim(&run, &plan, &dataset, rank_program)?.to_the_end()
}
