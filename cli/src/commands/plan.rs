//! `lampyris plan RECIPE`: what the recipe computes, before anything runs.

use super::{Environment, RecipeArgs};
use crate::error::CliError;
use crate::screen;
use lampyris_plan::report::Report;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Nodes that the ranks are spread over, equally many on each: what goes through shared memory, and what between nodes
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Print JSON: the figures and the resolved plan
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let plan = args.recipe.load(environment)?;
    let (ranks, nodes) = (plan.parallel.data, args.nodes);
    if nodes == 0 || !ranks.is_multiple_of(nodes) {
        return Err(CliError::Layout { ranks, nodes });
    }
    let report = Report::on_nodes(&plan, nodes);
    if args.json {
        let json = serde_json::to_string_pretty(&report);
        screen::say(json.expect("figures and a plan become JSON"));
    } else {
        screen::say(report.to_string().trim_end());
    }
    Ok(0)
}
