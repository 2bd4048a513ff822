//! Which groups are sure of a place in the engine.
//!
//! Groups are driven by independent threads, so two ranks may start the operations of two groups in different orders. Were
//! places given to whoever comes first, one rank could fill all of them with group A and another one with group B, and
//! each would wait for the other for ever. So every group holds a seat: one place that no other group takes, however
//! many operations that one has. Members make their groups in the same order, so the oldest group with an operation that
//! waits has its place on every rank; it ends, and so do the others after it.

use crate::error::{Error, Result};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The groups of a communicator that hold a seat, by number.
#[derive(Debug)]
pub(crate) struct Seats {
    taken: Mutex<HashSet<u64>>,
    most: usize,
}

/// Held by a group, its clones and its operations.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    group: u64,
}

impl Seats {
    /// No more seats than there are places for collectives.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::default(), most: places })
    }

    /// A seat for a group.
    pub(crate) fn take(self: &Arc<Self>, group: u64) -> Result<Seat> {
        let mut taken = self.lock();
        if taken.len() >= self.most {
            return Err(Error::Invalid(format!(
                "{} groups at a time are all that a communicator with so many operations serves",
                self.most
            )));
        }
        taken.insert(group);
        Ok(Seat { seats: Arc::clone(self), group })
    }

    /// How many groups beside those of `running` hold a seat: so many places must stay free for them.
    pub(crate) fn vacant(&self, running: &HashSet<u64>) -> usize {
        self.lock().difference(running).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().remove(&self.group);
    }
}
