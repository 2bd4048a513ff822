//! Buckets in shared memory: the local ranks read and write each other's elements where they lie.

use super::{Cursor, Side, Staging};
use crate::device::DeviceCopy;
use crate::error::{Error, Result};
use crate::flags::{Counter, Flags, Turn};
use crate::route::{Piece, Route};
use lampyris_comm::{DType, Group, Memory, SharedMemory};
use std::sync::Arc;

/// Most elements of one piece inside a node: between two pieces the loop looks at the communicator's health, so this is
/// a millisecond or two.
const PIECE_ELEMENTS: usize = 4 << 20;

/// The buckets of all local ranks in shared memory.
pub(crate) struct InPlace {
    dtype: DType,
    flags: Flags,
    /// By local rank.
    buckets: Vec<Memory>,
    /// What `buckets` are views of.
    #[expect(dead_code, reason = "held, not read")]
    memories: Vec<Arc<SharedMemory>>,
    input: Cursor,
    output: Cursor,
}

impl InPlace {
    /// Zeroed buckets of `elements` each. Collective over the local ranks.
    ///
    /// # Errors
    /// When there is no memory, or a local rank asks for another size or does not take part.
    pub(crate) fn share(
        local: &Group,
        flags: Flags,
        dtype: DType,
        elements: usize,
    ) -> Result<Self> {
        let own = SharedMemory::create("bucket", elements * dtype.bytes())?;
        own.populate();
        let memories = local.share(&own)?;
        if memories.iter().any(|memory| memory.len() != own.len()) {
            let sizes: Vec<usize> = memories.iter().map(|memory| memory.len()).collect();
            return Err(Error::Invalid(format!("the local ranks' buckets have {sizes:?} bytes")));
        }
        let buckets = memories.iter().map(|memory| memory.memory()).collect();
        let (input, output) = (Cursor::default(), Cursor::default());
        Ok(Self { dtype, flags, buckets, memories, input, output })
    }

    fn cursor(&mut self, side: Side) -> &mut Cursor {
        match side {
            Side::Input => &mut self.input,
            Side::Output => &mut self.output,
        }
    }
}

impl Staging for InPlace {
    fn enter(&mut self, turn: Turn) -> Result<()> {
        self.flags.wait_all(Counter::Entered, turn)
    }

    fn begin(&mut self, mut route: Route) {
        let me = self.flags.me();
        self.input = Cursor::new(std::mem::take(&mut route.input[me]));
        self.output = Cursor::new(std::mem::take(&mut route.output[me]));
    }

    fn next(&self, side: Side) -> Option<&Piece> {
        match side {
            Side::Input => self.input.get(),
            Side::Output => self.output.get(),
        }
    }

    fn ready(&mut self, side: Side) -> Option<Vec<Memory>> {
        let (me, piece) = (self.flags.me(), self.next(side)?);
        let bytes = self.dtype.bytes();
        let mut memories = Vec::with_capacity(self.buckets.len());
        for (rank, bucket) in self.buckets.iter().enumerate() {
            if piece.buckets.include(rank, me) {
                memories.push(bucket.slice(piece.range.start * bytes..piece.range.end * bytes));
            }
        }
        Some(memories)
    }

    fn done(&mut self, side: Side) {
        self.cursor(side).step();
    }

    fn advance(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn is_over(&self) -> bool {
        self.input.is_over() && self.output.is_over()
    }

    fn wait(&mut self, _looks: u32) -> Result<()> {
        unreachable!("after `enter` every piece in place is ready")
    }

    fn in_place(&self) -> Option<&[Memory]> {
        Some(&self.buckets)
    }

    fn piece_elements(&self) -> usize {
        PIECE_ELEMENTS
    }

    fn device(&mut self) -> Option<&mut dyn DeviceCopy> {
        None
    }
}
