//! Rules on the sizes of the network.

use super::Rules;
use crate::memory::activations_per_token;
use crate::model_spec::{Attention, Gate, ModelSpec, Moe, Rope};
use crate::train_plan::{TokenizerPlan, TrainPlan};

const MAX_LAYERS: usize = 1_000;
const MAX_EXPERTS: usize = 4_096;

/// Experts of all layers: bounds the list of parameters. DeepSeek-V3 has 14,848.
const MAX_ALL_EXPERTS: u64 = 200_000;

/// Elements of all matrices, and operations of the attention core per token: three orders above DeepSeek-V3, and small
/// enough for 64-bit arithmetic on bytes and operations.
const MAX_MAGNITUDE: f64 = 1e15;

pub(super) fn check(plan: &TrainPlan, rules: &mut Rules) {
    let model = &plan.model;
    for (key, value) in [
        ("model.vocab_size", model.vocab_size),
        ("model.hidden", model.hidden),
        ("model.max_positions", model.max_positions),
    ] {
        rules.size(key, value);
    }
    let layers = (1..=MAX_LAYERS).contains(&model.layers);
    rules.within("model.layers", model.layers, layers, "1 to 1000");
    rules.within("model.mtp_layers", model.mtp_layers, model.mtp_layers <= 8, "0 to 8");
    rules.above_zero("model.norm_eps", model.norm_eps);
    rules.not_negative("model.init_std", model.init_std);
    attention(&model.attention, rules);
    rope(&model.rope, rules);
    if model.moe.as_ref().is_none_or(|moe| moe.first_dense_layers > 0) {
        rules.size("model.ffn_hidden", model.ffn_hidden);
    }
    if let Some(moe) = &model.moe {
        experts(model, moe, rules);
    }
    vocabulary(plan, rules);
    if rules.broken.is_empty() {
        magnitude(plan, rules);
    }
}

/// The sizes are each in range; their products must be too.
fn magnitude(plan: &TrainPlan, rules: &mut Rules) {
    let model = &plan.model;
    let (layers, hidden) = (model.all_layers() as f64, model.hidden as f64);
    // Upper bounds: every projection as if it went from the whole hidden state.
    let (low, wide) = match model.attention {
        Attention::Gqa { heads, head_dim, .. } => (0, heads * head_dim),
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
            (q_rank.unwrap_or(0) + kv_rank, heads * (nope_dim + rope_dim + v_dim))
        }
    };
    let attention = 4.0 * (hidden + low as f64) * wide as f64;
    let (experts, expert) = model.moe.as_ref().map_or((0.0, 0.0), |moe| {
        ((moe.experts + moe.shared_experts) as f64, moe.expert_hidden as f64)
    });
    let feed_forward = 3.0 * hidden * (model.ffn_hidden as f64 + experts * expert);
    let elements = 2.0 * hidden * model.vocab_size as f64 + layers * (attention + feed_forward);
    let core = 2.0 * layers * wide as f64 * plan.batch.sequence_length as f64;
    for (key, value, what) in [
        ("model.hidden", elements, "parameters"),
        ("batch.sequence_length", core, "operations of attention per token"),
    ] {
        let fits = format!("keep the {what} below {MAX_MAGNITUDE:e}");
        if value > MAX_MAGNITUDE {
            let why = format!("makes about {value:.0e} {what} with the other sizes");
            let at = if key == "model.hidden" { model.hidden } else { plan.batch.sequence_length };
            rules.conflict(key, at, why, &fits);
        }
    }
    if rules.broken.is_empty() {
        activations(plan, rules);
    }
}

fn activations(plan: &TrainPlan, rules: &mut Rules) {
    let batch = &plan.batch;
    let tokens = batch.micro_batch as f64 * batch.sequence_length as f64;
    let bytes = tokens * activations_per_token(plan) as f64;
    if bytes > MAX_MAGNITUDE {
        let length = batch.sequence_length;
        let why = format!(
            "sequences of {length} tokens keep about {bytes:.0e} bytes for their backward pass"
        );
        let fix = format!("keep the bytes below {MAX_MAGNITUDE:e}");
        rules.conflict("batch.micro_batch", batch.micro_batch, why, &fix);
    }
}

fn attention(attention: &Attention, rules: &mut Rules) {
    match *attention {
        Attention::Gqa { heads, kv_heads, head_dim } => {
            rules.size("model.heads", heads);
            rules.size("model.kv_heads", kv_heads);
            rules.size("model.head_dim", head_dim);
            rules.divides("model.kv_heads", kv_heads as u64, "model.heads", heads as u64);
            rules.multiple("model.head_dim", head_dim as u64, "a RoPE pair", 2);
        }
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
            for (key, value) in [
                ("model.heads", heads),
                ("model.q_rank", q_rank.unwrap_or(1)),
                ("model.kv_rank", kv_rank),
                ("model.nope_dim", nope_dim),
                ("model.rope_dim", rope_dim),
                ("model.v_dim", v_dim),
            ] {
                rules.size(key, value);
            }
            rules.multiple("model.rope_dim", rope_dim as u64, "a RoPE pair", 2);
        }
    }
}

