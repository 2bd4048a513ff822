//! Bytes that a rank holds and bytes that a checkpoint takes.
//!
//! Weights, gradients and optimizer state follow from the plan exactly, alignment gaps aside. Activations are an
//! estimate: the elements that a block keeps for its backward pass when attention keeps no score matrix and nothing is
//! recomputed, of each micro-batch in work. What libtorch allocates for a moment, the logits of one chunk of the loss
//! among it, is not counted.

use crate::inventory::{Group, Inventory, Optimizer, Parameter, Storage};
use crate::model_spec::{Attention, ModelSpec};
use crate::shards::muon_work;
use crate::train_plan::{Compute, Reduction, TrainPlan};
use serde::Serialize;

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
    /// One micro-batch, two where the program overlaps them; an estimate.
    pub activations: u64,
    /// Host copy of this rank's weights and moments, fp32, from the first checkpoint on.
    pub snapshot: u64,
    /// Snapshots kept in memory for a restart: this rank's and one of another node, two of each while they are replaced.
    pub replicas: u64,
}

impl RankMemory {
    /// What a rank of `plan` holds; the gradients as `reduction` needs them, whatever the plan says.
    pub fn of(plan: &TrainPlan, inventory: &Inventory, reduction: Reduction) -> RankMemory {
        let mut memory = RankMemory {
            master_weights: 0,
            compute_weights: 0,
            gradients: 0,
            optimizer: 0,
            activations: activations(plan) * if plan.parallel.overlap { 2 } else { 1 },
            snapshot: 0,
            replicas: 0,
        };
        let expert_ranks = plan.parallel.expert as u64;
        for parameter in &inventory.parameters {
            let whole = parameter.elements() as u64;
            let here = match parameter.group {
                Group::Dense => whole,
                Group::Expert => whole.div_ceil(expert_ranks),
            };
            let replicas = match parameter.group {
                Group::Dense => plan.parallel.data as u64,
                Group::Expert => plan.parallel.data as u64 / expert_ranks,
            };
            let shards = if plan.parallel.zero == 0 { 1 } else { replicas };
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
                // Expert gradients keep one set for each of the `expert` source ranks.
                Reduction::Canonical if parameter.group == Group::Expert => {
                    accumulators(plan) * here * expert_ranks
                }
                Reduction::Canonical => accumulators(plan) * here,
            };
        }
        let moments = Optimizer::Muon.moments() as u64;
        let owned = muon_work(plan, inventory).iter().map(|work| work.elements).max().unwrap_or(0);
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

fn activations(plan: &TrainPlan) -> u64 {
    let tokens = (plan.batch.micro_batch * plan.batch.sequence_length) as u64;
    tokens * activations_per_token(plan)
}

/// Bytes that one token of a micro-batch keeps for the backward pass.
pub(crate) fn activations_per_token(plan: &TrainPlan) -> u64 {
    let spec = &plan.model;
    let hidden = spec.hidden as u64;
    // Embedding output and final norm; an MTP layer has two norms and their concatenation, and a norm before the head.
    let (mut narrow, mut fp32) = (2 * hidden + 5 * hidden * spec.mtp_layers as u64, 0);
    for layer in 0..spec.all_layers() {
        let (in_compute_type, in_fp32) = layer_elements(spec, layer);
        narrow += in_compute_type;
        fp32 += in_fp32;
    }
    narrow * plan.compute.bytes() as u64 + 4 * fp32
}

/// Elements that one layer keeps per token: (compute type, fp32).
fn layer_elements(spec: &ModelSpec, layer: usize) -> (u64, u64) {
    let d = spec.hidden;
    let (attention, heads) = match spec.attention {
        // q, k, v, o
        Attention::Gqa { heads, kv_heads, head_dim } => (2 * (heads + kv_heads) * head_dim, heads),
        // c_q before and after its norm; c_kv with k_r, c_kv normed; q, k, v, o
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
            let low = 2 * q_rank.unwrap_or(0) + 2 * kv_rank + rope_dim;
            (low + 2 * heads * (nope_dim + rope_dim + v_dim), heads)
        }
    };
    // Input, its norm, residual, its norm.
    let common = 4 * d + attention;
    let (feed_forward, gate) = match &spec.moe {
        // Rows out and back, gate, up and their product per expert; the same without rows for the shared expert.
        Some(moe) if spec.is_moe_layer(layer) => {
            let routed = moe.experts_per_token * (2 * d + 3 * moe.expert_hidden);
            (routed + 3 * spec.shared_hidden(), moe.experts)
        }
        _ => (3 * spec.ffn_hidden, 0),
    };
    // fp32: log-sum-exp of each head, scores of the gate.
    ((common + feed_forward) as u64, (heads + gate) as u64)
}

#[cfg(test)]
mod tests;
