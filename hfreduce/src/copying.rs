//! `Copying` staging: tensors that are not in shared memory pass through bounded rings of shared chunks.
//!
//! Fire-Flyer Algorithm 1: split into chunks; copy chunk `t` of every local rank to the host, asynchronously; once all
//! have landed, sum them; hand the sum on; copy the result back. Two rings per rank, in and out, of [`SLOTS`] chunks:
//! the in-ring never waits for the network (a sum leaves it for full-size scratch), so no order of chunks on other nodes
//! can block it. A chunk holds one piece for each local rank, so every core sums its part of every chunk.
//!
//! The copier is a [`DeviceCopy`]: plain memory here, pinned memory and a stream on a GPU, seeded delays in tests. What a
//! rank sums itself is not copied where the processor reaches it: of two ranks on one node each copies half of its bucket.

#![allow(unsafe_code, reason = "sums and copies between shared rings")]

use crate::bucket::Inner;
use crate::error::Result;
use crate::flags::Counter;
use crate::kernels::{Level, Order, Sum};
use crate::layout::Grid;
use crate::streaming::Column;
use lampyris_comm::{DType, Group, Memory, SharedMemory};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Chunks of a ring: one being copied, one being summed, the rest slack for ranks that are not in step.
pub(crate) const SLOTS: usize = 8;

/// A sleep when nothing has moved for long: a device's copies have no way to ring.
const NAP: Duration = Duration::from_micros(50);

/// One asynchronous copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyId(pub u64);

/// Copies between a tensor and host memory, asynchronously. Implemented by `trainer` for GPUs.
pub trait DeviceCopy: Send {
    /// Starts copying `elements` of the tensor into `to`.
    ///
    /// # Errors
    /// When the device refuses.
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId>;

    /// Starts copying `from` over `elements` of the tensor.
    ///
    /// # Errors
    /// When the device refuses.
    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId>;

    /// Whether a copy is done: its host memory may be used again. Asked until it answers true.
    ///
    /// # Errors
    /// When the copy failed.
    fn ready(&mut self, copy: CopyId) -> Result<bool>;

    /// `elements` where they lie, if the processor can read and write them there: the pieces that this rank sums itself
    /// then need no copies. None on a device.
    fn in_host_memory(&mut self, _elements: Range<usize>) -> Option<Memory> {
        None
    }
}

/// A tensor in this process's private memory.
#[derive(Debug, Clone, Default)]
pub struct HostTensor<T> {
    /// Its elements.
    pub data: Vec<T>,
}

impl<T: bytemuck::Pod + Send> DeviceCopy for HostTensor<T> {
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId> {
        let from: &[u8] = bytemuck::cast_slice(&self.data[elements]);
        // SAFETY: the ring slot is this rank's until it says that it is staged.
        unsafe { to.bytes_mut() }.copy_from_slice(from);
        Ok(CopyId(0))
    }

    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId> {
        let to: &mut [u8] = bytemuck::cast_slice_mut(&mut self.data[elements]);
        // SAFETY: the ring slot is complete and nobody writes it until this rank has drained it.
        to.copy_from_slice(unsafe { from.bytes() });
        Ok(CopyId(0))
    }

    fn ready(&mut self, _copy: CopyId) -> Result<bool> {
        Ok(true)
    }

    fn in_host_memory(&mut self, elements: Range<usize>) -> Option<Memory> {
        Some(Memory::of(&mut self.data[elements]))
    }
}

/// The rings of a private bucket, and how far its counters have come.
pub(crate) struct Copying {
    pub(crate) device: Box<dyn DeviceCopy>,
    /// By local rank.
    input: Vec<Arc<SharedMemory>>,
    output: Vec<Arc<SharedMemory>>,
    /// Bytes of one local rank's piece of a chunk.
    piece_bytes: usize,
    /// Chunks of all earlier operations.
    base: u32,
}

/// What one operation needs to know.
pub(crate) struct Plan<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) grid: &'a Grid,
    pub(crate) order: Order,
    pub(crate) level: Level,
    /// By local rank: its pieces in the order in which they are summed.
    pub(crate) pieces: Vec<Vec<Range<usize>>>,
    /// Sums that go on to other nodes, when there are any.
    pub(crate) column: Option<&'a Column>,
    pub(crate) until: Instant,
}

/// How many chunks have passed each stage.
#[derive(Default)]
struct Stages {
    copying_in: usize,
    staged: usize,
    summed: usize,
    produced: usize,
    copying_out: usize,
    drained: usize,
    incoming: VecDeque<Vec<CopyId>>,
    outgoing: VecDeque<Vec<CopyId>>,
}

