//! What `hfreduce` needs of a group beyond the collectives: streamed sums, and memory shared inside the node.

use super::Group;
use crate::communicator::Inner;
use crate::completion::Completion;
use crate::dtype::Arithmetic;
use crate::engine::launch::{Memories, Stream};
use crate::engine::queue::Queue;
use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::memory::{Memory, SharedMemory};
use crate::plan::{Request, plan};
use crate::wire::header::Kind;
use std::any::Any;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Group {
    /// Sum, or half of one, whose contributions appear piece by piece: what `hfreduce` runs between nodes. Slice
    /// `slices[m]` ends on member `m`; `kind` is all-reduce, reduce-scatter or all-gather.
    ///
    /// # Errors
    /// When the request is refused.
    ///
    /// # Safety
    /// The memories stay alive as long as `keep`, which the operation owns until it ends. Between the moment
    /// `stream.ready` answers true for a range and `stream.finished` for it, nobody else touches that range.
    #[allow(unsafe_code, reason = "the caller answers for memory that other processes see")]
    pub unsafe fn start_streamed<K: Any + Send>(
        &self,
        kind: Kind,
        arithmetic: Arithmetic,
        slices: &[Range<usize>],
        (partial, output): (Memory, Memory),
        (stream, keep): (Option<Arc<dyn Stream>>, K),
    ) -> Result<Streamed> {
        let elements = slices.iter().map(|slice| slice.end).max().unwrap_or(0);
        let request =
            Request { slices: Some(slices), ..self.request(kind, arithmetic, elements, 0) };
        let memories = Memories { input: partial, partial, output };
        let (mut launch, completion) = self.prepare(&request, memories, stream, ())?;
        launch.keep = Some(Box::new(keep));
        let order = launch.schedule.pieces.iter().map(|piece| piece.range.clone()).collect();
        let inner = Arc::clone(&self.inner);
        self.submit(launch);
        Ok(Streamed { completion, order, inner })
    }

    /// The order of pieces that [`Self::start_streamed`] would have for these slices. Pure.
    ///
    /// # Errors
    /// When the request would be refused.
    pub fn preview(
        &self,
        kind: Kind,
        arithmetic: Arithmetic,
        slices: &[Range<usize>],
    ) -> Result<Vec<Range<usize>>> {
        let elements = slices.iter().map(|slice| slice.end).max().unwrap_or(0);
        let request =
            Request { slices: Some(slices), ..self.request(kind, arithmetic, elements, 0) };
        let planned = plan(&request)?;
        Ok(planned.schedule.pieces.into_iter().map(|piece| piece.range).collect())
    }

    /// Adds to this rank's count of bytes moved by its cores.
    pub fn touched(&self, bytes: usize) {
        let counters = &self.inner.shared.counters;
        counters.host_memory.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Exchanges memory with the other members, all on one node: everybody's, in member order, this rank's own too.
    ///
    /// # Errors
    /// When a member is on another node, does not share in time, or the communicator fails.
    pub fn share(&self, memory: &Arc<SharedMemory>) -> Result<Vec<Arc<SharedMemory>>> {
        let nth = self.shares.fetch_add(1, Ordering::Relaxed);
        let key = self.id ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let shared = &self.inner.shared;
        let node = self.inner.nodes[shared.rank.index()];
        for &rank in self.members.iter().filter(|rank| **rank != shared.rank) {
            if self.inner.nodes[rank.index()] != node {
                return Err(Error::Invalid(format!(
                    "rank {rank} is on another node: no shared memory"
                )));
            }
            let fd = memory.as_fd().try_clone_to_owned();
            let fd = fd.map_err(|source| Error::io("duplicating a descriptor", source))?;
            shared.send_fd(rank, key, fd, memory.len() as u64);
        }
        let take = |&rank: &Rank| {
            if rank == shared.rank {
                return Ok(Arc::clone(memory));
            }
            let (fd, bytes) = shared.take_fd(rank, key, self.timeout)?;
            SharedMemory::from_fd(fd, usize::try_from(bytes).unwrap_or(usize::MAX))
        };
        self.members.iter().map(take).collect()
    }
}

/// Wakes the engine of a streamed operation; keeps no communicator alive.
#[derive(Debug, Clone)]
pub struct Advance(Arc<Queue>);

impl Advance {
    /// Contributions have appeared: [`Stream::ready`] is asked again.
    pub fn ring(&self) {
        self.0.advance();
    }
}

/// A streamed operation.
#[derive(Debug)]
pub struct Streamed {
    completion: Arc<Completion>,
    order: Vec<Range<usize>>,
    inner: Arc<Inner>,
}

impl Streamed {
    /// Ranges of elements in the order in which the operation wants them.
    pub fn order(&self) -> &[Range<usize>] {
        &self.order
    }

    /// How to tell the engine that `ready` has changed.
    pub fn advance(&self) -> Advance {
        Advance(Arc::clone(&self.inner.queue))
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.completion.is_done()
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// The reason why it failed.
    pub fn wait(&self) -> Result<()> {
        self.completion.wait()
    }

    /// As [`Self::wait`]; says when it ended, which may be long ago.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn ended(&self) -> Result<Instant> {
        self.completion.ended()
    }
}
