//! Where a step's time goes: wall time summed per kind of instruction, time in which the compute thread waited for
//! communication ("exposed"), and on request a trace for ui.perfetto.dev.

mod file;
mod log;

pub use file::TraceFile;
pub use log::{Log, Span, Wait};

use lampyris_plan::program::{Act, Task, Transfer};
use lampyris_plan::segments::{Exchange, Pass, Segment};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// A row of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
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

impl Track {
    /// All, in the order in which a trace shows them.
    pub const ALL: [Track; 7] = [
        Track::Compute,
        Track::Dispatch,
        Track::Combine,
        Track::Reduce,
        Track::Gather,
        Track::Optimizer,
        Track::Data,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Track::Compute => "compute",
            Track::Dispatch => "dispatch",
            Track::Combine => "combine",
            Track::Reduce => "reduce",
            Track::Gather => "gather",
            Track::Optimizer => "optimizer",
            Track::Data => "data",
        }
    }
}

/// Follows the compute thread. Sums of kinds and traces are free when they are off.
#[derive(Debug, Default)]
pub struct Clock {
    on: bool,
    /// Summed wall time by kind of instruction.
    pub totals: BTreeMap<String, Duration>,
    /// Time in which the compute thread waited, by what it waited for.
    pub exposed: BTreeMap<Track, Duration>,
    /// Where spans go; only with a log.
    trace: Option<TraceFile>,
    /// Where they are kept.
    log: Option<Log>,
    /// When the instruction before ended, if anybody wants to know.
    last: Option<Instant>,
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

    /// A program begins.
    pub(crate) fn begin(&mut self) {
        let measures = self.on || self.trace.is_some() || self.log.is_some();
        self.last = measures.then(Instant::now);
    }

    /// An instruction is over that began when the one before it ended.
    pub(crate) fn lap(&mut self, act: Act) {
        let Some(started) = self.last else { return };
        let ended = Instant::now();
        if self.on {
            *self.totals.entry(kind(act)).or_default() += ended - started;
        }
        if let Some(trace) = &mut self.trace {
            trace.act(act, started, ended);
        }
        if let Some(log) = &mut self.log {
            log.spans.push(Span { act, started, ended });
        }
        self.last = Some(ended);
    }

    /// Something beside the instructions that began at `started` and ends now.
    pub(crate) fn span(&mut self, track: Track, name: &str, started: Instant) {
        if let Some(trace) = &mut self.trace {
            trace.span(track, name, started, Instant::now());
        }
    }

    /// Waits for something that began at `started`: `wait` returns when it was done, which may be before the wait began.
    pub(crate) fn wait<T, E>(
        &mut self,
        awaited: Awaited,
        started: Instant,
        wait: impl FnOnce() -> Result<(Instant, T), E>,
    ) -> Result<T, E> {
        let asked = Instant::now();
        let (done, value) = wait()?;
        let ended = Instant::now();
        *self.exposed.entry(awaited.track()).or_default() += ended - asked;
        let Some(log) = &mut self.log else { return Ok(value) };
        let wait = Wait { awaited, started, done: done.max(started), asked, waited: ended - asked };
        if let Some(trace) = &mut self.trace {
            trace.wait(&wait);
        }
        log.waits.push(wait);
        Ok(value)
    }
}

/// What the compute thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// A transfer of the program.
    Transfer(Transfer),
    /// The exchange of norm, losses and counts.
    NormTable,
    /// What ranks agree on between two steps.
    Agreement,
}

impl Awaited {
    /// Where a trace shows it.
    pub fn track(self) -> Track {
        match self {
            Awaited::Transfer(Transfer::Rows { exchange: Exchange::Dispatch(_), .. }) => {
                Track::Dispatch
            }
            Awaited::Transfer(Transfer::Rows { exchange: Exchange::Combine(_), .. }) => {
                Track::Combine
            }
            Awaited::Transfer(Transfer::Reduce { .. }) => Track::Reduce,
            Awaited::Transfer(Transfer::Gather { .. }) => Track::Gather,
            Awaited::NormTable | Awaited::Agreement => Track::Optimizer,
        }
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Awaited::Transfer(transfer) => transfer.fmt(f),
            Awaited::NormTable => f.write_str("norm, losses and counts"),
            Awaited::Agreement => f.write_str("agreement"),
        }
    }
}

/// The track on which an act's own time is shown.
fn track(act: Act) -> Track {
    match act {
        Act::Run(Task::GradNorm | Task::UpdateShard { .. } | Task::UpdateBias) => Track::Optimizer,
        _ => Track::Compute,
    }
}

/// The kind of an act in the sums of `bench step`.
fn kind(act: Act) -> String {
    let pass = |pass: Pass| if pass == Pass::Forward { "forward" } else { "backward" };
    match act {
        Act::Run(task) => match task {
            Task::Forward { segment, .. } => format!("{} forward", family(segment)),
            Task::Loss { .. } => "head forward".into(),
            Task::Backward { segment, .. } => format!("{} backward", family(segment)),
            Task::Weight { segment, .. } => format!("{} weight", family(segment)),
            Task::FoldLeaf { .. } => "fold_leaf".into(),
            Task::MergeSources { .. } => "merge_sources".into(),
            Task::GradNorm => "grad_norm".into(),
            Task::UpdateShard { .. } => "update_shard".into(),
            Task::UpdateBias => "update_bias".into(),
        },
        Act::Start(Transfer::Rows { exchange: Exchange::Dispatch(_), pass: p, .. }) => {
            format!("dispatch {}", pass(p))
        }
        Act::Start(Transfer::Rows { exchange: Exchange::Combine(_), pass: p, .. }) => {
            format!("combine {}", pass(p))
        }
        Act::Start(Transfer::Reduce { .. }) => "reduce_bucket".into(),
        Act::Start(Transfer::Gather { .. }) => "gather_bucket".into(),
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
