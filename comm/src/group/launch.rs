//! From a call on a group to an operation handed to the engine: buffers, numbering, ownership.

use super::Group;
use crate::completion::Completion;
use crate::dtype::{Arithmetic, DType, Element};
use crate::engine::launch::{Launch, Memories, Stream};
use crate::error::Result;
use crate::memory::Memory;
use crate::plan::{Exchange, Request, plan};
use crate::wire::header::Kind;
use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

impl Group {
    pub(super) fn reduction<T: Element>(
        &self,
        kind: Kind,
        buffer: &mut [T],
        root: usize,
    ) -> Result<Waiting> {
        let (memory, elements) = (Memory::of(buffer), buffer.len());
        self.launch_sum(&self.request(kind, T::ARITHMETIC, elements, root), memory, ())
    }

    pub(super) fn launch_sum<K: Any + Send>(
        &self,
        request: &Request<'_>,
        memory: Memory,
        keep: impl Into<Keep<K>>,
    ) -> Result<Waiting> {
        let bytes = request.elements * request.arithmetic.partial_bytes;
        let mut scratch = Vec::new();
        let partial = if request.arithmetic.widen.is_some() {
            // u64s: aligned for every accumulator.
            scratch.resize(bytes.div_ceil(8), 0u64);
            Memory::of(&mut scratch).slice(0..bytes)
        } else {
            memory
        };
        let memories = Memories { input: memory, partial, output: memory };
        self.run(request, memories, keep.into(), scratch)
    }

    pub(super) fn launch_bytes(
        &self,
        kind: Kind,
        memory: Memory,
        elements: usize,
        root: usize,
        keep: (),
    ) -> Result<Waiting> {
        let request = self.request(kind, BYTES, elements, root);
        let memories = Memories { input: memory, partial: memory, output: memory };
        self.run(&request, memories, keep.into(), Vec::new())
    }

    pub(super) fn gather(
        &self,
        memory: Memory,
        slices: &[Range<usize>],
        keep: (),
    ) -> Result<Waiting> {
        let request = self.request(Kind::AllGather, BYTES, memory.len(), 0);
        let request = Request { slices: Some(slices), ..request };
        let memories = Memories { input: memory, partial: memory, output: memory };
        self.run(&request, memories, keep.into(), Vec::new())
    }

    pub(super) fn exchange<K: Any + Send>(
        &self,
        (input, output): (Memory, Memory),
        (sends, receives): Exchange<'_>,
        keep: impl Into<Keep<K>>,
    ) -> Result<Waiting> {
        let request = self.request(Kind::AllToAll, BYTES, 0, 0);
        let request = Request { exchange: Some((sends, receives)), ..request };
        let memories = Memories { input, partial: output, output };
        self.run(&request, memories, keep.into(), Vec::new())
    }

    pub(super) fn point_to_point<K: Any + Send>(
        &self,
        (from, to): (usize, usize),
        memory: Memory,
        keep: impl Into<Keep<K>>,
    ) -> Result<Waiting> {
        let request = self.request(Kind::PointToPoint, BYTES, memory.len(), from);
        let request = Request { pair: Some((from, to)), ..request };
        let memories = Memories { input: memory, partial: memory, output: memory };
        self.run(&request, memories, keep.into(), Vec::new())
    }

    pub(super) fn request(
        &self,
        kind: Kind,
        arithmetic: Arithmetic,
        elements: usize,
        root: usize,
    ) -> Request<'_> {
        Request {
            kind,
            arithmetic,
            elements,
            root,
            me: self.me,
            members: self.len(),
            canonical: self.canonical,
            chunk_bytes: self.chunk_bytes,
            landing_bytes: self.inner.options.landing_bytes,
            table: &self.table,
            slices: None,
            exchange: None,
            pair: None,
        }
    }

    fn run<K: Any + Send>(
        &self,
        request: &Request<'_>,
        memories: Memories,
        keep: Keep<K>,
        scratch: Vec<u64>,
    ) -> Result<Waiting> {
        let (mut launch, completion) = match keep {
            // The buffer given back by `Pending::wait` is the completion's own; scratch lives in a stream-less launch.
            Keep::Buffer(buffer) => self.prepare_boxed(request, memories, None, buffer)?,
            Keep::Borrowed => self.prepare(request, memories, None, ())?,
        };
        launch.scratch = scratch;
        self.submit(launch);
        Ok(Waiting(completion))
    }

    pub(super) fn prepare<K: Any + Send>(
        &self,
        request: &Request<'_>,
        memories: Memories,
        stream: Option<Arc<dyn Stream>>,
        keep: K,
    ) -> Result<(Launch, Arc<Completion>)> {
        self.prepare_boxed(request, memories, stream, Box::new(keep))
    }

    fn prepare_boxed(
        &self,
        request: &Request<'_>,
        memories: Memories,
        stream: Option<Arc<dyn Stream>>,
        keep: Box<dyn Any + Send>,
    ) -> Result<(Launch, Arc<Completion>)> {
        self.inner.shared.check()?;
        let planned = plan(request)?;
        let completion = Completion::keeping(keep);
        let launch = Launch {
            descriptor: planned.descriptor,
            members: Arc::clone(&self.members),
            rank: self.members[self.me],
            schedule: planned.schedule,
            neighbours: planned.neighbours,
            arithmetic: request.arithmetic,
            memories,
            stream,
            landing_bytes: planned.landing_bytes,
            landings: planned.landings,
            timeout: self.timeout,
            deadline: Instant::now() + self.timeout,
            completion: Arc::clone(&completion),
            keep: None,
            seat: self.seat.clone(),
            scratch: Vec::new(),
        };
        Ok((launch, completion))
    }

    /// Numbers the operation and hands it over, under one lock: the order of numbers is the order of entry.
    pub(super) fn submit(&self, mut launch: Launch) {
        if launch.descriptor.kind == Kind::PointToPoint {
            let from = launch.descriptor.root as usize;
            let to = if from == self.me { launch.neighbours[0] } else { self.me };
            let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
            let sequence = pairs.entry((from, to)).or_insert(0);
            launch.descriptor.sequence = *sequence;
            launch.descriptor.group = self.id ^ pair_number(from, to);
            *sequence += 1;
            self.inner.queue.push(launch);
        } else {
            let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
            launch.descriptor.sequence = *sequence;
            launch.descriptor.group = self.id;
            *sequence += 1;
            self.inner.queue.push(launch);
        }
    }
}

/// Distinguishes the streams of ordered pairs from each other and from the group's own.
fn pair_number(from: usize, to: usize) -> u64 {
    (1 + from as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (1 + to as u64) << 20
}

/// Opaque bytes: copied, never summed.
const BYTES: Arithmetic = Arithmetic {
    dtype: DType::Bytes,
    partial_bytes: 1,
    widen: None,
    add: |_, _| unreachable!("bytes are not summed"),
    round: None,
};

/// Who owns the buffer of an operation.
pub(super) enum Keep<K> {
    /// The caller, who waits.
    Borrowed,
    /// The operation.
    Buffer(Box<K>),
}

impl From<()> for Keep<()> {
    fn from((): ()) -> Self {
        Self::Borrowed
    }
}

impl<K> From<Box<K>> for Keep<K> {
    fn from(buffer: Box<K>) -> Self {
        Self::Buffer(buffer)
    }
}

/// A launched operation whose buffer is borrowed: must be waited for before the borrow ends.
#[must_use]
pub(super) struct Waiting(pub(super) Arc<Completion>);

impl Waiting {
    pub(super) fn wait(self) -> Result<()> {
        self.0.wait()
    }
}
