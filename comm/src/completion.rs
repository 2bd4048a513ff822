//! The end of an operation: what its caller waits for, and what keeps its memory alive until then.

use crate::error::Result;
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shared between the caller's handle and the engine. Holds the operation's buffer, so that dropping the handle early
/// frees nothing the engine still writes.
#[derive(Default)]
pub(crate) struct Completion {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    result: Option<Result<()>>,
    ended: Option<Instant>,
    buffer: Option<Box<dyn Any + Send>>,
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("result", &self.lock().result).finish_non_exhaustive()
    }
}

impl Completion {
    pub(crate) fn keeping(buffer: Box<dyn Any + Send>) -> Arc<Self> {
        let state = State { buffer: Some(buffer), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// The first result counts.
    pub(crate) fn set(&self, result: Result<()>) {
        let mut state = self.lock();
        state.result.get_or_insert(result);
        state.ended.get_or_insert_with(Instant::now);
        drop(state);
        self.changed.notify_all();
    }

    /// A good end with the buffer that the caller gets.
    pub(crate) fn give(&self, buffer: Box<dyn Any + Send>) {
        self.lock().buffer = Some(buffer);
        self.set(Ok(()));
    }

    pub(crate) fn wait(&self) -> Result<()> {
        let mut state = self.lock();
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`Self::wait`]; when it ended.
    pub(crate) fn ended(&self) -> Result<Instant> {
        self.wait()?;
        Ok(self.lock().ended.expect("set with the result"))
    }

    pub(crate) fn is_done(&self) -> bool {
        self.lock().result.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running operation that owns its buffer `B` until it ends. Dropping it does not stop the operation.
#[must_use = "an operation's outcome is known only after wait()"]
#[derive(Debug)]
pub struct Pending<B> {
    completion: Arc<Completion>,
    buffer: std::marker::PhantomData<B>,
}

impl<B: Any + Send> Pending<B> {
    pub(crate) fn new(completion: Arc<Completion>) -> Self {
        Self { completion, buffer: std::marker::PhantomData }
    }

    /// Whether [`Self::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        self.completion.is_done()
    }

    /// Waits until the operation ends and says when it did, which may be long ago.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn ended(&self) -> Result<Instant> {
        self.completion.ended()
    }

    /// Waits until the operation ends and returns the buffer.
    ///
    /// # Errors
    /// The reason why the operation failed; it ends at its deadline at the latest.
    pub fn wait(self) -> Result<B> {
        self.completion.wait()?;
        let buffer = self.completion.lock().buffer.take().expect("taken only here");
        Ok(*buffer.downcast::<B>().expect("put in with this type"))
    }
}