fn rope(rope: &Rope, rules: &mut Rules) {
    let over_one = rope.theta.is_finite() && rope.theta > 1.0;
    rules.within("model.rope_theta", rope.theta, over_one, "a finite number above 1");
    let Some(yarn) = &rope.yarn else { return };
    let extends = yarn.factor.is_finite() && yarn.factor >= 1.0;
    rules.within("model.yarn.factor", yarn.factor, extends, "a finite number, at least 1");
    rules.size("model.yarn.original_max_positions", yarn.original_max_positions);
    rules.above_zero("model.yarn.beta_slow", yarn.beta_slow);
    rules.above_zero("model.yarn.beta_fast", yarn.beta_fast);
    if yarn.beta_fast <= yarn.beta_slow {
        let why = format!("is not above model.yarn.beta_slow = {}", yarn.beta_slow);
        rules.conflict("model.yarn.beta_fast", yarn.beta_fast, why, "the papers use 32 and 1");
    }
}

fn experts(model: &ModelSpec, moe: &Moe, rules: &mut Rules) {
    let experts = (1..=MAX_EXPERTS).contains(&moe.experts);
    rules.within("model.experts", moe.experts, experts, "1 to 4096");
    rules.within("model.shared_experts", moe.shared_experts, moe.shared_experts <= 64, "0 to 64");
    for (key, value) in [
        ("model.experts_per_token", moe.experts_per_token),
        ("model.expert_hidden", moe.expert_hidden),
        ("model.groups", moe.groups),
        ("model.groups_per_token", moe.groups_per_token),
    ] {
        rules.size(key, value);
    }
    let all_experts = (moe.experts as u64).saturating_mul(model.layers as u64);
    if experts && model.layers <= MAX_LAYERS && all_experts > MAX_ALL_EXPERTS {
        let why = format!("makes {all_experts} experts in {} layers", model.layers);
        let fix = format!("keep the experts of all layers at or below {MAX_ALL_EXPERTS}");
        rules.conflict("model.experts", moe.experts, why, &fix);
    }
    let first_dense = moe.first_dense_layers as u64;
    rules.at_most("model.first_dense_layers", first_dense, "model.layers", model.layers as u64);
    let groups = moe.groups as u64;
    rules.divides("model.groups", groups, "model.experts", moe.experts as u64);
    rules.at_most("model.groups_per_token", moe.groups_per_token as u64, "model.groups", groups);
    if let Some(per_group) = moe.experts.checked_div(moe.groups) {
        let per_group = per_group as u64;
        let in_reach = per_group.saturating_mul(moe.groups_per_token as u64);
        let limit = "the experts of the allowed groups";
        rules.at_most("model.experts_per_token", moe.experts_per_token as u64, limit, in_reach);
        if moe.gate == Gate::SigmoidBias && per_group < 2 {
            let why = format!("leaves {per_group} expert in a group of {} experts", moe.experts);
            let fix = "a sigmoid_bias group is scored by its best two experts: use fewer groups";
            rules.conflict("model.groups", moe.groups, why, fix);
        }
    }
    if moe.gate == Gate::SoftmaxGreedy && moe.groups != 1 {
        let fix = "use groups = 1, or gate = \"softmax_group_limited\"";
        rules.conflict("model.groups", moe.groups, "has no meaning for a softmax_greedy gate", fix);
    }
    if moe.gate != Gate::SigmoidBias && moe.bias_update_speed != 0.0 {
        let fix = "use bias_update_speed = 0, or gate = \"sigmoid_bias\"";
        let why = "needs a gate with biases";
        rules.conflict("model.bias_update_speed", moe.bias_update_speed, why, fix);
    }
    rules.above_zero("model.routed_scale", moe.routed_scale);
    rules.not_negative("model.bias_update_speed", moe.bias_update_speed);
    rules.not_negative("model.balance_loss", moe.balance_loss);
}

/// Tokens the tokenizer is known to make without reading anything.
fn vocabulary(plan: &TrainPlan, rules: &mut Rules) {
    let tokens = match &plan.tokenizer {
        TokenizerPlan::Byte => 257,
        TokenizerPlan::Bpe { vocab_size, train_bytes } => {
            let fits = *vocab_size >= 257;
            let range = "at least 257: 256 bytes and the end of a document";
            rules.within("tokenizer.vocab_size", vocab_size, fits, range);
            rules.positive("tokenizer.train_bytes", *train_bytes);
            *vocab_size
        }
        TokenizerPlan::Char | TokenizerPlan::File { .. } => return,
    };
    if (1..tokens).contains(&plan.model.vocab_size) {
        let why = format!("has no rows for the {tokens} tokens of the tokenizer");
        let fix = "raise model.vocab_size or leave it out";
        rules.conflict("model.vocab_size", plan.model.vocab_size, why, fix);
    }
}
