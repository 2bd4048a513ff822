//! What `lampyris plan` prints: the figures of a plan, as data (`--json`) and as a table for people ([`fmt::Display`]).
//!
//! [`fmt::Display`]: std::fmt::Display

use crate::digest::Digests;
use crate::estimate::{self, Speeds};
use crate::flops::{self, ForwardFlops};
use crate::ids::Step;
use crate::inventory::{Inventory, Kind, Optimizer};
use crate::lr;
use crate::memory::{RankMemory, checkpoint_bytes};
use crate::share::Shares;
use crate::timeline::Bound;
use crate::traffic::Traffic;
use crate::train_plan::{Reduction, TrainPlan};
use crate::validate::check_trainable;
use serde::Serialize;

mod table;

/// The figures of one plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Trainable elements.
    pub parameters: Parameters,
    /// Floating-point operations per token.
    pub flops_per_token: FlopsPerToken,
    /// Newton-Schulz operations; none with AdamW.
    pub newton_schulz: Option<NewtonSchulz>,
    /// Length of the run.
    pub run: Run,
    /// Bytes on one rank.
    pub memory_per_rank: MemoryPerRank,
    /// Bytes that a rank sends in one step.
    pub traffic_per_step: Traffic,
    /// The least time of a full-size step; none unless speeds are given.
    pub step_bound: Option<StepBound>,
    /// Bytes of one checkpoint of the whole job.
    pub checkpoint_bytes: u64,
    /// Digests of the plan.
    pub digests: Digests,
    /// Why this release cannot train the plan; none if it can.
    pub untrainable: Option<String>,
    /// What was decided for the person who wrote the recipe.
    pub notes: Vec<String>,
    /// The plan itself.
    pub plan: TrainPlan,
}

/// Trainable elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Main model, embedding and head included, MTP layers not.
    pub main: u64,
    /// Of those, what one token uses.
    pub active: u64,
    /// Embedding and head.
    pub embedding_and_head: u64,
    /// MTP layers, on top of `main`.
    pub mtp: u64,
}

/// Floating-point operations per token, causal attention at S/2; training = 3 x forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FlopsPerToken {
    /// Main model.
    pub forward: u64,
    /// Main model.
    pub training: u64,
    /// Main model and MTP layers.
    pub forward_with_mtp: u64,
    /// Main model and MTP layers.
    pub training_with_mtp: u64,
    /// Where the forward operations are.
    pub forward_parts: ForwardFlops,
}

/// What Muon's updates cost beside forward and backward passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NewtonSchulz {
    /// Operations of one step on all matrices.
    pub step_flops: u64,
    /// Those of the rank that has most of them: all without ZeRO.
    pub busiest_rank_flops: u64,
}

/// Length of the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Run {
    /// Tokens to train on.
    pub tokens: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of the first step.
    pub first_step_tokens: u64,
    /// Tokens of a full-size step.
    pub step_tokens: u64,
    /// Micro-batches of a full-size step, over all ranks.
    pub micro_batches: u64,
    /// Steps until the warm-up is over.
    pub warmup_steps: u64,
    /// Operations of the whole run, MTP layers and one Newton-Schulz of each of Muon's matrices a step included.
    pub flops: f64,
}

/// Bytes on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPerRank {
    /// By kind.
    #[serde(flatten)]
    pub kinds: RankMemory,
    /// All kinds together.
    pub total: u64,
    /// Gradients if the reduction were canonical.
    pub gradients_if_canonical: u64,
    /// Gradients if the reduction were fast.
    pub gradients_if_fast: u64,
}

/// The critical path of a full-size step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepBound {
    /// What it was computed for.
    pub speeds: Speeds,
    /// Seconds.
    #[serde(flatten)]
    pub bound: Bound,
}

impl Report {
    /// The figures of `plan`, which `validate` accepts, on one node.
    pub fn new(plan: &TrainPlan) -> Report {
        Report::on_nodes(plan, 1)
    }

