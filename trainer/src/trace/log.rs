//! A step in memory, instruction by instruction: what measurements sum up.

use super::Lane;
use lampyris_plan::program::Instruction;
use std::time::{Duration, Instant};

/// What happened since the log was made.
#[derive(Debug, Default)]
pub struct Log {
    /// Instructions in the order in which they ran.
    pub spans: Vec<Span>,
    /// Transfers in the order in which they were waited for.
    pub transfers: Vec<Transfer>,
}

/// One instruction.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Which.
    pub instruction: Instruction,
    /// When it began.
    pub started: Instant,
    /// When it had ended.
    pub ended: Instant,
}

/// One transfer, and the wait for it.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Its kind.
    pub lane: Lane,
    /// Its instruction, without the micro-batch.
    pub name: String,
    /// When it began.
    pub started: Instant,
    /// When it was done.
    pub done: Instant,
    /// When the compute thread began to wait for it.
    pub asked: Instant,
    /// For how long.
    pub waited: Duration,
}

impl Log {
    /// Time that the compute thread waited between two moments for transfers that `of` picks.
    pub fn exposed(&self, within: (Instant, Instant), of: impl Fn(&Transfer) -> bool) -> Duration {
        let inside = |t: &&Transfer| t.asked >= within.0 && t.asked < within.1 && of(t);
        self.transfers.iter().filter(inside).map(|t| t.waited).sum()
    }
}
