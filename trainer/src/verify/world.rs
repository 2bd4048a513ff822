//! All ranks of a layout as threads of this process, and what each of them holds after every step.

use super::Layout;
use crate::build::Rank;
use crate::executor::StepInput;
use crate::ranks::{Place, Ranks};
use crate::sampling::uniform;
use crate::trace::Clock;
use crate::train::loss_scales;
use anyhow::{Context, Result, anyhow};
use lampyris_comm::{Attempt, Secret, Server};
use lampyris_model::MicroBatch;
use lampyris_plan::TrainPlan;
use lampyris_plan::inventory::ParameterId;
use lampyris_plan::share::intersection;
use lampyris_torch::dim;
use serde::Serialize;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// The layout that all others are compared with.
const ONE_RANK: Layout = Layout { data: 1, expert: 1, zero: 0, overlap: false, nodes: 1 };

/// Threads of one process meet at once.
const MEET_TIMEOUT: Duration = Duration::from_secs(60);

/// What is compared of each parameter, in the order in which a step makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// Sum over the global batch.
    Gradient,
    /// fp32.
    Master,
    /// First moment.
    ExpAvg,
    /// Second moment.
    ExpAvgSq,
    /// What the next forward pass reads.
    Weights,
}

/// A part of a parameter that a rank holds.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) what: What,
    pub(crate) parameter: ParameterId,
    /// Elements of the parameter.
    pub(crate) range: Range<usize>,
    pub(crate) values: Vec<f32>,
}

/// What a rank has after a step.
#[derive(Debug)]
pub(crate) struct Observation {
    /// Summed loss by prediction depth, then the balance loss.
    pub(crate) losses: Vec<f64>,
    pub(crate) norm: f64,
    pub(crate) biases: Vec<Vec<f32>>,
    pub(crate) pieces: Vec<Piece>,
}

/// What the gates choose in each micro-batch of the first step: by micro-batch and decoder layer.
pub(crate) type Choices = Vec<HashMap<usize, Vec<i64>>>;

/// The choices of a run on one rank.
pub(crate) fn choices(plan: &TrainPlan) -> Result<Choices> {
    let plan = ONE_RANK.apply(plan);
    let mut rank = Rank::of_plan(&plan, Device::Cpu, Ranks::alone())?;
    rank.state.initialize(&rank.network.inventory, plan.seed);
    let input = input(&plan, &rank, 0)?;
    let mut reader = rank.reader()?;
    let of = |batch: &MicroBatch| Ok(reader.choices(batch)?);
    input.batches.iter().map(of).collect()
}

/// The plan on one rank.
pub(crate) fn one_rank(plan: &TrainPlan, steps: usize) -> Result<Vec<Observation>> {
    one(&ONE_RANK.apply(plan), Ranks::alone(), (steps, None))
}

/// The plan on all its ranks, for so many steps; the first one's gates choose as `pinned` says. What each rank observes,
/// by rank and step.
pub(crate) fn run(
    plan: &TrainPlan,
    nodes: usize,
    (steps, pinned): (usize, Option<&Choices>),
) -> Result<Vec<Vec<Observation>>> {
    let world = plan.parallel.data;
    if world == 1 {
        return Ok(vec![one(plan, Ranks::alone(), (steps, pinned))?]);
    }
    let secret = Secret::random_bytes()?;
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bytes = Secret::from_bytes(secret);
    let server = Server::start(anywhere, bytes, Attempt(1), MEET_TIMEOUT)?;
    #[cfg(test)]
    let bug = crate::planted::current();
    let rank = |rank: usize| {
        #[cfg(test)]
        crate::planted::plant(bug);
        let place = Place {
            rank,
            nodes,
            node: rank / (world / nodes),
            attempt: 1,
            rendezvous: server.address(),
            secret: Secret::from_bytes(secret),
        };
        one(plan, Ranks::connect(plan, place)?, (steps, pinned))
    };
    let rank = &rank;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world).map(|r| scope.spawn(move || rank(r))).collect();
        let ended = threads.into_iter().enumerate().map(|(r, thread)| {
            let ended = thread.join().map_err(|_| anyhow!("its thread panicked"));
            ended.and_then(|observed| observed).with_context(|| format!("rank {r}"))
        });
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

fn one(plan: &TrainPlan, ranks: Ranks, how: (usize, Option<&Choices>)) -> Result<Vec<Observation>> {
    let mut rank = Rank::of_plan(plan, Device::Cpu, ranks)?;
    let found = train(plan, &mut rank, how);
    if let Err(error) = &found {
        rank.ranks.abort(&format!("{error:#}"));
    }
    found
}

