//! Bytes that a rank holds and bytes that a checkpoint takes.
//!
//! Weights, gradients and optimizer state follow from the plan exactly, alignment gaps aside. Activations are the peak of
//! the step's program ([`crate::peak`]) with an estimate of each value: the elements that a segment keeps for its backward
//! pass when attention keeps no score matrix and nothing is recomputed, experts equally loaded. What libtorch allocates for a
//! moment, the logits of one chunk of the loss among it, is not counted.

use crate::inventory::{Group, Inventory, Optimizer, Parameter, Storage};
use crate::model_spec::{Attention, ModelSpec};
use crate::peak::{Piece, peak};
use crate::program::{Program, StepShape};
use crate::segments::{Graph, Operation, Segment, Slot};
use crate::share::Shares;
use crate::train_plan::{Compute, Reduction, Sharding, TrainPlan};
use serde::Serialize;
use std::sync::Arc;

/// Bytes on one rank, by kind; of Muon's matrices as on the rank that owns most elements of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RankMemory {
    /// fp32 master weights (of this rank's shard with ZeRO-1).
    pub master_weights: u64,
    /// The copy in the compute type that matrix products read; 0 in fp32.
    pub compute_weights: u64,
    /// fp32 gradient accumulators.
    pub gradients: u64,
    /// First moment, and second where AdamW updates, fp32 (of this rank's shard with ZeRO-1).
    pub optimizer: u64,
    /// The most that the micro-batches in work take at a time; an estimate.
    pub activations: u64,
    /// Host copy of this rank's weights and moments, fp32, from the first checkpoint on.
    pub snapshot: u64,
    /// Snapshots kept in memory for a restart: this rank's and one of another node, two of each while they are replaced.
    pub replicas: u64,
}

impl RankMemory {
    /// What a rank of `plan` holds, whose shares are `shares`; the gradients as `reduction` needs them, whatever the plan
    /// says.
    pub fn of(plan: &TrainPlan, shares: &Shares, reduction: Reduction) -> RankMemory {
        let (inventory, mesh) = (shares.inventory(), shares.mesh());
        let mut memory = RankMemory {
            master_weights: 0,
            compute_weights: 0,
            gradients: 0,
            optimizer: 0,
            activations: activations(plan, shares),
            snapshot: 0,
            replicas: 0,
        };
        for parameter in &inventory.parameters {
            let whole = parameter.elements() as u64;
            let here = match parameter.group {
                Group::Dense => whole,
                Group::Expert => whole.div_ceil(mesh.expert as u64),
            };
            let shards = match plan.parallel.sharding() {
                Sharding::Replicated => 1,
                Sharding::Optimizer => mesh.replicas(parameter.group, 0).len() as u64,
            };
            let copied = plan.compute == Compute::Bf16 && parameter.storage == Storage::Compute;
            let moments = parameter.optimizer.moments() as u64;
            let updated = match parameter.optimizer {
                Optimizer::AdamW => here.div_ceil(shards),
                // Counted below: a matrix has one owner.
                Optimizer::Muon => 0,
            };
            // A master that the forward pass reads itself is whole on every rank.
            memory.master_weights += 4 * if copied { updated } else { here };
            memory.compute_weights += if copied { 2 * here } else { 0 };
            memory.optimizer += 4 * moments * updated;
            memory.snapshot += 4 * (1 + moments) * updated;
            memory.gradients += 4 * match reduction {
                Reduction::Fast => here,
                Reduction::Canonical => {
                    accumulators(plan) * here * mesh.sources(parameter.group) as u64
                }
            };
        }
        let moments = Optimizer::Muon.moments() as u64;
        let owned = shares.most_muon_elements();
        memory.master_weights += if plan.compute == Compute::Bf16 { 4 * owned } else { 0 };
        memory.optimizer += 4 * moments * owned;
        memory.snapshot += 4 * (1 + moments) * owned;
        if plan.checkpoint.replica_every_steps > 0 {
            memory.replicas = 4 * memory.snapshot;
        }
        memory
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.master_weights
            + self.compute_weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.snapshot
            + self.replicas
    }
}

/// Gradient accumulators of canonical reduction: log2 of the leaves of a rank, plus 1.
fn accumulators(plan: &TrainPlan) -> u64 {
    let leaves_per_rank = (plan.batch.leaves / plan.parallel.data).max(1);
    u64::from(leaves_per_rank.ilog2()) + 1
}

