//! `verify`: does a layout over ranks compute what one rank computes?
//!
//! The recipe's network, with its widths shrunk and everything else kept, takes a few optimizer steps on random tokens:
//! once on one rank, then in the recipe's layout and in random ones, with all ranks as threads of this process that meet
//! at a rendezvous like any others. After every step everything is compared: losses, gradient norm, gradients, weights,
//! optimizer state, gate biases. In canonical reduction bit for bit, in fast mode the first step within bounds.

mod compare;
mod shrink;
mod world;

use crate::sampling::uniform;
use anyhow::{Context, Result, ensure};
use compare::{Bounds, Difference};
use lampyris_plan::TrainPlan;
use lampyris_plan::train_plan::{Compute, Reduction};
use serde::Serialize;
use std::path::PathBuf;

/// Optimizer steps of a comparison: the second reads what the first updated, the third what gathers brought meanwhile.
const STEPS: usize = 3;

/// What to verify.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Recipe whose layout is compared with one rank.
    pub recipe: PathBuf,
    /// Overrides of recipe keys.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Compare this many random layouts too, each another one and on two ranks or more.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fuzz: usize,
    /// Seed of the random layouts.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What was compared.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Recipe name.
    pub recipe: String,
    /// Sizes that were changed.
    pub shrunk: Vec<String>,
    /// Layouts, each with the first difference from one rank.
    pub layouts: Vec<Compared>,
    /// Random layouts that were asked for.
    pub asked: usize,
    /// Random layouts that were compared: fewer where the recipe does not allow as many.
    pub drawn: usize,
}

/// One layout.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// The layout, as recipe values.
    pub layout: String,
    /// The first difference; none if everything is equal.
    pub difference: Option<Difference>,
}

/// Where ranks run: the recipe's layout on so many virtual nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    data: usize,
    expert: usize,
    zero: usize,
    overlap: bool,
    nodes: usize,
}

impl Layout {
    fn of(plan: &TrainPlan) -> Layout {
        let p = &plan.parallel;
        Layout { data: p.data, expert: p.expert, zero: p.zero, overlap: p.overlap, nodes: 1 }
    }

    fn apply(self, plan: &TrainPlan) -> TrainPlan {
        let mut plan = plan.clone();
        let p = &mut plan.parallel;
        (p.data, p.expert, p.zero, p.overlap) = (self.data, self.expert, self.zero, self.overlap);
        p.threads_per_rank = 1;
        plan
    }

    fn text(self) -> String {
        let Layout { data, expert, zero, overlap, nodes } = self;
        format!("data {data}, expert {expert}, zero {zero}, overlap {overlap}, nodes {nodes}")
    }

    /// All layouts of two to eight ranks that the plan allows, but for its own.
    fn others(plan: &TrainPlan) -> Vec<Layout> {
        let parts = match plan.batch.reduction {
            Reduction::Canonical => plan.batch.leaves,
            Reduction::Fast => plan.micro_batches(),
        };
        let experts = plan.model.moe.as_ref().map_or(1, |moe| moe.experts);
        let divisors = |of: usize| (1..=of.min(8)).filter(move |d| of.is_multiple_of(*d));
        let mut all = Vec::new();
        for data in divisors(parts).filter(|data| *data > 1) {
            for expert in divisors(data).filter(|expert| experts.is_multiple_of(*expert)) {
                for nodes in (1..=2).filter(|nodes| data.is_multiple_of(*nodes)) {
                    let each = [(0, false), (0, true), (1, false), (1, true)];
                    all.extend(each.map(|(zero, overlap)| Layout {
                        data,
                        expert,
                        zero,
                        overlap,
                        nodes,
                    }));
                }
            }
        }
        all.retain(|layout| *layout != Layout::of(plan));
        all
    }

    /// `count` of them, each at most once, or all of them where there are not as many.
    fn random(plan: &TrainPlan, seed: u64, count: usize) -> Vec<Layout> {
        let mut left = Layout::others(plan);
        let mut drawn = Vec::new();
        for n in 0..count.min(left.len()) {
            let at = uniform(seed, n as u64) * left.len() as f64;
            drawn.push(left.swap_remove(at as usize));
        }
        drawn
    }
}

/// Runs the comparison.
///
/// # Errors
/// A recipe that cannot be read, or ranks that cannot run; a difference is a result.
pub fn run(options: &Options) -> Result<Report> {
    let here = std::env::current_dir()?;
    let defaults = lampyris_recipes::Defaults {
        runs_dir: here.join("runs"),
        cache_dir: here.clone(),
        current_dir: here,
    };
    let plan = lampyris_recipes::load(&options.recipe, &options.sets, &defaults)
        .with_context(|| format!("recipe {}", options.recipe.display()))?;
    tch::set_num_threads(1);
    let (small, shrunk) = shrink::shrink(&plan);
    let mut layouts = vec![Layout::of(&small)];
    let random = Layout::random(&small, options.seed, options.fuzz);
    let (asked, drawn) = (options.fuzz, random.len());
    layouts.extend(random);
    let mut report = Report { recipe: plan.name, shrunk, layouts: Vec::new(), asked, drawn };
    let alone = world::one_rank(&small, STEPS)?;
    for layout in layouts {
        let difference = against(&small, layout, &alone)?;
        report.layouts.push(Compared { layout: layout.text(), difference });
    }
    Ok(report)
}

/// The first difference between `layout` and what one rank found.
fn against(
    plan: &TrainPlan,
    layout: Layout,
    alone: &[world::Observation],
) -> Result<Option<Difference>> {
    ensure!(layout.data.is_multiple_of(layout.nodes), "ranks fill nodes evenly");
    let bounds = match (plan.batch.reduction, plan.compute) {
        (Reduction::Canonical, _) => Bounds::Exact,
        (Reduction::Fast, Compute::Fp32) => Bounds::Gradients(1e-4),
        (Reduction::Fast, Compute::Bf16) => Bounds::Gradients(2e-2),
    };
    let (steps, pinned) = match bounds {
        Bounds::Exact => (STEPS, None),
        // A gate whose inputs differ in the last bit may choose another expert, and then nothing is near any more.
        Bounds::Gradients(_) => (1, Some(world::choices(plan)?)),
    };
    let ranks = world::run(&layout.apply(plan), layout.nodes, (steps, pinned.as_ref()))?;
    let inventory = lampyris_plan::Inventory::new(&plan.model);
    Ok(compare::first_difference(&inventory, alone, &ranks, bounds))
}

impl Report {
    /// Whether all layouts agree with one rank.
    pub fn passed(&self) -> bool {
        self.layouts.iter().all(|compared| compared.difference.is_none())
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.recipe);
        for change in &self.shrunk {
            out += &format!("  shrunk    {change}\n");
        }
        for Compared { layout, difference } in &self.layouts {
            out += &match difference {
                None => format!("  equal     {layout}\n"),
                Some(found) => format!("  DIFFERENT {layout}\n            {}\n", found.text()),
            };
        }
        if self.drawn < self.asked {
            let (drawn, asked) = (self.drawn, self.asked);
            out += &format!(
                "  {asked} random layouts were asked for; the recipe allows {drawn} besides its own\n"
            );
        }
        out
    }
}

#[cfg(test)]
mod tests;