fn train(
    plan: &TrainPlan,
    rank: &mut Rank,
    (steps, pinned): (usize, Option<&Choices>),
) -> Result<Vec<Observation>> {
    rank.state.initialize(&rank.network.inventory, plan.seed);
    let mut out = Vec::new();
    for step in 0..steps {
        let mut input = input(plan, rank, step)?;
        if let (0, Some(pinned)) = (step, pinned) {
            let first = rank.ranks.rank() * input.batches.len();
            for (batch, choices) in input.batches.iter_mut().zip(&pinned[first..]) {
                batch.choices.clone_from(choices);
            }
        }
        let program = rank.share.program_of(input.batches.len());
        let report = rank.executor(&plan.optimizer, &mut Clock::default()).run(&program, &input)?;
        let progress = &mut rank.state.progress;
        progress.step += 1;
        progress.samples += plan.batch.global_batch as u64;
        progress.tokens += plan.step_tokens();
        // Weights under way arrive before anybody looks at them.
        rank.reader()?;
        let mut losses = report.loss_sums;
        losses.push(report.balance_sum);
        out.push(Observation {
            losses,
            norm: report.grad_norm.map_or(0.0, |found| found.norm),
            biases: rank.state.biases.clone(),
            pieces: pieces(rank)?,
        });
    }
    // Nobody leaves while others still read its memory.
    rank.ranks.barrier()?;
    Ok(out)
}

/// Random tokens; sequences of the same micro-batch end alike, those of different ones do not.
fn input(plan: &TrainPlan, rank: &Rank, step: usize) -> Result<StepInput> {
    let batch = &plan.batch;
    let depths = rank.network.graph.depths();
    let width = batch.sequence_length + depths;
    let each = plan.micro_batches() / rank.ranks.mesh().data;
    let micro = |micro: usize| {
        let count = batch.micro_batch * width;
        let first = (step * plan.micro_batches() + micro) * count;
        let draw = |i: usize| uniform(plan.seed, (first + i) as u64) * plan.model.vocab_size as f64;
        let tokens: Vec<i64> = (0..count).map(|i| draw(i) as i64).collect();
        let end = batch.sequence_length - micro * 5 % (batch.sequence_length - depths);
        let valid = |_: usize, at: usize| at % batch.sequence_length < end;
        MicroBatch::new(&tokens, batch.sequence_length, depths, valid, Device::Cpu)
    };
    let first = rank.ranks.rank() * each;
    let batches: Vec<MicroBatch> = (first..first + each).map(micro).collect();
    let mut valid = [0i64];
    for batch in &batches {
        valid[0] += batch.targets[0].ge(0).sum(Kind::Int64).int64_value(&[]);
    }
    rank.ranks.sum_integers(&mut valid)?;
    let progress = rank.state.progress;
    Ok(StepInput {
        batches,
        loss_scales: loss_scales(plan, progress.tokens, usize::try_from(valid[0])?, depths),
        balance_scale: 1.0 / batch.global_batch as f64,
        lr: 1e-2,
        bias_speed: 1e-3,
    })
}

fn pieces(rank: &Rank) -> Result<Vec<Piece>> {
    let state = &rank.state;
    let mut out = Vec::new();
    for (bucket, array) in state.buckets.buckets.iter().zip(&state.arrays) {
        let gradient = &state.gradients.bucket(bucket.id).tensor;
        for p in &bucket.placements {
            let whole = p.offset..p.offset + p.elements;
            let owned = intersection(&whole, &array.owned);
            let mut add = |what, range: &Range<usize>, values: Tensor| -> Result<()> {
                let values = Vec::<f32>::try_from(values.to_kind(Kind::Float).contiguous())?;
                let range = range.start - p.offset..range.end - p.offset;
                out.push(Piece { what, parameter: p.parameter, range, values });
                Ok(())
            };
            let part = |flat: &Tensor, r: &Range<usize>| flat.narrow(0, dim(r.start), dim(r.len()));
            add(What::Weights, &whole, part(&array.weights.tensor, &whole))?;
            if owned.is_empty() {
                continue;
            }
            add(What::Gradient, &owned, part(gradient, &owned))?;
            let moments = [Some(&array.exp_avg), array.exp_avg_sq.as_ref()];
            let held = [What::Master, What::ExpAvg, What::ExpAvgSq]
                .into_iter()
                .zip([Some(&array.master)].into_iter().chain(moments));
            for (what, values) in held {
                if let Some(values) = values {
                    add(what, &owned, array.of_owned(values, &owned))?;
                }
            }
        }
    }
    Ok(out)
}
