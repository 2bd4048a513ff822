//! A ring of chunks in shared memory: one memory per local rank, mapped by all of them.

use crate::error::Result;
use lampyris_comm::{Group, Memory, SharedMemory};
use std::sync::Arc;

/// Chunks of a ring: one being copied, one being summed, the rest slack for ranks that are not in step. A power of two,
/// so that the slot of a chunk is right across a wrap of its number.
pub(super) const SLOTS: usize = 8;

/// The same ring of every local rank. A chunk holds `parts` pieces.
pub(super) struct Ring {
    /// By local rank.
    memories: Vec<Arc<SharedMemory>>,
    parts: usize,
    piece_bytes: usize,
    /// Chunks of all earlier operations; wraps.
    base: u32,
}

impl Ring {
    /// Collective over the local ranks.
    ///
    /// # Errors
    /// When there is no memory, or a local rank does not take part.
    pub(super) fn share(
        local: &Group,
        name: &str,
        parts: usize,
        piece_bytes: usize,
    ) -> Result<Self> {
        let own = SharedMemory::create(name, SLOTS * parts * piece_bytes)?;
        Ok(Self { memories: local.share(&own)?, parts, piece_bytes, base: 0 })
    }

    /// The count that says that this operation's first `chunks` chunks have passed.
    pub(super) fn count(&self, chunks: usize) -> u32 {
        self.base.wrapping_add(u32::try_from(chunks).expect("fewer than 2^32 chunks"))
    }

    /// The count that says that the slot of `chunk` is free: the chunk that used it before has passed.
    pub(super) fn count_before(&self, chunk: usize) -> u32 {
        self.count(chunk + 1).wrapping_sub(SLOTS as u32)
    }

    /// The first `bytes` bytes of a part of this operation's chunk `chunk`, in the ring of local rank `rank`.
    pub(super) fn slot(&self, rank: usize, chunk: usize, part: usize, bytes: usize) -> Memory {
        assert!(part < self.parts && bytes <= self.piece_bytes, "a piece fits its slot");
        let slot = self.count(chunk) as usize % SLOTS;
        let at = (slot * self.parts + part) * self.piece_bytes;
        self.memories[rank].memory().slice(at..at + bytes)
    }

    /// An operation of `chunks` chunks has ended.
    pub(super) fn pass(&mut self, chunks: usize) {
        self.base = self.count(chunks);
    }

    /// Bytes of the longest piece.
    pub(super) fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(base: u32) -> Ring {
        let memories = vec![SharedMemory::create("test", SLOTS * 2 * 64).expect("memory")];
        Ring { memories, parts: 2, piece_bytes: 64, base }
    }

    #[test]
    fn chunks_take_slots_in_turn_across_operations_and_wraps() {
        for base in [0, 5, u32::MAX - 3] {
            let mut ring = ring(base);
            let at = |ring: &Ring, chunk: usize, part: usize| {
                ring.slot(0, chunk, part, 64).as_ptr() as usize
            };
            let distinct: std::collections::HashSet<usize> =
                (0..SLOTS * 2).map(|slot| at(&ring, slot / 2, slot % 2)).collect();
            assert_eq!(distinct.len(), SLOTS * 2, "no two pieces in flight share memory");
            assert_eq!(at(&ring, 0, 1), at(&ring, SLOTS, 1), "the slot is used again");
            assert_eq!(ring.count_before(SLOTS), ring.count(1), "after chunk 0 has passed");
            let next = at(&ring, 3, 0);
            ring.pass(3);
            assert_eq!(at(&ring, 0, 0), next, "the next operation goes on behind the last one");
        }
    }

    #[test]
    #[should_panic(expected = "a piece fits its slot")]
    fn a_piece_longer_than_its_slot_is_a_bug() {
        ring(0).slot(0, 0, 0, 65);
    }
}
