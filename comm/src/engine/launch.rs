//! What an operation is made of, and the outlet it talks through.

use super::seats::Seat;
use crate::completion::Completion;
use crate::dtype::Arithmetic;
use crate::error::Result;
use crate::ids::Rank;
use crate::memory::Memory;
use crate::schedule::{Part, Schedule};
use crate::transport::Lane;
use crate::wire::header::{Descriptor, Imm};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Contributions that appear, and results that are taken, piece by piece while the operation runs.
pub trait Stream: Send + Sync {
    /// Whether this member's contribution to these elements lies in the running sum. Asked again after
    /// [`crate::Streamed::advance`].
    fn ready(&self, elements: &Range<usize>) -> bool;

    /// These elements of the output are final. Called on the engine's thread: must not wait.
    fn finished(&self, elements: &Range<usize>);
}

/// The memories of an operation. `input` and `output` may be the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memories {
    pub(crate) input: Memory,
    pub(crate) partial: Memory,
    pub(crate) output: Memory,
}

/// All that the engine needs to run an operation.
pub(crate) struct Launch {
    pub(crate) descriptor: Descriptor,
    pub(crate) members: Arc<[Rank]>,
    /// This rank.
    pub(crate) rank: Rank,
    pub(crate) schedule: Schedule,
    /// Members that exchange headers with this one, whether or not a piece travels between them.
    pub(crate) neighbours: Vec<usize>,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) memories: Memories,
    pub(crate) stream: Option<Arc<dyn Stream>>,
    pub(crate) landing_bytes: usize,
    pub(crate) landings: usize,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) completion: Arc<Completion>,
    /// What keeps the memories alive, where the caller does not. Dropped before the caller learns of the end.
    pub(crate) keep: Option<Box<dyn Any + Send>>,
    /// Its group's, where it has one: kept to the end, also when the group is dropped before.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) seat: Option<Arc<Seat>>,
    /// Memory behind `memories.partial` that belongs to the operation alone.
    pub(crate) scratch: Vec<u64>,
}

/// Where an operation's words go.
pub(crate) trait Port {
    /// Writes `source` at `offset` of the peer's region. `piece`: whose source must not change until
    /// [`Operation::put_done`].
    fn put(&mut self, target: Target, source: Memory, imm: Imm, done: Option<usize>) -> Result<()>;
    /// Where `from` writes its header for its slot `slot`.
    fn header_at(&self, slot: u8) -> u64;
    /// Adds to the count of bytes this rank's cores moved for copies and sums.
    fn touched(&self, bytes: usize);
    /// Data lanes.
    fn lanes(&self) -> u8;
}

/// The receiving end of a put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) peer: Rank,
    pub(crate) lane: Lane,
    pub(crate) offset: u64,
}

impl Launch {
    /// Ends it. What it holds of its caller goes first: a communicator must never be dropped by its own engine.
    pub(crate) fn end(&mut self, result: Result<()>) {
        self.stream = None;
        self.keep = None;
        self.completion.set(result);
    }

    /// Whether `rank` sends this one a header for the operation.
    pub(crate) fn neighbours_know(&self, rank: Rank) -> bool {
        self.neighbours.iter().any(|&member| self.members[member] == rank)
    }

    pub(crate) fn size(&self, range: &Range<usize>, partial: bool) -> usize {
        let element =
            if partial { self.arithmetic.partial_bytes } else { self.arithmetic.dtype.bytes() };
        range.len() * element
    }

    pub(crate) fn part(&self, part: Part, range: &Range<usize>) -> Memory {
        let output = self.arithmetic.dtype.bytes();
        let (memory, element) = match part {
            Part::Input => (self.memories.input, output),
            Part::Output => (self.memories.output, output),
            Part::Partial => (self.memories.partial, self.arithmetic.partial_bytes),
        };
        memory.slice(range.start * element..range.end * element)
    }
}
