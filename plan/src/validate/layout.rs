//! Rules on data, batch, optimizer and the layout over ranks.

use super::{Invalid, Rules};
use crate::lr::batch_quantum;
use crate::train_plan::{BatchPlan, OptimizerPlan, Reduction, TrainPlan, ValidationSplit};

/// Threads of a rank: more than the cores of any machine.
const MAX_THREADS: usize = 1024;

/// Three centuries: a moment that far ahead can still be written down.
const MAX_TIMEOUT_S: u64 = 10_000_000_000;

/// A day; the kernel's own limit is 49 of them.
const MAX_PEER_TIMEOUT_MS: u64 = 86_400_000;

/// Micro-batches times layers of a rank's step: its program has some ten instructions for each. DeepSeek-V3 on one rank has
/// a quarter of it.
const MAX_PASSES: u64 = 1 << 22;

/// Tokens of a sample for a person to read.
const MAX_SAMPLE_TOKENS: usize = 1_000_000;

pub(super) fn check(plan: &TrainPlan, rules: &mut Rules) {
    let (ValidationSplit::Hash { fraction } | ValidationSplit::Tail { fraction }) =
        plan.data.validation;
    let held_out = (0.0..1.0).contains(&fraction);
    rules.within("data.validation_fraction", fraction, held_out, "at least 0 and below 1");
    if let Some(bytes) = plan.data.max_bytes {
        rules.positive("data.max_bytes", bytes);
    }
    optimizer(&plan.optimizer, rules);
    parallel(plan, rules);
    batch(plan, &plan.batch, rules);
    rules.positive("checkpoint.keep", plan.checkpoint.keep as u64);
    rules.positive("output.log_every_steps", plan.output.log_every_steps);
    let (sample, most) = (plan.output.sample_tokens, MAX_SAMPLE_TOKENS);
    rules.within("output.sample_tokens", sample, sample <= most, "0 to 1000000");
}

fn optimizer(optimizer: &OptimizerPlan, rules: &mut Rules) {
    for (key, beta) in [("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)]
    {
        rules.within(key, beta, (0.0..1.0).contains(&beta), "at least 0 and below 1");
    }
    rules.above_zero("optimizer.eps", optimizer.eps);
    rules.not_negative("optimizer.weight_decay", optimizer.weight_decay);
    rules.not_negative("optimizer.clip_norm", optimizer.clip_norm);
    if let Some(muon) = &optimizer.muon {
        let decays = (0.0..1.0).contains(&muon.momentum);
        rules.within("optimizer.momentum", muon.momentum, decays, "at least 0 and below 1");
    }
}

fn parallel(plan: &TrainPlan, rules: &mut Rules) {
    let (data, expert) = (plan.parallel.data as u64, plan.parallel.expert as u64);
    rules.size("parallel.data", plan.parallel.data);
    rules.size("parallel.expert", plan.parallel.expert);
    rules.divides("parallel.expert", expert, "parallel.data", data);
    rules.positive("parallel.bucket_bytes", plan.parallel.bucket_bytes as u64);
    let threads = plan.parallel.threads_per_rank;
    rules.within("parallel.threads_per_rank", threads, threads <= MAX_THREADS, "0 to 1024");
    let timeout_s = plan.parallel.operation_timeout_s;
    let in_range = (1..=MAX_TIMEOUT_S).contains(&timeout_s);
    rules.within("parallel.operation_timeout_s", timeout_s, in_range, "1 to 1e10");
    let timeout_ms = plan.parallel.peer_timeout_ms;
    let in_range = (1..=MAX_PEER_TIMEOUT_MS).contains(&timeout_ms);
    rules.within("parallel.peer_timeout_ms", timeout_ms, in_range, "1 to 86400000 (a day)");
    rules.within("parallel.zero", plan.parallel.zero, plan.parallel.zero <= 1, "0 or 1");
    match &plan.model.moe {
        Some(moe) => rules.divides("parallel.expert", expert, "model.experts", moe.experts as u64),
        None if expert > 1 => {
            let fix = "use expert = 1";
            rules.conflict("parallel.expert", expert, "needs a model with experts", fix);
        }
        None => {}
    }
}

fn batch(plan: &TrainPlan, batch: &BatchPlan, rules: &mut Rules) {
    for (key, value) in [
        ("batch.sequence_length", batch.sequence_length),
        ("batch.micro_batch", batch.micro_batch),
        ("batch.global_batch", batch.global_batch),
        ("batch.ramp_start", batch.ramp_start),
        ("batch.leaves", batch.leaves),
    ] {
        rules.size(key, value);
    }
    if rules.broken.iter().any(|rule| matches!(rule, Invalid::OutOfRange { .. })) {
        return; // the relations below would repeat it, or overflow
    }
    let global = batch.global_batch as u64;
    // Depth D of the MTP predicts D + 1 tokens ahead, so a sequence must be longer.
    let targets = plan.model.mtp_layers as u64 + 1;
    if batch.sequence_length as u64 <= targets {
        let why = format!("leaves no target {targets} tokens ahead");
        rules.conflict("batch.sequence_length", batch.sequence_length, why, "use longer sequences");
    }
    rules.power_of_two("batch.leaves", batch.leaves as u64);
    rules.multiple("batch.global_batch", global, "batch.micro_batch", batch.micro_batch as u64);
    let quantum = batch_quantum(plan);
    let (parts_key, parts) = match batch.reduction {
        Reduction::Canonical => ("batch.leaves", batch.leaves),
        Reduction::Fast => ("parallel.data", plan.parallel.data),
    };
    let of_key = format!("{parts_key} * batch.micro_batch = {parts} * {}", batch.micro_batch);
    if global.is_multiple_of(batch.micro_batch as u64) {
        rules.multiple("batch.global_batch", global, &of_key, quantum as u64);
    }
    if batch.ramp_start != batch.global_batch {
        rules.multiple("batch.ramp_start", batch.ramp_start as u64, &of_key, quantum as u64);
    }
    passes(plan, rules);
    let uneven = !batch.leaves.is_multiple_of(plan.parallel.data.max(1));
    if batch.reduction == Reduction::Canonical && uneven {
        let why = format!("does not divide batch.leaves = {}", batch.leaves);
        let fix = "canonical reduction gives every rank equally many leaves: change data or \
                   leaves, or use batch.reduction = \"fast\"";
        rules.conflict("parallel.data", plan.parallel.data, why, fix);
    }
    rules.at_most("batch.ramp_start", batch.ramp_start as u64, "batch.global_batch", global);
    if batch.ramp_start < batch.global_batch && batch.ramp_tokens == 0 {
        let why = "is below the global batch, but batch.ramp_tokens = 0 gives no time to grow";
        let fix = "set batch.ramp_tokens, or leave batch.ramp_start out";
        rules.conflict("batch.ramp_start", batch.ramp_start, why, fix);
    }
}

/// Bounds the step program of a rank.
fn passes(plan: &TrainPlan, rules: &mut Rules) {
    let (batch, ranks) = (&plan.batch, plan.parallel.data);
    let micro_batches = (batch.global_batch / batch.micro_batch).div_ceil(ranks) as u64;
    let passes = micro_batches.saturating_mul(plan.model.all_layers() as u64);
    if passes > MAX_PASSES {
        let layers = plan.model.all_layers();
        let why = format!(
            "makes {micro_batches} micro-batches on each rank, {passes} passes through {layers} layers"
        );
        let fix = format!(
            "raise batch.micro_batch or parallel.data: at most {MAX_PASSES} passes of a layer fit a step"
        );
        rules.conflict("batch.global_batch", batch.global_batch, why, &fix);
    }
}