impl Copying {
    /// Rings for pieces of at most `piece_bytes`. Collective over the local ranks.
    pub(crate) fn share(
        group: &Group,
        device: Box<dyn DeviceCopy>,
        piece_bytes: usize,
    ) -> Result<Self> {
        let piece_bytes = piece_bytes.next_multiple_of(64);
        let bytes = SLOTS * group.len() * piece_bytes;
        let input = group.share(&SharedMemory::create("ring-in", bytes)?)?;
        let output = group.share(&SharedMemory::create("ring-out", bytes)?)?;
        Ok(Self { device, input, output, piece_bytes, base: 0 })
    }

    /// Elements of one piece.
    pub(crate) fn piece_elements(&self, dtype: DType) -> usize {
        self.piece_bytes / dtype.bytes()
    }

    /// Runs one all-reduce to its end.
    pub(crate) fn run(&mut self, plan: &Plan<'_>) -> Result<()> {
        let chunks = plan.pieces.iter().map(Vec::len).max().unwrap_or(0);
        let mut stages = Stages::default();
        let mut idle = 0u32;
        while stages.drained < chunks {
            let mut moved = self.copy_in(plan, &mut stages, chunks)?;
            moved |= self.sum(plan, &mut stages, chunks);
            moved |= self.produce(plan, &mut stages);
            moved |= self.copy_out(plan, &mut stages, chunks)?;
            if moved {
                idle = 0;
                continue;
            }
            idle += 1;
            self.idle(plan, idle, stages.drained)?;
        }
        self.base = self.number(chunks);
        Ok(())
    }

    /// The counter value of `chunks` chunks into this operation.
    fn number(&self, chunks: usize) -> u32 {
        self.base.wrapping_add(u32::try_from(chunks).expect("fewer than 2^32 chunks"))
    }

    /// The counter value that frees the ring slot of chunk `t`: everything up to the one that used it before.
    fn freed(&self, t: usize) -> u32 {
        self.number(t + 1).wrapping_sub(SLOTS as u32)
    }

    fn slot(&self, rings: &[Arc<SharedMemory>], rank: usize, t: usize, part: usize) -> Memory {
        let at = ((self.number(t) as usize % SLOTS) * rings.len() + part) * self.piece_bytes;
        rings[rank].memory().slice(at..at + self.piece_bytes)
    }

    fn copy_in(&mut self, plan: &Plan<'_>, stages: &mut Stages, chunks: usize) -> Result<bool> {
        let flags = &plan.inner.flags;
        let mut moved = false;
        let t = stages.copying_in;
        if t < chunks && flags.all_reached(Counter::Summed, self.freed(t)) {
            let mut copies = Vec::new();
            for (part, pieces) in plan.pieces.iter().enumerate() {
                let Some(piece) = pieces.get(t) else { continue };
                if self.stays(plan, part, piece).is_some() {
                    continue;
                }
                let bytes = piece.len() * plan.inner.dtype.bytes();
                let to = self.slot(&self.input, plan.grid.local, t, part).slice(0..bytes);
                copies.push(self.device.copy_to_host(piece.clone(), to)?);
            }
            stages.incoming.push_back(copies);
            stages.copying_in += 1;
            moved = true;
        }
        if landed(&mut *self.device, &mut stages.incoming)? {
            stages.staged += 1;
            flags.set(Counter::Staged, self.number(stages.staged));
            moved = true;
        }
        Ok(moved)
    }

    /// A piece of local rank `part` that this rank sums and keeps where it lies.
    fn stays(&mut self, plan: &Plan<'_>, part: usize, piece: &Range<usize>) -> Option<Memory> {
        let own = part == plan.grid.local;
        own.then(|| self.device.in_host_memory(piece.clone())).flatten()
    }

