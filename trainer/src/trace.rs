//! Where a step's time goes: wall time summed per kind of instruction, on request.

use lampyris_plan::program::{Instruction, Pass};
use lampyris_plan::segments::Segment;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Sums the time of instructions by kind; free when it is off.
#[derive(Debug, Default)]
pub struct Clock {
    on: bool,
    /// Summed wall time by kind of instruction.
    pub totals: BTreeMap<String, Duration>,
}

impl Clock {
    /// A clock that runs.
    pub fn on() -> Clock {
        Clock { on: true, totals: BTreeMap::new() }
    }

    pub(crate) fn start(&self) -> Option<Instant> {
        self.on.then(Instant::now)
    }

    pub(crate) fn stop(&mut self, started: Option<Instant>, instruction: Instruction) {
        if let Some(started) = started {
            *self.totals.entry(kind(instruction)).or_default() += started.elapsed();
        }
    }
}

fn kind(instruction: Instruction) -> String {
    let pass = |pass: Pass| if pass == Pass::Forward { "forward" } else { "backward" };
    match instruction {
        Instruction::BeginLeaf { .. } => "begin_leaf".into(),
        Instruction::Forward { segment, .. } => format!("{} forward", family(segment)),
        Instruction::Backward { segment, .. } => format!("{} backward", family(segment)),
        Instruction::Weight { segment, .. } => format!("{} weight", family(segment)),
        Instruction::Dispatch { pass: p, .. } => format!("dispatch {}", pass(p)),
        Instruction::Combine { pass: p, .. } => format!("combine {}", pass(p)),
        Instruction::FoldLeaf { .. } => "fold_leaf".into(),
        Instruction::ReduceBucket { .. } => "reduce_bucket".into(),
        Instruction::GatherBucket { .. } => "gather_bucket".into(),
        Instruction::GradNorm => "grad_norm".into(),
        Instruction::UpdateShard { .. } => "update_shard".into(),
        Instruction::UpdateBias => "update_bias".into(),
    }
}

fn family(segment: Segment) -> &'static str {
    match segment {
        Segment::Embed => "embed",
        Segment::Attention(_) => "attention",
        Segment::FeedForward(_) => "feed_forward",
        Segment::Shared(_) => "shared",
        Segment::Experts(_) => "experts",
        Segment::Merge(_) => "merge",
        Segment::FinalNorm => "final_norm",
        Segment::MtpInput(_) => "mtp_input",
        Segment::MtpNorm(_) => "mtp_norm",
        Segment::Head(_) => "head",
    }
}
