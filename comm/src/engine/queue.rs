//! Where callers hand operations over, and the classes that keep them from blocking each other.

use super::launch::Launch;
use crate::error::Error;
use crate::shared::Shared;
use crate::wire::header::Kind;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Launches that the engine has not seen yet. More make the caller wait.
const QUEUE: usize = 64;

/// The callers' door to the engine.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    room: Condvar,
    contributions: AtomicBool,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct QueueState {
    launches: VecDeque<Launch>,
    closing: bool,
    ended: bool,
}

impl std::fmt::Debug for QueueState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueState").field("launches", &self.launches.len()).finish_non_exhaustive()
    }
}

impl Queue {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let contributions = AtomicBool::new(false);
        Self { state: Mutex::default(), room: Condvar::new(), contributions, shared }
    }

    /// Hands an operation over. Waits while too many are queued.
    pub(crate) fn push(&self, mut launch: Launch) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.launches.len() >= QUEUE && !state.ended {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended || state.closing {
            drop(state);
            let cause = self.shared.fate().cloned();
            let closed = || Error::Invalid("this communicator is closed".into());
            launch.end(Err(cause.unwrap_or_else(closed)));
            return;
        }
        state.launches.push_back(launch);
        drop(state);
        self.shared.engine_bell.ring();
    }

    /// Streamed operations may have new contributions.
    pub(crate) fn advance(&self) {
        if !self.contributions.swap(true, Ordering::AcqRel) {
            self.shared.engine_bell.ring();
        }
    }

    /// Whether [`Self::advance`] was called since the last time.
    pub(crate) fn take_contributions(&self) -> bool {
        self.contributions.swap(false, Ordering::AcqRel)
    }

    /// Lets the engine end once its operations have.
    pub(crate) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.shared.engine_bell.ring();
    }

    pub(crate) fn take(&self) -> (VecDeque<Launch>, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.room.notify_all();
        (std::mem::take(&mut state.launches), state.closing)
    }

    pub(crate) fn end(&self) -> Vec<Launch> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ended = true;
        self.room.notify_all();
        state.launches.drain(..).collect()
    }
}

/// Operations of one class never take the slots of another: a rank that starts many sends before its first receive
/// still gets to the receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Collective = 0,
    Send = 1,
    Receive = 2,
}

impl Class {
    pub(crate) fn of(launch: &Launch) -> Self {
        let d = &launch.descriptor;
        match d.kind {
            Kind::PointToPoint if launch.members[d.root as usize] == launch.rank => Self::Send,
            Kind::PointToPoint => Self::Receive,
            _ => Self::Collective,
        }
    }
}
