//! Where a step's time goes: wall time summed per kind of instruction, time in which the compute thread waited for
//! communication ("exposed"), and on request a trace for ui.perfetto.dev.

mod file;
mod log;

pub use file::TraceFile;
pub use log::{Log, Span, Transfer};

use lampyris_plan::program::{Instruction, Pass};
use lampyris_plan::segments::Segment;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A row of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// What the compute thread does, waits included.
    Compute,
    /// Rows to experts under way.
    Dispatch,
    /// Rows from experts under way.
    Combine,
    /// Gradient buckets under way.
    Reduce,
    /// Updated parameters under way.
    Gather,
    /// Norm, updates, biases.
    Optimizer,
    /// Batches.
    Data,
}

impl Lane {
    /// All, in the order in which a trace shows them.
    pub const ALL: [Lane; 7] = [
        Lane::Compute,
        Lane::Dispatch,
        Lane::Combine,
        Lane::Reduce,
        Lane::Gather,
        Lane::Optimizer,
        Lane::Data,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Compute => "compute",
            Lane::Dispatch => "dispatch",
            Lane::Combine => "combine",
            Lane::Reduce => "reduce",
            Lane::Gather => "gather",
            Lane::Optimizer => "optimizer",
            Lane::Data => "data",
        }
    }
}

/// Follows the compute thread. Sums of kinds and traces are free when they are off.
#[derive(Debug, Default)]
pub struct Clock {
    on: bool,
    /// Summed wall time by kind of instruction.
    pub totals: BTreeMap<String, Duration>,
    /// Time in which the compute thread waited for what another lane does.
    pub exposed: BTreeMap<Lane, Duration>,
    /// Where spans go; only with a log.
    trace: Option<TraceFile>,
    /// Where they are kept.
    log: Option<Log>,
}

impl Clock {
    /// A clock that keeps a log, and whose spans go to `trace`, if there is one.
    pub fn tracing(trace: Option<TraceFile>) -> Clock {
        Clock { trace, ..Clock::logging() }
    }

    /// A clock that sums kinds of instructions.
    pub fn on() -> Clock {
        Clock { on: true, ..Clock::default() }
    }

    /// A clock that keeps a log.
    pub fn logging() -> Clock {
        Clock { log: Some(Log::default()), ..Clock::default() }
    }

    /// What it has kept since it was asked last.
    pub fn take_log(&mut self) -> Log {
        self.log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn start(&self) -> Option<Instant> {
        (self.on || self.trace.is_some() || self.log.is_some()).then(Instant::now)
    }

    pub(crate) fn stop(&mut self, started: Option<Instant>, instruction: Instruction) {
        let Some(started) = started else { return };
        let ended = Instant::now();
        if self.on {
            *self.totals.entry(kind(instruction)).or_default() += ended - started;
        }
        if let Some(trace) = &mut self.trace {
            trace.span(lane(instruction), &instruction.to_string(), started, ended);
        }
        if let Some(log) = &mut self.log {
            log.spans.push(Span { instruction, started, ended });
        }
    }

    /// Something beside the instructions that began at `started` and ends now.
    pub(crate) fn span(&mut self, lane: Lane, name: &str, started: Instant) {
        if let Some(trace) = &mut self.trace {
            trace.span(lane, name, started, Instant::now());
        }
    }

    /// Waits for something that began on `lane` at `started`: `wait` returns when it was done, which may be before the
    /// wait began.
    pub(crate) fn wait<T, E>(
        &mut self,
        (lane, name): (Lane, impl FnOnce() -> String),
        started: Instant,
        wait: impl FnOnce() -> Result<(Instant, T), E>,
    ) -> Result<T, E> {
        let asked = Instant::now();
        let (done, value) = wait()?;
        let ended = Instant::now();
        *self.exposed.entry(lane).or_default() += ended - asked;
        let Some(log) = &mut self.log else { return Ok(value) };
        let (name, done, waited) = (name(), done.max(started), ended - asked);
        if let Some(trace) = &mut self.trace {
            trace.span(lane, &name, started, done);
            trace.wait(lane, asked, ended);
        }
        log.transfers.push(Transfer { lane, name, started, done, asked, waited });
        Ok(value)
    }
}

/// The lane on which an instruction's own time is shown.
fn lane(instruction: Instruction) -> Lane {
    match instruction {
        Instruction::GradNorm | Instruction::UpdateShard { .. } | Instruction::UpdateBias => {
            Lane::Optimizer
        }
        _ => Lane::Compute,
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
