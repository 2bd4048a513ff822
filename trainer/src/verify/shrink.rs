//! Widths to the least that divide in the same way; what decides the flow of data stays: depth pattern, experts, groups,
//! top-k, MTP, tying, leaves, micro-batches and layout.

use lampyris_plan::TrainPlan;
use lampyris_plan::model_spec::Attention;

/// The plan in small, and what was changed.
pub(super) fn shrink(plan: &TrainPlan) -> (TrainPlan, Vec<String>) {
    let mut small = plan.clone();
    let mut said = Vec::new();
    let mut least = |name: &str, value: &mut usize, to: usize| {
        if *value > to {
            said.push(format!("{name} {value} -> {to}"));
            *value = to;
        }
    };
    let model = &mut small.model;
    // Large enough that ZeRO cuts a parameter.
    least("model.vocab_size", &mut model.vocab_size, 257);
    least("model.hidden", &mut model.hidden, 32);
    least("model.ffn_hidden", &mut model.ffn_hidden, 32);
    match &mut model.attention {
        Attention::Gqa { heads, kv_heads, head_dim } => {
            let share = *heads / *kv_heads;
            // Two groups of query heads, each as large as before.
            let groups = (*kv_heads).min(2);
            least("model.kv_heads", kv_heads, groups);
            least("model.heads", heads, groups * share);
            least("model.head_dim", head_dim, 8);
        }
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
            least("model.heads", heads, 2);
            if let Some(rank) = q_rank {
                least("model.q_rank", rank, 16);
            }
            least("model.kv_rank", kv_rank, 16);
            least("model.nope_dim", nope_dim, 8);
            least("model.rope_dim", rope_dim, 4);
            least("model.v_dim", v_dim, 8);
        }
    }
    if let Some(moe) = &mut model.moe {
        least("model.expert_hidden", &mut moe.expert_hidden, 16);
    }
    let batch = &mut small.batch;
    let micro_batches = batch.global_batch / batch.micro_batch;
    least("batch.sequence_length", &mut batch.sequence_length, 16);
    least("batch.micro_batch", &mut batch.micro_batch, 2);
    // No more than four micro-batches a leaf: the order of a longer run shows as well in these.
    let parts = batch.leaves.max(plan.parallel.data);
    let mut kept = micro_batches;
    least("micro-batches of a step", &mut kept, 4 * parts);
    batch.global_batch = kept * batch.micro_batch;
    (batch.ramp_start, batch.ramp_tokens) = (batch.global_batch, 0);
    // Small enough that even this network has several buckets.
    least("parallel.bucket_bytes", &mut small.parallel.bucket_bytes, 16 << 10);
    if small.optimizer.clip_norm == 0.0 {
        said.push("optimizer.clip_norm 0 -> 1".to_string());
        small.optimizer.clip_norm = 1.0;
    }
    (small, said)
}
