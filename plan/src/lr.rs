//! Schedules as pure functions of tokens: learning rate, growth of the batch, MTP weight, bias update speed.
//!
//! Everything is keyed on tokens, not steps, so that a run with another batch size follows the same curve
//! (DeepSeek LLM 2401.02954, section 2.3; DeepSeek-V3 2412.19437, section 4.2). A step uses the rate at the tokens seen
//! **when it ends**: the first step of a warm-up already moves, and the last step of a schedule has its final rate.
//!
//! This module does not count tokens: the trainer's cursor does.

use crate::ids::Step;
use crate::train_plan::{BatchPlan, Decay, Reduction, SchedulePlan, Segment, Shape, TrainPlan};

/// Learning rate of the step that ends at `tokens_seen` tokens.
pub fn learning_rate(schedule: &SchedulePlan, tokens_seen: u64) -> f64 {
    let peak = schedule.peak_lr;
    if tokens_seen < schedule.warmup_tokens {
        return peak * tokens_seen as f64 / schedule.warmup_tokens as f64;
    }
    let total = schedule.total_tokens;
    match &schedule.decay {
        Decay::Constant => peak,
        Decay::Cosine { final_ratio } => {
            let done = progress(schedule.warmup_tokens as f64, total as f64, tokens_seen);
            cosine(peak, final_ratio * peak, done)
        }
        Decay::Wsd { decay_fraction, final_ratio } => {
            let start = total as f64 * (1.0 - decay_fraction);
            linear(peak, final_ratio * peak, progress(start, total as f64, tokens_seen))
        }
        Decay::MultiStep { milestones } => milestones
            .iter()
            .rev()
            .find(|milestone| tokens_seen as f64 > milestone.fraction * total as f64)
            .map_or(peak, |milestone| milestone.ratio * peak),
        Decay::Segments { segments } => in_segments(schedule, segments, tokens_seen),
    }
}

fn in_segments(schedule: &SchedulePlan, segments: &[Segment], tokens_seen: u64) -> f64 {
    let (mut from_tokens, mut from_lr) = (schedule.warmup_tokens, schedule.peak_lr);
    for segment in segments {
        if tokens_seen <= segment.until_tokens {
            let done = progress(from_tokens as f64, segment.until_tokens as f64, tokens_seen);
            return match segment.shape {
                Shape::Constant => segment.lr,
                Shape::Linear => linear(from_lr, segment.lr, done),
                Shape::Cosine => cosine(from_lr, segment.lr, done),
            };
        }
        (from_tokens, from_lr) = (segment.until_tokens, segment.lr);
    }
    from_lr
}

/// Share of `[from, to]` that lies behind `tokens`, 0..1.
fn progress(from: f64, to: f64, tokens: u64) -> f64 {
    if to <= from { 1.0 } else { ((tokens as f64 - from) / (to - from)).clamp(0.0, 1.0) }
}

fn linear(from: f64, to: f64, done: f64) -> f64 {
    from + (to - from) * done
}

