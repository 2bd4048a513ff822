//! `lampyris plan RECIPE`: what the recipe computes, before anything runs.

use super::{Environment, RecipeArgs};
use crate::error::CliError;
use crate::screen;
use lampyris_plan::report::Report;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print JSON: the figures and the resolved plan
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let report = Report::new(&args.recipe.load(environment)?);
    if args.json {
        let json = serde_json::to_string_pretty(&report);
        screen::say(json.expect("figures and a plan become JSON"));
    } else {
        screen::say(report.to_string().trim_end());
    }
    Ok(0)
}
