//! Counters in shared memory with which the local ranks of a bucket follow each other.
//!
//! One cache line per rank and counter; only its rank advances it, so a release store and an acquire load are the whole
//! protocol. Waiting spins, then yields, then sleeps on the word (futex) for a few milliseconds at a time, each time
//! looking whether the communicator has failed and whether the deadline has passed.

#![allow(unsafe_code, reason = "atomics in memory mapped by several processes")]

use crate::error::Result;
use lampyris_comm::{Error as CommError, Group, Rank, SharedMemory};
use rustix::thread::futex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Operations whose input this rank has made ready.
    Entered = 0,
    /// Operations whose part this rank has done: it touches no other rank's memory any more.
    Done = 1,
    /// Pieces that this rank has copied into its input ring.
    Staged = 2,
    /// Pieces that this rank has summed from all input rings.
    Summed = 3,
    /// Pieces whose result this rank has put into all output rings.
    Produced = 4,
    /// Pieces that this rank has copied out of its output ring.
    Drained = 5,
}

const COUNTERS: usize = 6;
const LINE: usize = 64;
/// Waiters set this in the word beside the counter, so that an advance without waiters makes no system call.
const WAITING: usize = 1;

/// Looks before sleeping where every local rank has a core: about 100 microseconds. Yielding instead would hand the core
/// to whatever else runs, for milliseconds.
const SPINS: u32 = 3_000;
/// Looks where ranks share cores: whoever is waited for needs this one.
const SPINS_CROWDED: u32 = 20;
/// Yields before sleeping where ranks share cores.
const YIELDS: u32 = 200;
/// One sleep, after which failure and deadline are looked at.
const NAP_NS: i64 = 5_000_000;

/// The counters of one bucket.
#[derive(Debug, Clone)]
pub(crate) struct Flags {
    /// By local index.
    memories: Vec<Arc<SharedMemory>>,
    me: usize,
    group: Group,
    /// More local ranks than cores.
    crowded: bool,
}

impl Flags {
    /// Bytes of one rank's counters.
    pub(crate) const BYTES: usize = COUNTERS * LINE;

    /// `group`: the local ranks. Collective.
    pub(crate) fn share(group: &Group) -> Result<Self> {
        let own = SharedMemory::create("flags", Self::BYTES)?;
        let memories = group.share(&own)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (me, crowded) = (group.member(), group.len() > cores);
        Ok(Self { memories, me, group: group.clone(), crowded })
    }

    fn word(&self, of: usize, counter: Counter, word: usize) -> &AtomicU32 {
        let at = counter as usize * LINE + word * size_of::<u32>();
        // SAFETY: inside the page-aligned mapping (its size was checked when it was shared), aligned, alive as long as
        // `self`, and only ever used as an atomic.
        unsafe { &*self.memories[of].as_ptr().wrapping_add(at).cast::<AtomicU32>() }
    }

    /// Sets this rank's count; counts only rise (and may wrap).
    pub(crate) fn set(&self, counter: Counter, value: u32) {
        self.word(self.me, counter, 0).store(value, Ordering::Release);
        std::sync::atomic::fence(Ordering::SeqCst);
        let waiting = self.word(self.me, counter, WAITING);
        if waiting.load(Ordering::Relaxed) != 0 && waiting.swap(0, Ordering::AcqRel) != 0 {
            let word = self.word(self.me, counter, 0);
            if let Err(error) = futex::wake(word, futex::Flags::empty(), i32::MAX as u32) {
                tracing::error!(%error, "waking the other local ranks failed");
            }
        }
    }

    /// Whether rank `of` has come to `value`.
    pub(crate) fn reached(&self, of: usize, counter: Counter, value: u32) -> bool {
        let now = self.word(of, counter, 0).load(Ordering::Acquire);
        now.wrapping_sub(value) as i32 >= 0
    }

    /// Whether all local ranks have come to `value`.
    pub(crate) fn all_reached(&self, counter: Counter, value: u32) -> bool {
        (0..self.memories.len()).all(|of| self.reached(of, counter, value))
    }

    /// Waits until all local ranks have come to `value`.
    pub(crate) fn wait_all(&self, counter: Counter, value: u32, until: Instant) -> Result<()> {
        for of in 0..self.memories.len() {
            self.wait(of, counter, value, until)?;
        }
        Ok(())
    }

    /// Lets a moment pass before the next look; `false` when it is time to sleep.
    pub(crate) fn pause(&self, looks: u32) -> bool {
        let (spins, yields) = if self.crowded { (SPINS_CROWDED, YIELDS) } else { (SPINS, 0) };
        if looks < spins {
            std::hint::spin_loop();
        } else if looks < spins + yields {
            std::thread::yield_now();
        } else {
            return false;
        }
        true
    }

    fn wait(&self, of: usize, counter: Counter, value: u32, until: Instant) -> Result<()> {
        let mut looks = 0;
        while self.pause(looks) {
            if self.reached(of, counter, value) {
                return Ok(());
            }
            looks += 1;
        }
        loop {
            let word = self.word(of, counter, 0);
            let seen = word.load(Ordering::Relaxed);
            self.word(of, counter, WAITING).store(1, Ordering::Relaxed);
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.reached(of, counter, value) {
                return Ok(());
            }
            self.group.check()?;
            if Instant::now() >= until {
                return Err(self.late(counter, value));
            }
            let nap = rustix::time::Timespec { tv_sec: 0, tv_nsec: NAP_NS };
            // Whatever ends the nap: the loop looks again.
            match futex::wait(word, futex::Flags::empty(), seen, Some(&nap)) {
                Ok(()) => {}
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::TIMEDOUT) => {}
                Err(error) => tracing::error!(%error, "waiting for a local rank failed"),
            }
        }
    }

    /// Fails the communicator with who is late; the other ranks learn it too.
    pub(crate) fn late(&self, counter: Counter, value: u32) -> crate::Error {
        let late = (0..self.memories.len()).filter(|of| !self.reached(*of, counter, value));
        let what = match counter {
            Counter::Entered => "has not entered it",
            _ => "has entered it but has not done its part",
        };
        let waiting: Vec<(Rank, String)> =
            late.map(|of| (self.group.members()[of], what.to_string())).collect();
        let timeout_ms = u64::try_from(self.group.timeout().as_millis()).unwrap_or(u64::MAX);
        let operation = format!("reduction #{value} of a bucket");
        let cause = CommError::Timeout { operation, timeout_ms, waiting };
        self.group.fail(cause.clone());
        cause.into()
    }

    /// A deadline from now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.group.timeout().max(Duration::from_millis(1))
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }
}
