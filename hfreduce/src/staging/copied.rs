//! Buckets that are private to their rank, or on a device: a [`DeviceCopy`] moves their pieces through bounded rings of
//! shared memory.
//!
//! Fire-Flyer Algorithm 1: copy chunk `t` of every local rank to the host, asynchronously; once all have landed, sum
//! them; hand the sum on; copy the result back. Two rings per rank:
//!
//! - the **input ring** has one piece per owner in each chunk: every rank copies its elements of all owners' pieces into
//!   its own ring, and every owner reads its piece from all rings. It never waits for the network (between nodes, what an
//!   owner has read lies in memory of its whole column), so no order of pieces on other nodes can block it.
//! - the **output ring** has the owner's piece alone: the owner writes a result once, and all local ranks copy it to
//!   their tensors from there.
//!
//! Pieces that a rank owns are not copied where the processor reaches its tensor ([`DeviceCopy::in_host_memory`]).

use super::ring::Ring;
use super::{Cursor, Side, Staging};
use crate::device::{CopyId, DeviceCopy};
use crate::error::Result;
use crate::flags::{Counter, Flags, Turn};
use crate::route::{Piece, Route};
use lampyris_comm::{DType, Group, Memory};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// A sleep when nothing has moved for long: the end of a device's copy wakes nobody.
const NAP: Duration = Duration::from_micros(50);

/// Least bytes of a piece: the shortest piece of a collective between nodes is a line of fp32.
const LEAST_PIECE: usize = 128;

/// The rings of a private bucket, and how far an operation has come.
pub(crate) struct Copied {
    /// Dropped first: it may still use the rings.
    device: Box<dyn DeviceCopy>,
    dtype: DType,
    flags: Flags,
    /// The operation that runs, or the last one.
    turn: Option<Turn>,
    input: Lane,
    output: Lane,
}

/// One side of an operation.
struct Lane {
    ring: Ring,
    /// By owner.
    pieces: Vec<Vec<Piece>>,
    /// This rank's own.
    own: Cursor,
    /// Chunks of the owner that has most.
    chunks: usize,
    /// Chunks whose copies have begun, and have ended.
    begun: usize,
    ended: usize,
    /// Copies of the chunks between these two.
    copies: VecDeque<Vec<CopyId>>,
}

impl Copied {
    /// Rings for pieces of at most `piece_bytes`. Collective over the local ranks.
    ///
    /// # Errors
    /// When there is no memory, or a local rank does not take part.
    pub(crate) fn share(
        local: &Group,
        flags: Flags,
        dtype: DType,
        device: Box<dyn DeviceCopy>,
        piece_bytes: usize,
    ) -> Result<Self> {
        let piece_bytes = piece_bytes.max(LEAST_PIECE).next_multiple_of(64);
        let input = Lane::new(Ring::share(local, "ring-in", local.len(), piece_bytes)?);
        let output = Lane::new(Ring::share(local, "ring-out", 1, piece_bytes)?);
        Ok(Self { device, dtype, flags, turn: None, input, output })
    }

    /// Elements of this rank's own piece where they lie, if the processor reaches them.
    fn at_home(&mut self, piece: &Piece) -> Option<Memory> {
        let me = self.flags.me();
        if !piece.buckets.include(me, me) {
            return None;
        }
        self.device.in_host_memory(piece.range.clone())
    }

    fn bytes(&self, range: &Range<usize>) -> usize {
        range.len() * self.dtype.bytes()
    }

    /// Begins to copy the next chunk of this rank's tensor into its input ring, when the ring has room.
    fn begin_input(&mut self) -> Result<bool> {
        let (chunk, me) = (self.input.begun, self.flags.me());
        let free = self.input.ring.count_before(chunk);
        if chunk == self.input.chunks || !self.flags.all_reached(Counter::Read, free) {
            return Ok(false);
        }
        let mut copies = Vec::new();
        for owner in 0..self.input.pieces.len() {
            let Some(piece) = self.input.piece(owner, chunk, me) else { continue };
            if owner == me && self.at_home(&piece).is_some() {
                continue;
            }
            let to = self.input.ring.slot(me, chunk, owner, self.bytes(&piece.range));
            copies.push(self.device.copy_to_host(piece.range, to)?);
        }
        self.input.begin(copies);
        Ok(true)
    }

    /// Begins to copy the next chunk of all owners' results to this rank's tensor, when they are there.
    fn begin_output(&mut self) -> Result<bool> {
        let (chunk, me) = (self.output.begun, self.flags.me());
        let there = self.output.ring.count(chunk + 1);
        if chunk == self.output.chunks || !self.flags.all_reached(Counter::Written, there) {
            return Ok(false);
        }
        let mut copies = Vec::new();
        for owner in 0..self.output.pieces.len() {
            let Some(piece) = self.output.piece(owner, chunk, me) else { continue };
            if owner == me && self.at_home(&piece).is_some() {
                continue;
            }
            let from = self.output.ring.slot(owner, chunk, 0, self.bytes(&piece.range));
            copies.push(self.device.copy_to_device(from, piece.range)?);
        }
        self.output.begin(copies);
        Ok(true)
    }

    /// All local ranks' elements of this rank's next piece.
    fn inputs(&mut self) -> Option<Vec<Memory>> {
        let (chunk, me) = (self.input.own.next, self.flags.me());
        let piece = self.input.own.get()?.clone();
        if !self.flags.all_reached(Counter::Staged, self.input.ring.count(chunk + 1)) {
            return None;
        }
        let (home, bytes) = (self.at_home(&piece), self.bytes(&piece.range));
        let mut memories = Vec::with_capacity(self.input.pieces.len());
        for rank in 0..self.input.pieces.len() {
            match home {
                Some(home) if rank == me => memories.push(home),
                _ if !piece.buckets.include(rank, me) => {}
                _ => memories.push(self.input.ring.slot(rank, chunk, me, bytes)),
            }
        }
        Some(memories)
    }