/// Bytes of one checkpoint of the whole job: fp32 weights, moments, gate biases.
pub fn checkpoint_bytes(inventory: &Inventory) -> u64 {
    let values = |p: &Parameter| (1 + p.optimizer.moments()) as u64 * p.elements() as u64;
    let trained: u64 = inventory.parameters.iter().map(values).sum();
    let biases: usize = inventory.buffers.iter().map(|b| b.shape.iter().product::<usize>()).sum();
    4 * trained + 4 * biases as u64
}

/// Bytes that one token of a micro-batch keeps for the backward pass: its slots, and what segments keep beside them.
pub(crate) fn activations_per_token(plan: &TrainPlan) -> u64 {
    let graph = Graph::new(&plan.model);
    let mut bytes = 0;
    for operation in graph.forward() {
        for slot in graph.writes(operation) {
            bytes += bytes_per_token(plan, Piece::Slot(slot));
        }
        if let Operation::Segment(segment) = operation {
            bytes += bytes_per_token(plan, Piece::Inside(segment));
        }
    }
    bytes
}

/// Micro-batches after which a program only repeats itself.
const MICRO_BATCHES: usize = 3;

fn activations(plan: &TrainPlan, shares: &Shares) -> u64 {
    // Buckets hold no activations.
    let shape = StepShape {
        graph: Arc::clone(shares.graph()),
        buckets: Arc::new([]),
        micro_batches: (plan.micro_batches() / plan.parallel.data).clamp(1, MICRO_BATCHES),
        leaves: 1,
    };
    let program = match plan.parallel.overlap {
        true => Program::overlapped(&shape),
        false => Program::sequential(&shape),
    };
    let tokens = (plan.batch.micro_batch * plan.batch.sequence_length) as u64;
    peak(&program, &shape.graph, |piece| tokens * bytes_per_token(plan, piece))
}

/// Bytes of a value, per token.
fn bytes_per_token(plan: &TrainPlan, piece: Piece) -> u64 {
    let (in_compute_type, in_fp32) = match piece {
        Piece::Slot(slot) | Piece::Gradient(slot) => of_slot(&plan.model, slot),
        // Gradients of the outputs of its products are as large as what it keeps of them.
        Piece::Inside(segment) | Piece::Queue(segment) => inside(&plan.model, segment),
    };
    in_compute_type as u64 * plan.compute.bytes() as u64 + 4 * in_fp32 as u64
}

/// Elements of a slot per token: (compute type, fp32).
fn of_slot(spec: &ModelSpec, slot: Slot) -> (usize, usize) {
    let chosen = spec.moe.as_ref().map_or(0, |moe| moe.experts_per_token);
    match slot {
        Slot::Rows(_) | Slot::ExpertRows(_) => (chosen * spec.hidden, 0),
        Slot::RouteWeights(_) | Slot::RowWeights(_) => (0, chosen),
        Slot::Balance(_) => (0, 0),
        _ => (spec.hidden, 0),
    }
}

/// Elements that a segment keeps per token beside its slots: (compute type, fp32).
fn inside(spec: &ModelSpec, segment: Segment) -> (usize, usize) {
    let hidden = spec.hidden;
    match segment {
        Segment::Attention(layer) => {
            let (attention, heads) = attention(spec);
            let scores = spec.moe.as_ref().filter(|_| spec.is_moe_layer(layer));
            // The norm before it. fp32: log-sum-exp of each head, scores of the gate.
            (hidden + attention, heads + scores.map_or(0, |moe| moe.experts))
        }
        // Gate, up and their product.
        Segment::FeedForward(_) => (3 * spec.ffn_hidden, 0),
        Segment::Shared(_) => (3 * spec.shared_hidden(), 0),
        Segment::Experts(_) => {
            let moe = spec.moe.as_ref();
            (moe.map_or(0, |moe| 3 * moe.experts_per_token * moe.expert_hidden), 0)
        }
        // Two norms and their concatenation.
        Segment::MtpInput(_) => (4 * hidden, 0),
        Segment::Embed
        | Segment::Merge(_)
        | Segment::FinalNorm
        | Segment::MtpNorm(_)
        | Segment::Head(_) => (0, 0),
    }
}

/// Elements that attention keeps per token, and its heads.
fn attention(spec: &ModelSpec) -> (usize, usize) {
    match spec.attention {
        // q, k, v, o
        Attention::Gqa { heads, kv_heads, head_dim } => (2 * (heads + kv_heads) * head_dim, heads),
        // c_q before and after its norm; c_kv with k_r, c_kv normed; q, k, v, o
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
            let low = 2 * q_rank.unwrap_or(0) + 2 * kv_rank + rope_dim;
            (low + 2 * heads * (nope_dim + rope_dim + v_dim), heads)
        }
    }
}

#[cfg(test)]
mod tests;