    fn sum(&mut self, plan: &Plan<'_>, stages: &mut Stages, chunks: usize) -> bool {
        let (flags, t) = (&plan.inner.flags, stages.summed);
        let room = plan.column.is_some() || flags.all_reached(Counter::Drained, self.freed(t));
        if t >= chunks || !room || !flags.all_reached(Counter::Staged, self.number(t + 1)) {
            return false;
        }
        let me = plan.grid.local;
        if let Some(piece) = plan.pieces[me].get(t) {
            let dtype = plan.inner.dtype;
            let bytes = piece.len() * dtype.bytes();
            let stays = self.stays(plan, me, piece);
            let part = |rings: &[Arc<SharedMemory>], rank| match stays {
                Some(own) if rank == me => own,
                _ => self.slot(rings, rank, t, me).slice(0..bytes),
            };
            let inputs: Vec<Memory> =
                (0..plan.grid.locals).map(|rank| part(&self.input, rank)).collect();
            let (outputs, output) = match plan.column {
                Some(column) => (vec![column.partial_of(piece)], DType::F32),
                None => {
                    let all = (0..plan.grid.locals).map(|rank| part(&self.output, rank));
                    (all.collect(), dtype)
                }
            };
            let (inputs, outputs) = (&inputs[..], &outputs[..]);
            let sum = Sum { inputs, outputs, input: dtype, output, order: plan.order };
            // SAFETY: every local rank has staged this chunk and reuses it only after all have summed it; the output
            // slots are drained; scratch and what stays are this rank's own.
            unsafe { sum.run(plan.level) };
            flags.group().touched(sum.bytes());
            if let Some(column) = plan.column {
                column.contribute(piece);
            }
        }
        stages.summed += 1;
        flags.set(Counter::Summed, self.number(stages.summed));
        if plan.column.is_none() {
            stages.produced = stages.summed;
            flags.set(Counter::Produced, self.number(stages.produced));
        }
        true
    }

    /// Results that came back from the other nodes into all local output rings.
    fn produce(&mut self, plan: &Plan<'_>, stages: &mut Stages) -> bool {
        let Some(column) = plan.column else { return false };
        let (flags, t) = (&plan.inner.flags, stages.produced);
        if t >= stages.summed || !flags.all_reached(Counter::Drained, self.freed(t)) {
            return false;
        }
        let me = plan.grid.local;
        if let Some(piece) = plan.pieces[me].get(t) {
            if !column.is_finished(piece) {
                return false;
            }
            let from = column.output_of(piece);
            let stays = self.stays(plan, me, piece);
            for rank in 0..plan.grid.locals {
                let to = match stays {
                    Some(own) if rank == me => own,
                    _ => self.slot(&self.output, rank, t, me).slice(0..from.len()),
                };
                // SAFETY: the piece is final; the slot is drained and this part of it is ours to fill, and so is what stays.
                unsafe { to.bytes_mut().copy_from_slice(from.bytes()) };
            }
            flags.group().touched((1 + plan.grid.locals) * from.len());
        }
        stages.produced += 1;
        flags.set(Counter::Produced, self.number(stages.produced));
        true
    }

    fn copy_out(&mut self, plan: &Plan<'_>, stages: &mut Stages, chunks: usize) -> Result<bool> {
        let flags = &plan.inner.flags;
        let mut moved = false;
        let t = stages.copying_out;
        if t < chunks && flags.all_reached(Counter::Produced, self.number(t + 1)) {
            let mut copies = Vec::new();
            for (part, pieces) in plan.pieces.iter().enumerate() {
                let Some(piece) = pieces.get(t) else { continue };
                if self.stays(plan, part, piece).is_some() {
                    continue;
                }
                let bytes = piece.len() * plan.inner.dtype.bytes();
                let from = self.slot(&self.output, plan.grid.local, t, part).slice(0..bytes);
                copies.push(self.device.copy_to_device(from, piece.clone())?);
            }
            stages.outgoing.push_back(copies);
            stages.copying_out += 1;
            moved = true;
        }
        if landed(&mut *self.device, &mut stages.outgoing)? {
            stages.drained += 1;
            flags.set(Counter::Drained, self.number(stages.drained));
            moved = true;
        }
        Ok(moved)
    }

    /// Nothing moved: waits a moment, and looks at failure and deadline when it sleeps.
    fn idle(&self, plan: &Plan<'_>, idle: u32, drained: usize) -> Result<()> {
        if plan.inner.flags.pause(idle) {
            return Ok(());
        }
        plan.inner.flags.group().check()?;
        if Instant::now() > plan.until {
            return Err(plan.inner.flags.late(Counter::Produced, self.number(drained + 1)));
        }
        std::thread::park_timeout(NAP);
        Ok(())
    }
}

/// Whether the oldest chunk's copies are all done; it is removed then.
fn landed(device: &mut dyn DeviceCopy, queue: &mut VecDeque<Vec<CopyId>>) -> Result<bool> {
    let Some(copies) = queue.front_mut() else { return Ok(false) };
    let mut open = Vec::new();
    for copy in copies.drain(..) {
        if !device.ready(copy)? {
            open.push(copy);
        }
    }
    *copies = open;
    let done = copies.is_empty();
    if done {
        queue.pop_front();
    }
    Ok(done)
}