    /// Where this rank's next result goes: to its output ring for those that copy it from there, and home.
    fn outputs(&mut self) -> Option<Vec<Memory>> {
        let (chunk, me) = (self.output.own.next, self.flags.me());
        let piece = self.output.own.get()?.clone();
        if !self.flags.all_reached(Counter::Drained, self.output.ring.count_before(chunk)) {
            return None;
        }
        let (home, bytes) = (self.at_home(&piece), self.bytes(&piece.range));
        let copies =
            |rank: usize| piece.buckets.include(rank, me) && (rank != me || home.is_none());
        let copied = (0..self.output.pieces.len()).any(copies);
        let slot = copied.then(|| self.output.ring.slot(me, chunk, 0, bytes));
        Some(slot.into_iter().chain(home).collect())
    }

    /// Says how many chunks this rank has read or written. Where it owns no further piece it is through with all of them.
    fn publish(&self, side: Side) {
        let (lane, counter) = match side {
            Side::Input => (&self.input, Counter::Read),
            Side::Output => (&self.output, Counter::Written),
        };
        let chunks = if lane.own.is_over() { lane.chunks } else { lane.own.next };
        self.flags.set(counter, lane.ring.count(chunks));
    }
}

impl Staging for Copied {
    fn enter(&mut self, turn: Turn) -> Result<()> {
        // Nobody touches another rank's tensor: whoever is late is waited for at its first piece.
        self.turn = Some(turn);
        Ok(self.flags.group().check()?)
    }

    fn begin(&mut self, route: Route) {
        let me = self.flags.me();
        self.input.take(route.input, me);
        self.output.take(route.output, me);
        self.publish(Side::Input);
        self.publish(Side::Output);
    }

    fn next(&self, side: Side) -> Option<&Piece> {
        match side {
            Side::Input => self.input.own.get(),
            Side::Output => self.output.own.get(),
        }
    }

    fn ready(&mut self, side: Side) -> Option<Vec<Memory>> {
        match side {
            Side::Input => self.inputs(),
            Side::Output => self.outputs(),
        }
    }

    fn done(&mut self, side: Side) {
        match side {
            Side::Input => self.input.own.step(),
            Side::Output => self.output.own.step(),
        }
        self.publish(side);
    }

    fn advance(&mut self) -> Result<bool> {
        let mut moved = self.begin_input()?;
        if self.input.end(&mut *self.device)? {
            self.flags.set(Counter::Staged, self.input.ring.count(self.input.ended));
            moved = true;
        }
        moved |= self.begin_output()?;
        if self.output.end(&mut *self.device)? {
            self.flags.set(Counter::Drained, self.output.ring.count(self.output.ended));
            moved = true;
        }
        Ok(moved)
    }

    fn is_over(&self) -> bool {
        self.input.is_over() && self.output.is_over()
    }

    fn wait(&mut self, looks: u32) -> Result<()> {
        if self.flags.pause(looks) {
            return Ok(());
        }
        let turn = self.turn.expect("an operation has been entered");
        self.flags.check(turn, || {
            // Whoever is behind this rank holds it up.
            let read = (Counter::Staged, self.input.ring.count(self.input.own.next + 1));
            let written = (Counter::Written, self.output.ring.count(self.output.begun + 1));
            if self.input.own.is_over() { written } else { read }
        })?;
        std::thread::park_timeout(NAP);
        Ok(())
    }

    fn in_place(&self) -> Option<&[Memory]> {
        None
    }

    fn piece_elements(&self) -> usize {
        self.input.ring.piece_bytes() / self.dtype.bytes()
    }

    fn device(&mut self) -> Option<&mut dyn DeviceCopy> {
        Some(&mut *self.device)
    }
}

impl Lane {
    fn new(ring: Ring) -> Self {
        let (pieces, own, copies) = (Vec::new(), Cursor::default(), VecDeque::new());
        Self { ring, pieces, own, chunks: 0, begun: 0, ended: 0, copies }
    }

    /// Takes the pieces of an operation, after those of the last one.
    fn take(&mut self, pieces: Vec<Vec<Piece>>, me: usize) {
        assert!(self.is_over(), "one operation after the other");
        self.ring.pass(self.chunks);
        self.own = Cursor::new(pieces[me].clone());
        self.chunks = pieces.iter().map(Vec::len).max().unwrap_or(0);
        self.pieces = pieces;
        (self.begun, self.ended) = (0, 0);
    }

    /// An owner's piece of a chunk, if `rank`'s bucket has a part in it.
    fn piece(&self, owner: usize, chunk: usize, rank: usize) -> Option<Piece> {
        let piece = self.pieces[owner].get(chunk)?;
        piece.buckets.include(rank, owner).then(|| piece.clone())
    }

    fn begin(&mut self, copies: Vec<CopyId>) {
        self.copies.push_back(copies);
        self.begun += 1;
    }

    /// Whether the copies of the oldest chunk have all ended; it is removed then.
    fn end(&mut self, device: &mut dyn DeviceCopy) -> Result<bool> {
        let Some(copies) = self.copies.front_mut() else { return Ok(false) };
        let mut open = Vec::new();
        for copy in copies.drain(..) {
            if !device.ready(copy)? {
                open.push(copy);
            }
        }
        if !open.is_empty() {
            *copies = open;
            return Ok(false);
        }
        self.copies.pop_front();
        self.ended += 1;
        Ok(true)
    }

    fn is_over(&self) -> bool {
        self.own.is_over() && self.ended == self.chunks
    }
}
