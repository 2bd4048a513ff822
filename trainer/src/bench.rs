//! `bench step`: whole optimizer steps of a recipe on random tokens, on one rank in the order in which the recipe's ranks
//! compute: tokens per second and time per kind of instruction.

use crate::build::Rank;
use crate::executor::StepInput;
use crate::ranks::Ranks;
use crate::trace::Clock;
use crate::train::loss_scales;
use crate::{machine, sampling};
use anyhow::{Context, Result};
use lampyris_model::MicroBatch;
use lampyris_plan::TrainPlan;
use lampyris_plan::flops::ForwardFlops;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use tch::Device;

/// What to time.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Recipe whose step is timed.
    #[arg(long)]
    pub recipe: PathBuf,
    /// Overrides of recipe keys.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Steps before the clock starts.
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// Steps that are timed.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Result of the benchmark.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Recipe name.
    pub recipe: String,
    /// Compute threads.
    pub threads: i32,
    /// Device.
    pub device: String,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// Median wall time of a step, seconds.
    pub median_step_s: f64,
    /// Fastest step, seconds.
    pub min_step_s: f64,
    /// Tokens of a step over its median time.
    pub tokens_per_s: f64,
    /// Model FLOPs per second over the speed of a large matrix product.
    pub mfu: f64,
    /// Seconds per step by kind of instruction, mean.
    pub segments_s: BTreeMap<String, f64>,
}

/// Runs the benchmark.
pub fn run(options: &Options, plan: &TrainPlan) -> Result<Report> {
    let plan = &on_one_rank(plan);
    let device = machine::set_up(plan, 0, 1)?;
    let mut rank = Rank::of_plan(plan, device, Ranks::alone())?;
    rank.state.initialize(&rank.network.inventory, plan.seed);
    let depths = rank.network.graph.depths();
    let input = StepInput {
        batches: random_batches(plan, depths, device),
        loss_scales: loss_scales(plan, 0, plan.step_tokens() as usize, depths),
        balance_scale: 1.0 / plan.batch.global_batch as f64,
        lr: 1e-4,
        bias_speed: 1e-3,
    };
    let program = rank.share.program().clone();
    let mut clock = Clock::on();
    let mut times = Vec::new();
    for step in 0..options.warmup + options.steps.max(1) {
        if step == options.warmup {
            clock = Clock::on();
        }
        let started = Instant::now();
        rank.executor(&plan.optimizer, &mut clock).run(&program, &input)?;
        if step >= options.warmup {
            times.push(started.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let flops =
        3.0 * ForwardFlops::per_token(&plan.model, plan.batch.sequence_length).with_mtp() as f64;
    let tokens_per_s = plan.step_tokens() as f64 / median;
    let per_step = |total: std::time::Duration| total.as_secs_f64() / times.len() as f64;
    Ok(Report {
        recipe: plan.name.clone(),
        threads: tch::get_num_threads(),
        device: machine::device_name(device),
        step_tokens: plan.step_tokens(),
        median_step_s: median,
        min_step_s: times[0],
        tokens_per_s,
        mfu: tokens_per_s * flops / machine::peak_flops(plan.compute, device),
        segments_s: clock.totals.iter().map(|(kind, t)| (kind.clone(), per_step(*t))).collect(),
    })
}

/// The whole step on one rank, in the order of the plan's ranks.
fn on_one_rank(plan: &TrainPlan) -> TrainPlan {
    let mut plan = plan.clone();
    (plan.parallel.data, plan.parallel.expert, plan.parallel.zero) = (1, 1, 0);
    plan
}

fn random_batches(plan: &TrainPlan, depths: usize, device: Device) -> Vec<MicroBatch> {
    let batch = &plan.batch;
    let width = batch.sequence_length + depths;
    let tokens = |micro: usize| -> Vec<i64> {
        let count = batch.micro_batch * width;
        let draw = |i: usize| sampling::uniform(plan.seed, (micro * count + i) as u64);
        (0..count).map(|i| (draw(i) * plan.model.vocab_size as f64) as i64).collect()
    };
    (0..plan.micro_batches())
        .map(|m| MicroBatch::new(&tokens(m), batch.sequence_length, depths, |_, _| true, device))
        .collect()
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{}: {:.0} tokens/s, median step {:.3} s (fastest {:.3} s) of {} tokens, {} threads, {}, MFU {:.1} %\n",
            self.recipe,
            self.tokens_per_s,
            self.median_step_s,
            self.min_step_s,
            self.step_tokens,
            self.threads,
            self.device,
            self.mfu * 100.0
        );
        let mut kinds: Vec<_> = self.segments_s.iter().collect();
        kinds.sort_by(|a, b| b.1.total_cmp(a.1));
        for (kind, seconds) in kinds {
            out += &format!("{:>9.2} ms  {kind}\n", seconds * 1e3);
        }
        out
    }
}

/// The plan of a recipe file.
pub fn plan_of(options: &Options) -> Result<TrainPlan> {
    let here = std::env::current_dir()?;
    let defaults = lampyris_recipes::Defaults {
        runs_dir: here.join("runs"),
        cache_dir: here.clone(),
        current_dir: here,
    };
    lampyris_recipes::load(&options.recipe, &options.sets, &defaults)
        .with_context(|| format!("recipe {}", options.recipe.display()))
}