    /// The figures of `plan` on this many nodes, which divide its ranks.
    pub fn on_nodes(plan: &TrainPlan, nodes: usize) -> Report {
        let shares = Shares::of(plan);
        let inventory = shares.inventory();
        let memory = |reduction| RankMemory::of(plan, &shares, reduction);
        let kinds = memory(plan.batch.reduction);
        let flops_per_token = flops_per_token(plan);
        let newton_schulz = newton_schulz(plan, &shares);
        Report {
            parameters: parameters(plan, inventory),
            flops_per_token,
            newton_schulz,
            run: run(plan, flops_per_token.training_with_mtp, newton_schulz),
            memory_per_rank: MemoryPerRank {
                kinds,
                total: kinds.total(),
                gradients_if_canonical: memory(Reduction::Canonical).gradients,
                gradients_if_fast: memory(Reduction::Fast).gradients,
            },
            traffic_per_step: Traffic::of(plan, inventory, nodes),
            step_bound: None,
            checkpoint_bytes: checkpoint_bytes(inventory),
            digests: Digests::of(plan),
            untrainable: check_trainable(plan).err().map(|reason| reason.to_string()),
            notes: notes(plan),
            plan: plan.clone(),
        }
    }

    /// Adds the least time of a step on machines of these speeds.
    pub fn with_step_bound(self, nodes: usize, speeds: Speeds) -> Report {
        let bound = estimate::step(&self.plan, nodes, speeds);
        Report { step_bound: Some(StepBound { speeds, bound }), ..self }
    }
}

fn parameters(plan: &TrainPlan, inventory: &Inventory) -> Parameters {
    let (main, mtp) = inventory.count(&plan.model);
    let outer = |kind: &Kind| matches!(kind, Kind::Embedding | Kind::Head);
    let outer = inventory.parameters.iter().filter(|p| outer(&p.kind));
    Parameters {
        main,
        active: inventory.count_active(&plan.model),
        embedding_and_head: outer.map(|p| p.elements() as u64).sum(),
        mtp,
    }
}

fn flops_per_token(plan: &TrainPlan) -> FlopsPerToken {
    let parts = ForwardFlops::per_token(&plan.model, plan.batch.sequence_length);
    FlopsPerToken {
        forward: parts.main(),
        training: 3 * parts.main(),
        forward_with_mtp: parts.with_mtp(),
        training_with_mtp: 3 * parts.with_mtp(),
        forward_parts: parts,
    }
}

fn newton_schulz(plan: &TrainPlan, shares: &Shares) -> Option<NewtonSchulz> {
    plan.optimizer.muon.as_ref()?;
    let parameters = &shares.inventory().parameters;
    let muon = parameters.iter().filter(|p| p.optimizer == Optimizer::Muon);
    Some(NewtonSchulz {
        step_flops: muon.map(flops::newton_schulz).sum(),
        busiest_rank_flops: shares.busiest_muon().flops,
    })
}

fn run(plan: &TrainPlan, training_flops: u64, newton_schulz: Option<NewtonSchulz>) -> Run {
    let updates = newton_schulz.map_or(0.0, |found| found.step_flops as f64);
    let steps = lr::steps(plan);
    Run {
        tokens: plan.schedule.total_tokens,
        steps,
        first_step_tokens: lr::tokens_at_step(plan, Step(1)),
        step_tokens: plan.step_tokens(),
        micro_batches: plan.micro_batches() as u64,
        warmup_steps: lr::step_at_tokens(plan, plan.schedule.warmup_tokens).0,
        flops: plan.schedule.total_tokens as f64 * training_flops as f64 + steps as f64 * updates,
    }
}

fn notes(plan: &TrainPlan) -> Vec<String> {
    let mut notes = Vec::new();
    let (data, leaves) = (plan.parallel.data, plan.batch.leaves);
    if plan.batch.reduction == Reduction::Fast && !leaves.is_multiple_of(data) {
        notes.push(format!(
            "reduction is fast, because {data} data-parallel ranks do not divide {leaves} leaves"
        ));
    }
    notes
}
