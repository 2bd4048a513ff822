//! Layout of the memory that peers write: control slots, then one landing area per operation slot. Region 0 of every
//! rank.

use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::memory::{Memory, SharedMemory};
use crate::wire::header::{HEADER_BYTES, Imm};
use std::sync::Arc;

/// The arena of one rank.
#[derive(Debug, Clone)]
pub(crate) struct Arena {
    pub(crate) memory: Arc<SharedMemory>,
    ranks: usize,
    pub(crate) operations: usize,
    pub(crate) landing_bytes: usize,
}

impl Arena {
    /// An arena for a job of `ranks`, with `operations` in flight and `landing_bytes` each. Pages are taken only when
    /// first used.
    pub(crate) fn create(ranks: usize, operations: usize, landing_bytes: usize) -> Result<Self> {
        if !(4..=Imm::OPERATIONS).contains(&operations) {
            let limit = Imm::OPERATIONS;
            return Err(Error::Invalid(format!(
                "operations = {operations}: allowed is 4..={limit}"
            )));
        }
        let landing_bytes = landing_bytes.next_multiple_of(4096);
        let bytes = Self::front(ranks) + operations * landing_bytes;
        let memory = SharedMemory::create("arena", bytes)?;
        Ok(Self { memory, ranks, operations, landing_bytes })
    }

    fn front(ranks: usize) -> usize {
        (ranks * Imm::OPERATIONS * HEADER_BYTES).next_multiple_of(4096)
    }

    /// Where `from` writes its header for its operation slot, in any arena of the job.
    pub(crate) fn header_at(from: Rank, slot: u8) -> usize {
        (from.index() * Imm::OPERATIONS + usize::from(slot)) * HEADER_BYTES
    }

    /// The header that `from` has written for its slot.
    pub(crate) fn header(&self, from: Rank, slot: u8) -> Memory {
        let at = Self::header_at(from, slot);
        self.memory.memory().slice(at..at + HEADER_BYTES)
    }

    /// The landing area of an operation slot and its offset.
    pub(crate) fn landing(&self, slot: u8) -> (Memory, u64) {
        let at = Self::front(self.ranks) + usize::from(slot) * self.landing_bytes;
        (self.memory.memory().slice(at..at + self.landing_bytes), at as u64)
    }
}