fn cosine(from: f64, to: f64, done: f64) -> f64 {
    to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

/// Weight lambda of the MTP loss in the step that begins at `tokens_seen`; 0 without MTP layers.
pub fn mtp_loss_weight(plan: &TrainPlan, tokens_seen: u64) -> f64 {
    let steps = &plan.schedule.mtp_loss_steps;
    let later = steps.iter().rev().find(|step| tokens_seen >= step.from_tokens);
    match later {
        Some(step) if plan.model.mtp_layers > 0 => step.weight,
        _ => plan.mtp_weight(),
    }
}

/// Speed gamma of the bias update after the step that begins at `tokens_seen`.
pub fn bias_update_speed(plan: &TrainPlan, tokens_seen: u64) -> f64 {
    let over = plan.schedule.bias_update_until_tokens.is_some_and(|until| tokens_seen >= until);
    let speed = plan.model.moe.as_ref().map_or(0.0, |moe| moe.bias_update_speed);
    if over { 0.0 } else { speed }
}

/// Sequences by which the global batch may grow: one micro-batch for every leaf (canonical) or rank (fast).
pub fn batch_quantum(plan: &TrainPlan) -> usize {
    let parts = match plan.batch.reduction {
        Reduction::Canonical => plan.batch.leaves,
        Reduction::Fast => plan.parallel.data,
    };
    plan.batch.micro_batch * parts
}

/// Sequences of the step that begins when `tokens_seen` tokens have been seen: linear from `ramp_start` at 0 to
/// `global_batch` at `ramp_tokens`, rounded down to the batch quantum.
pub fn sequences_at(plan: &TrainPlan, tokens_seen: u64) -> usize {
    let ramp = Ramp::new(plan);
    ramp.sequences(ramp.plateau_at(tokens_seen))
}

/// Optimizer steps of the whole run; the last one may pass `total_tokens` by part of a batch.
pub fn steps(plan: &TrainPlan) -> u64 {
    step_at_tokens(plan, plan.schedule.total_tokens).0
}

/// Tokens seen when `step` steps are complete.
pub fn tokens_at_step(plan: &TrainPlan, step: Step) -> u64 {
    let mut left = step.0;
    let mut tokens = 0;
    for plateau in Ramp::new(plan).plateaus() {
        let steps = plateau.steps_from(tokens).min(left);
        tokens += steps * plateau.step_tokens;
        left -= steps;
    }
    tokens
}

/// Steps that are complete when at least `tokens` tokens have been seen.
pub fn step_at_tokens(plan: &TrainPlan, tokens: u64) -> Step {
    let (mut step, mut seen) = (0, 0);
    for plateau in Ramp::new(plan).plateaus() {
        let wanted = tokens.saturating_sub(seen).div_ceil(plateau.step_tokens);
        let steps = plateau.steps_from(seen).min(wanted);
        step += steps;
        seen += steps * plateau.step_tokens;
    }
    Step(step)
}

/// Growth of the batch as `growths + 1` plateaus of equal height difference.
struct Ramp<'a> {
    batch: &'a BatchPlan,
    quantum: usize,
    growths: u64,
}

/// A stretch of the run with one batch size.
struct Plateau {
    step_tokens: u64,
    /// A step that begins here or later belongs to the next plateau; none for the last.
    end_tokens: Option<u64>,
}

impl<'a> Ramp<'a> {
    fn new(plan: &'a TrainPlan) -> Ramp<'a> {
        let batch = &plan.batch;
        let quantum = batch_quantum(plan);
        let growth = batch.global_batch.saturating_sub(batch.ramp_start);
        let growths = if batch.ramp_tokens == 0 { 0 } else { (growth / quantum) as u64 };
        Ramp { batch, quantum, growths }
    }

    fn sequences(&self, plateau: u64) -> usize {
        self.batch.global_batch - (self.growths - plateau) as usize * self.quantum
    }

    fn plateau_at(&self, tokens: u64) -> u64 {
        if tokens >= self.batch.ramp_tokens {
            return self.growths;
        }
        // growths < 2^32 and tokens < 2^64: the product fits.
        let plateau = u128::from(self.growths) * u128::from(tokens);
        (plateau / u128::from(self.batch.ramp_tokens)) as u64
    }

    fn plateaus(&self) -> impl Iterator<Item = Plateau> {
        (0..=self.growths).map(|plateau| {
            let sequences = self.sequences(plateau) as u64;
            Plateau {
                step_tokens: sequences * self.batch.sequence_length as u64,
                end_tokens: (plateau < self.growths).then(|| self.first_tokens_of(plateau + 1)),
            }
        })
    }

    /// The least token count that `plateau_at` maps to `plateau`.
    fn first_tokens_of(&self, plateau: u64) -> u64 {
        let product = u128::from(plateau) * u128::from(self.batch.ramp_tokens);
        product.div_ceil(u128::from(self.growths)) as u64
    }
}

impl Plateau {
    /// Steps that begin on this plateau if it is entered at `tokens`.
    fn steps_from(&self, tokens: u64) -> u64 {
        self.end_tokens
            .map_or(u64::MAX, |end| end.saturating_sub(tokens).div_ceil(self.step_tokens))
    }
}

#[cfg(test)]
mod tests;
