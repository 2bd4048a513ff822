//! Rules on data, batch, optimizer and the layout over ranks.

use super::{Invalid, Rules};
use crate::lr::batch_quantum;
use crate::train_plan::{BatchPlan, OptimizerPlan, Reduction, TrainPlan, ValidationSplit};

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
    rules.positive("parallel.operation_timeout_s", plan.parallel.operation_timeout_s);
    rules.positive("parallel.peer_timeout_ms", plan.parallel.peer_timeout_ms);
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
