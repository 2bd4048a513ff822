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

/// One operation on a bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Number of the operation, counted per bucket; wraps.
    pub(crate) generation: u32,
    /// When it is late.
    pub(crate) until: Instant,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Operations whose input this rank has made ready.
    Entered = 0,
    /// Operations whose part this rank has done: it touches no other rank's memory any more.
    Done = 1,
    /// Chunks whose elements this rank has copied into its input ring.
    Staged = 2,
    /// Chunks whose piece this rank has read from all input rings.
    Read = 3,
    /// Chunks whose piece this rank has written to its output ring.
    Written = 4,
    /// Chunks whose results this rank has copied out of all output rings.
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

    /// This rank's local index.
    pub(crate) fn me(&self) -> usize {
        self.me
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

    /// Waits until all local ranks have entered (or done) the operation of this turn.
    ///
    /// # Errors
    /// When the communicator has failed, or fails now because a rank is late.
    pub(crate) fn wait_all(&self, counter: Counter, turn: Turn) -> Result<()> {
        for of in 0..self.memories.len() {
            self.wait(of, counter, turn)?;
        }
        Ok(())
    }

    /// Fails when the communicator has, or when the operation of this turn is late. `behind` says which count somebody
    /// has not come to.
    ///
    /// # Errors
    /// The cause.
    pub(crate) fn check(&self, turn: Turn, behind: impl FnOnce() -> (Counter, u32)) -> Result<()> {
        self.group.check()?;
        let now = Instant::now();
        if now < turn.until {
            return Ok(());
        }
        // Where all have entered the network may be what is waited for: its own deadline, which began a little later,
        // then knows who is late.
        let entered = self.all_reached(Counter::Entered, turn.generation);
        if entered && now < turn.until + self.group.timeout() / 8 {
            return Ok(());
        }
        let (counter, value) = behind();
        Err(self.late(turn, counter, value))
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

    fn wait(&self, of: usize, counter: Counter, turn: Turn) -> Result<()> {
        let value = turn.generation;
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
            if Instant::now() >= turn.until {
                return Err(self.late(turn, counter, value));
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

    /// Fails the communicator with the local ranks that have not entered the operation or not come to `value`; the other
    /// ranks learn it too.
    fn late(&self, turn: Turn, counter: Counter, value: u32) -> crate::Error {
        let mut waiting: Vec<(Rank, String)> = Vec::new();
        for (of, &rank) in self.group.members().iter().enumerate() {
            if !self.reached(of, Counter::Entered, turn.generation) {
                waiting.push((rank, "has not entered it".into()));
            } else if !self.reached(of, counter, value) {
                waiting.push((rank, "has entered it but has not done its part".into()));
            }
        }
        let timeout_ms = u64::try_from(self.group.timeout().as_millis()).unwrap_or(u64::MAX);
        let operation = format!("reduction #{} of a bucket", turn.generation);
        let cause = CommError::Timeout { operation, timeout_ms, waiting };
        self.group.fail(cause.clone());
        cause.into()
    }

    /// When an operation that begins now is late.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.group.timeout().max(Duration::from_millis(1))
    }

    /// The local ranks.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lampyris_comm::{Communicator, Options};

    /// Runs `rank_main` with the flags of two ranks of one node whose operations take at most `timeout`.
    fn two(timeout: Duration, rank_main: impl Fn(usize, Flags) + Sync) {
        let (ranks, _net) = Communicator::fakes(2, 2, 0, &Options::default()).expect("fakes");
        std::thread::scope(|scope| {
            for comm in &ranks {
                let rank_main = &rank_main;
                scope.spawn(move || {
                    let flags = Flags::share(&comm.world().with_timeout(timeout)).expect("shared");
                    rank_main(comm.rank().index(), flags);
                });
            }
        });
    }

    fn turn(flags: &Flags, generation: u32) -> Turn {
        Turn { generation, until: flags.deadline() }
    }

    #[test]
    fn ranks_follow_each_other_across_a_wrap_of_the_counts() {
        two(Duration::from_secs(20), |_, flags| {
            let first = u32::MAX - 50;
            for step in 0..100u32 {
                let now = turn(&flags, first.wrapping_add(step));
                flags.set(Counter::Entered, now.generation);
                flags.wait_all(Counter::Entered, now).expect("both enter");
                flags.set(Counter::Done, now.generation);
                flags.wait_all(Counter::Done, now).expect("both are done");
                let next = now.generation.wrapping_add(1);
                assert!(!flags.all_reached(Counter::Done, next), "nobody is ahead of this rank");
            }
        });
    }

    #[test]
    fn who_is_late_is_named_with_what_it_has_not_done() {
        two(Duration::from_millis(100), |rank, flags| {
            let now = turn(&flags, 1);
            if rank == 1 {
                // Enters, and goes away.
                flags.set(Counter::Entered, 1);
                return;
            }
            flags.set(Counter::Entered, 1);
            flags.wait_all(Counter::Entered, now).expect("both enter");
            flags.set(Counter::Done, 1);
            let error = flags.wait_all(Counter::Done, now).expect_err("rank 1 does nothing");
            let crate::Error::Comm(CommError::Timeout { waiting, .. }) = &error else {
                panic!("{error}");
            };
            assert_eq!(waiting.len(), 1, "{error}");
            assert_eq!(waiting[0].0, Rank(1), "{error}");
            assert!(waiting[0].1.contains("has not done its part"), "{error}");
            assert!(flags.check(now, || (Counter::Done, 1)).is_err(), "the failure stays");
        });
    }
}
