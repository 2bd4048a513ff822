//! The lock-free part: a single-producer single-consumer ring of immediates, and the sleep protocol of its consumer.
//!
//! Both are written over a small trait of atomics, so that `cargo test` runs the very same code under loom. The ring
//! lives in memory shared between processes; the payload that an immediate announces was written before it with plain
//! stores, which the release store of `tail` publishes.
//!
//! Sleep: the consumer sets `asleep`, then looks at the ring once more; the producer pushes, then looks at `asleep`.
//! A sequentially consistent fence on both sides between the write and the look means that at least one of them sees
//! the other (Dekker), so no wake-up is lost.

use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Immediates that one ring holds. Beyond it the producer keeps them in its own queue.
pub const RING: usize = 512;

/// What the ring needs of an atomic word.
pub trait Word {
    /// See [`AtomicU32::load`].
    fn load(&self, order: Ordering) -> u32;
    /// See [`AtomicU32::store`].
    fn store(&self, value: u32, order: Ordering);
    /// See [`AtomicU32::swap`].
    fn swap(&self, value: u32, order: Ordering) -> u32;
    /// A fence of the same memory model.
    fn fence(order: Ordering);
}

impl Word for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        AtomicU32::swap(self, value, order)
    }
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// One direction between two processes: `N` entries, one writer, one reader. `repr(C)`: both sides map it.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Ring<W = AtomicU32, const N: usize = RING> {
    /// Entries consumed; written by the consumer only.
    head: W,
    pad: [u8; 60],
    /// Entries produced; written by the producer only.
    tail: W,
    entries: [W; N],
}

impl<W: Word, const N: usize> Ring<W, N> {
    /// An empty ring from `2 + N` zero words.
    pub fn from_words(head: W, tail: W, entries: [W; N]) -> Self {
        Self { head, pad: [0; 60], tail, entries }
    }

    /// Appends a word; `false` when the ring is full. Only the one producer calls this.
    pub fn push(&self, word: u32) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        if tail.wrapping_sub(self.head.load(Ordering::Acquire)) as usize >= N {
            return false;
        }
        self.entries[tail as usize % N].store(word, Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        true
    }

    /// Takes the oldest word. Only the one consumer calls this.
    pub fn pop(&self) -> Option<u32> {
        let head = self.head.load(Ordering::Relaxed);
        if head == self.tail.load(Ordering::Acquire) {
            return None;
        }
        let word = self.entries[head as usize % N].load(Ordering::Relaxed);
        self.head.store(head.wrapping_add(1), Ordering::Release);
        Some(word)
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == self.tail.load(Ordering::Acquire)
    }
}

/// The consumer's side of going to sleep. `true`: it may sleep, and every later push will ring.
pub fn fall_asleep<W: Word>(asleep: &W, all_empty: impl Fn() -> bool) -> bool {
    asleep.store(1, Ordering::Relaxed);
    W::fence(Ordering::SeqCst);
    if all_empty() {
        return true;
    }
    asleep.store(0, Ordering::Relaxed);
    false
}

/// The producer's side, after a push. `true`: the consumer sleeps and this caller must ring its bell.
pub fn must_ring<W: Word>(asleep: &W) -> bool {
    W::fence(Ordering::SeqCst);
    asleep.load(Ordering::Relaxed) == 1 && asleep.swap(0, Ordering::AcqRel) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Modelled(loom::sync::atomic::AtomicU32);

    impl Word for Modelled {
        fn load(&self, order: Ordering) -> u32 {
            self.0.load(order)
        }
        fn store(&self, value: u32, order: Ordering) {
            self.0.store(value, order);
        }
        fn swap(&self, value: u32, order: Ordering) -> u32 {
            self.0.swap(value, order)
        }
        fn fence(order: Ordering) {
            loom::sync::atomic::fence(order);
        }
    }

    fn modelled() -> Modelled {
        Modelled(loom::sync::atomic::AtomicU32::new(0))
    }

    /// Every interleaving of a producer and a consumer over a ring smaller than the traffic: words arrive complete, in
    /// order, and the plain payload behind each word is visible.
    #[test]
    fn ring_is_ordered_and_publishes_its_payload() {
        loom::model(|| {
            use loom::cell::UnsafeCell;
            let ring = loom::sync::Arc::new((
                Ring::<Modelled, 2>::from_words(modelled(), modelled(), [modelled(), modelled()]),
                [UnsafeCell::new(0u32), UnsafeCell::new(0), UnsafeCell::new(0)],
            ));
            let producer = loom::sync::Arc::clone(&ring);
            let thread = loom::thread::spawn(move || {
                for i in 0..3u32 {
                    producer.1[i as usize].with_mut(|cell| {
                        // loom itself proves that nobody else touches the cell now.
                        #[allow(unsafe_code, reason = "loom's cells hand out raw pointers")]
                        // SAFETY: the consumer reads this cell only after the push below.
                        unsafe {
                            *cell = 10 + i;
                        }
                    });
                    while !producer.0.push(i) {
                        loom::thread::yield_now();
                    }
                }
            });
            for expected in 0..3u32 {
                let word = loop {
                    match ring.0.pop() {
                        Some(word) => break word,
                        None => loom::thread::yield_now(),
                    }
                };
                assert_eq!(word, expected);
                ring.1[word as usize].with(|cell| {
                    #[allow(unsafe_code, reason = "loom's cells hand out raw pointers")]
                    // SAFETY: the producer wrote this cell before it pushed the word.
                    let value = unsafe { *cell };
                    assert_eq!(value, 10 + word);
                });
            }
            thread.join().expect("producer");
        });
    }

    /// No interleaving loses a wake-up: if the consumer sleeps, the producer rings.
    #[test]
    fn no_wakeup_is_lost() {
        loom::model(|| {
            let shared = loom::sync::Arc::new((
                Ring::<Modelled, 2>::from_words(modelled(), modelled(), [modelled(), modelled()]),
                modelled(),
                loom::sync::atomic::AtomicBool::new(false),
            ));
            let producer = loom::sync::Arc::clone(&shared);
            let thread = loom::thread::spawn(move || {
                assert!(producer.0.push(7));
                if must_ring(&producer.1) {
                    producer.2.store(true, Ordering::Release);
                }
            });
            let sleeps = fall_asleep(&shared.1, || shared.0.is_empty());
            thread.join().expect("producer");
            let rung = shared.2.load(Ordering::Acquire);
            assert!(!sleeps || rung, "asleep with a full ring and a silent bell");
        });
    }

    #[test]
    fn a_full_ring_refuses_and_recovers() {
        let words = || AtomicU32::new(0);
        let ring = Ring::<AtomicU32, 2>::from_words(words(), words(), [words(), words()]);
        assert!(ring.push(1) && ring.push(2) && !ring.push(3));
        assert_eq!(ring.pop(), Some(1));
        assert!(ring.push(3));
        assert_eq!((ring.pop(), ring.pop(), ring.pop()), (Some(2), Some(3), None));
    }
}
