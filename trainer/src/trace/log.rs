//! A step in memory, instruction by instruction: what measurements sum up.

use super::Awaited;
use lampyris_plan::program::{Act, Transfer};
use std::time::{Duration, Instant};

/// What happened since the log was made.
#[derive(Debug, Default)]
pub struct Log {
    /// Instructions in the order in which they ran.
    pub spans: Vec<Span>,
    /// Waits in the order in which they ended.
    pub waits: Vec<Wait>,
}

/// One instruction, waits and frees included.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// What it did.
    pub act: Act,
    /// When the instruction before it had ended.
    pub started: Instant,
    /// When it had ended.
    pub ended: Instant,
}

/// A wait of the compute thread, and what it was for.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// What it was for.
    pub awaited: Awaited,
    /// When that began.
    pub started: Instant,
    /// When that was done.
    pub done: Instant,
    /// When the compute thread began to wait.
    pub asked: Instant,
    /// For how long it waited.
    pub waited: Duration,
}

impl Wait {
    /// The transfer that it was for, if it was for one.
    pub fn transfer(&self) -> Option<Transfer> {
        match self.awaited {
            Awaited::Transfer(transfer) => Some(transfer),
            Awaited::NormTable | Awaited::Agreement => None,
        }
    }
}

impl Log {
    /// Time that the compute thread waited between two moments, by waits that `of` picks.
    pub fn exposed(&self, within: (Instant, Instant), of: impl Fn(&Wait) -> bool) -> Duration {
        let inside = |t: &&Wait| t.asked >= within.0 && t.asked < within.1 && of(t);
        self.waits.iter().filter(inside).map(|t| t.waited).sum()
    }
}
