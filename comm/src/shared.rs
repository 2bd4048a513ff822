//! What the threads of one communicator share: its fate, who has entered what, and what peers have handed over.

use crate::error::{Error, Result};
use crate::ids::{Attempt, Generation, Rank};
use crate::transport::Bell;
use crate::wire::control::Entered;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Operations that a heartbeat names: the newest of this many groups.
pub(crate) const ENTERED: usize = 8;

/// State shared by the caller's threads, the engine and the control plane.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) rank: Rank,
    pub(crate) ranks: usize,
    pub(crate) attempt: Attempt,
    pub(crate) generation: Generation,
    /// Why this communicator can no longer be used. Set once.
    fate: OnceLock<Error>,
    failed: AtomicBool,
    /// Wakes the engine.
    pub(crate) engine_bell: Arc<Bell>,
    /// Wakes the control plane.
    pub(crate) control_bell: Bell,
    /// The last operation entered here, per group, newest last.
    entered: Mutex<VecDeque<Entered>>,
    peers: Mutex<Vec<Peer>>,
    inbox: Mutex<HashMap<(Rank, u64), (OwnedFd, u64)>>,
    outbox: Mutex<VecDeque<(Rank, u64, OwnedFd, u64)>>,
    changed: Condvar,
    pub(crate) counters: Counters,
}

/// Bytes moved by this rank since the communicator was formed.
#[derive(Debug, Default)]
pub struct Counters {
    /// Payload put to ranks of other nodes.
    pub network: AtomicU64,
    /// Payload put to ranks of this node.
    pub shared_memory: AtomicU64,
    /// Bytes read and written by this process's cores for copies and sums, puts through shared memory included.
    pub host_memory: AtomicU64,
}

/// What is last known of a peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    pub(crate) entered: Vec<Entered>,
    pub(crate) left: bool,
    pub(crate) heard: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        (rank, ranks): (Rank, usize),
        (attempt, generation): (Attempt, Generation),
        engine_bell: Arc<Bell>,
    ) -> Result<Self> {
        Ok(Self {
            rank,
            ranks,
            attempt,
            generation,
            fate: OnceLock::new(),
            failed: AtomicBool::new(false),
            engine_bell,
            control_bell: Bell::new()?,
            entered: Mutex::default(),
            peers: Mutex::new(vec![Peer::default(); ranks]),
            inbox: Mutex::default(),
            outbox: Mutex::default(),
            changed: Condvar::new(),
            counters: Counters::default(),
        })
    }

    /// Poisons the communicator; the first cause stays. Wakes everybody.
    pub(crate) fn fail(&self, cause: Error) {
        let first = self.fate.set(cause).is_ok();
        // Also when another thread was first: it may not have come to this line yet.
        self.failed.store(true, Ordering::Release);
        if first {
            // Taking the lock orders this against a waiter between its check and its wait.
            drop(lock(&self.inbox));
            self.changed.notify_all();
            self.engine_bell.ring();
            self.control_bell.ring();
        }
    }

    /// The cause, when the communicator is poisoned. One relaxed load when it is not.
    pub(crate) fn fate(&self) -> Option<&Error> {
        if self.failed.load(Ordering::Acquire) { self.fate.get() } else { None }
    }

    /// An error when the communicator is poisoned.
    pub(crate) fn check(&self) -> Result<()> {
        self.fate().map_or(Ok(()), |cause| Err(cause.clone()))
    }

    /// Notes that this rank has entered an operation.
    pub(crate) fn enter(&self, now: Entered) {
        let mut entered = lock(&self.entered);
        entered.retain(|old| old.group != now.group);
        if entered.len() == ENTERED {
            entered.pop_front();
        }
        entered.push_back(now);
    }

    /// What the next heartbeat says.
    pub(crate) fn entered(&self) -> Vec<Entered> {
        lock(&self.entered).iter().copied().collect()
    }

    pub(crate) fn with_peer<T>(&self, rank: Rank, change: impl FnOnce(&mut Peer) -> T) -> T {
        change(&mut lock(&self.peers)[rank.index()])
    }

    /// Queues a descriptor for a rank of this node.
    pub(crate) fn send_fd(&self, to: Rank, key: u64, fd: OwnedFd, bytes: u64) {
        lock(&self.outbox).push_back((to, key, fd, bytes));
        self.control_bell.ring();
    }

    pub(crate) fn next_outgoing_fd(&self) -> Option<(Rank, u64, OwnedFd, u64)> {
        lock(&self.outbox).pop_front()
    }

    pub(crate) fn received_fd(&self, from: Rank, key: u64, fd: OwnedFd, bytes: u64) {
        lock(&self.inbox).insert((from, key), (fd, bytes));
        self.changed.notify_all();
    }

    /// Waits for the descriptor that `from` sends under `key`.
    pub(crate) fn take_fd(
        &self,
        from: Rank,
        key: u64,
        timeout: Duration,
    ) -> Result<(OwnedFd, u64)> {
        let deadline = Instant::now() + timeout;
        let mut inbox = lock(&self.inbox);
        loop {
            if let Some(found) = inbox.remove(&(from, key)) {
                return Ok(found);
            }
            self.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout {
                    operation: "sharing memory inside the node".into(),
                    timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
                    waiting: vec![(from, "has not shared its part".into())],
                });
            }
            let (guard, _) =
                self.changed.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner);
            inbox = guard;
        }
    }
}
