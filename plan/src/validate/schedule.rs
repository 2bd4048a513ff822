//! Rules on the schedules.

use super::{MAX_TOKENS, Rules};
use crate::train_plan::{Decay, Milestone, SchedulePlan, Segment, TrainPlan};

pub(super) fn check(plan: &TrainPlan, rules: &mut Rules) {
    let schedule = &plan.schedule;
    let total = schedule.total_tokens;
    let in_range = (1..=MAX_TOKENS).contains(&total);
    rules.within("schedule.total_tokens", total, in_range, "1 to 1e18");
    rules.above_zero("schedule.peak_lr", schedule.peak_lr);
    let warmup = schedule.warmup_tokens;
    rules.at_most("schedule.warmup_tokens", warmup, "schedule.total_tokens", total);
    decay(schedule, rules);
    rules.not_negative("schedule.mtp_loss_weight", schedule.mtp_loss_weight);
    let mut before = None;
    for (i, step) in schedule.mtp_loss_steps.iter().enumerate() {
        rules.not_negative(&format!("schedule.mtp_loss_steps[{i}].weight"), step.weight);
        rising(
            rules,
            &format!("schedule.mtp_loss_steps[{i}].from_tokens"),
            step.from_tokens,
            before,
        );
        before = Some(step.from_tokens);
    }
    if plan.batch.ramp_tokens > 0 {
        let ramp = plan.batch.ramp_tokens;
        rules.at_most("batch.ramp_tokens", ramp, "schedule.total_tokens", total);
    }
}

fn decay(schedule: &SchedulePlan, rules: &mut Rules) {
    match &schedule.decay {
        Decay::Constant => {}
        Decay::Cosine { final_ratio } => rules.share("schedule.final_ratio", *final_ratio),
        Decay::Wsd { decay_fraction, final_ratio } => {
            rules.share("schedule.final_ratio", *final_ratio);
            rules.share("schedule.decay_fraction", *decay_fraction);
            let warm = schedule.warmup_tokens as f64 / schedule.total_tokens.max(1) as f64;
            if warm <= 1.0 && warm + decay_fraction > 1.0 {
                let why = "starts the decay before the warm-up ends";
                let fix = "shorten schedule.warmup_tokens or the decay";
                rules.conflict("schedule.decay_fraction", decay_fraction, why, fix);
            }
        }
        Decay::MultiStep { milestones } => milestone_list(milestones, rules),
        Decay::Segments { segments } => segment_list(schedule, segments, rules),
    }
}

fn milestone_list(milestones: &[Milestone], rules: &mut Rules) {
    rules.within("schedule.milestones", "[]", !milestones.is_empty(), "a list with entries");
    let mut before = 0.0;
    for (i, milestone) in milestones.iter().enumerate() {
        let key = format!("schedule.milestones[{i}].fraction");
        rules.share(&key, milestone.fraction);
        rules.not_negative(&format!("schedule.milestones[{i}].ratio"), milestone.ratio);
        if i > 0 && milestone.fraction <= before {
            let why = format!("does not come after {before}");
            rules.conflict(&key, milestone.fraction, why, "list the milestones in order");
        }
        before = milestone.fraction;
    }
}

fn segment_list(schedule: &SchedulePlan, segments: &[Segment], rules: &mut Rules) {
    rules.within("schedule.segments", "[]", !segments.is_empty(), "a list with entries");
    let mut before = Some(schedule.warmup_tokens);
    for (i, segment) in segments.iter().enumerate() {
        rules.not_negative(&format!("schedule.segments[{i}].lr"), segment.lr);
        rising(
            rules,
            &format!("schedule.segments[{i}].until_tokens"),
            segment.until_tokens,
            before,
        );
        before = Some(segment.until_tokens);
    }
    if let Some(last) = segments.last()
        && last.until_tokens != schedule.total_tokens
    {
        let key = format!("schedule.segments[{}].until_tokens", segments.len() - 1);
        let why = format!("is not schedule.total_tokens = {}", schedule.total_tokens);
        let fix = "the last segment ends with the run";
        rules.conflict(&key, last.until_tokens, why, fix);
    }
}

fn rising(rules: &mut Rules, key: &str, value: u64, before: Option<u64>) {
    if let Some(before) = before
        && value <= before
    {
        let why = format!("does not come after {before}");
        rules.conflict(key, value, why, "list the entries in order of tokens");
    }
}
