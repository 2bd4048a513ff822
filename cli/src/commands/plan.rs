//! `lampyris plan RECIPE`: what the recipe computes, before anything runs.

use super::{Environment, RecipeArgs};
use crate::error::CliError;
use crate::screen;
use lampyris_plan::estimate::Speeds;
use lampyris_plan::report::Report;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Nodes that the ranks are spread over, equally many on each: what goes through shared memory, and what between nodes
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Speed of matrix products on one rank, in GFLOP/s: the least time of a step is printed too
    #[arg(long, value_name = "GFLOP/S", value_parser = positive)]
    gflops: Option<f64>,
    /// Speed of a node's link, in Gbit/s
    #[arg(long, value_name = "GBIT/S", requires = "gflops", default_value = "10", value_parser = positive)]
    gbit: f64,
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
    let mut report = Report::on_nodes(&plan, nodes);
    if let Some(gflops) = args.gflops {
        let speeds = Speeds { flops_per_s: gflops * 1e9, link_bytes_per_s: args.gbit * 1e9 / 8.0 };
        report = report.with_step_bound(nodes, speeds);
    }
    match args.json {
        true => screen::json_lines(&report),
        false => screen::say(report.to_string().trim_end()),
    }
    Ok(0)
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    let positive = value.is_finite() && value > 0.0;
    positive.then_some(value).ok_or_else(|| "must be greater than 0".to_string())
}
