//! The column of one local rank on its way between the nodes: pieces go out as soon as they are summed inside the node
//! and come back one by one (Fire-Flyer Algorithm 2; the pass up and the pass down run at once in the engine).

#![allow(unsafe_code, reason = "copies results into the buckets of the local ranks")]

use crate::bucket::Inner;
use crate::flags::Counter;
use crate::kernels::{Level, Order, Sum};
use lampyris_comm::{Advance, Arithmetic, DType, Memory, SharedMemory, Stream};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Progress of one operation's pieces, shared by the thread that sums inside the node and the engine.
pub(crate) struct Column {
    inner: Arc<Inner>,
    generation: u32,
    sums: Sums,
    /// Where final elements are copied to.
    neighbours: Vec<Memory>,
    /// By first element; filled in once the engine's order is known.
    pieces: OnceLock<HashMap<usize, Piece>>,
    /// Wakes the engine when a contribution is there.
    engine: OnceLock<Advance>,
    /// Elements still to come, plus one while the local part runs.
    open: AtomicUsize,
}

#[derive(Default)]
struct Piece {
    ready: AtomicBool,
    finished: AtomicBool,
}

/// Running sums and results of a column, both indexed by the bucket's elements.
pub(crate) struct Sums {
    pub(crate) partial: Memory,
    pub(crate) partial_bytes: usize,
    pub(crate) output: Memory,
    /// What holds them, where it is not the bucket: mapped until the last user of the column is gone.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) scratch: Vec<Arc<SharedMemory>>,
}

impl Column {
    /// Running sums and results.
    pub(crate) fn memories(&self) -> (Memory, Memory) {
        (self.sums.partial, self.sums.output)
    }

    pub(crate) fn new(
        (inner, generation): (Arc<Inner>, u32),
        sums: Sums,
        neighbours: Vec<Memory>,
        expected: usize,
    ) -> Self {
        let open = AtomicUsize::new(expected + 1);
        let pieces = OnceLock::new();
        let engine = OnceLock::new();
        Self { inner, generation, sums, neighbours, pieces, engine, open }
    }

    /// The engine's order, and how to wake it: until then nothing is ready.
    pub(crate) fn attach(&self, order: &[Range<usize>], engine: Advance) {
        assert!(self.engine.set(engine).is_ok(), "attached once");
        let pieces = order.iter().map(|range| (range.start, Piece::default())).collect();
        assert!(self.pieces.set(pieces).is_ok(), "the order is set once");
    }

    pub(crate) fn partial_of(&self, range: &Range<usize>) -> Memory {
        let bytes = self.sums.partial_bytes;
        self.sums.partial.slice(range.start * bytes..range.end * bytes)
    }

    pub(crate) fn output_of(&self, range: &Range<usize>) -> Memory {
        let bytes = self.inner.dtype.bytes();
        self.sums.output.slice(range.start * bytes..range.end * bytes)
    }

    /// The node's sum of these elements lies in the running sum.
    pub(crate) fn contribute(&self, range: &Range<usize>) {
        self.piece(range).ready.store(true, Ordering::Release);
        if let Some(engine) = self.engine.get() {
            engine.ring();
        }
    }

    pub(crate) fn is_finished(&self, range: &Range<usize>) -> bool {
        self.piece(range).finished.load(Ordering::Acquire)
    }

    /// This rank has read and written all it had to inside the node.
    pub(crate) fn local_part_done(&self) {
        self.close(1);
    }

    fn close(&self, elements: usize) {
        if self.open.fetch_sub(elements, Ordering::AcqRel) == elements {
            self.inner.flags.set(Counter::Done, self.generation);
        }
    }

    fn piece(&self, range: &Range<usize>) -> &Piece {
        let pieces = self.pieces.get().expect("set before the first piece is summed");
        &pieces[&range.start]
    }
}

impl Stream for Column {
    fn ready(&self, elements: &Range<usize>) -> bool {
        let pieces = self.pieces.get();
        pieces.is_some_and(|pieces| pieces[&elements.start].ready.load(Ordering::Acquire))
    }

    fn finished(&self, elements: &Range<usize>) {
        let from = self.output_of(elements);
        let bytes = self.inner.dtype.bytes();
        for neighbour in &self.neighbours {
            let to = neighbour.slice(elements.start * bytes..elements.end * bytes);
            // SAFETY: every local rank has entered this operation and leaves its bucket alone until we are done; this
            // rank alone writes these elements.
            unsafe { to.bytes_mut().copy_from_slice(from.bytes()) };
        }
        if !self.neighbours.is_empty() {
            self.inner.flags.group().touched((self.neighbours.len() + 1) * from.len());
        }
        if let Some(pieces) = self.pieces.get() {
            pieces[&elements.start].finished.store(true, Ordering::Release);
        }
        self.close(elements.len());
    }
}

/// Sums between nodes: fp32 partial sums, added and rounded by the SIMD kernels.
pub(crate) fn arithmetic(dtype: DType) -> Arithmetic {
    let round = match dtype {
        DType::Bf16 => Some(round::<{ DType::Bf16 as u8 }> as lampyris_comm::Kernel),
        DType::F16 => Some(round::<{ DType::F16 as u8 }> as lampyris_comm::Kernel),
        DType::Fp8E4m3 => Some(round::<{ DType::Fp8E4m3 as u8 }> as lampyris_comm::Kernel),
        _ => None,
    };
    Arithmetic { dtype, partial_bytes: 4, widen: None, add, round }
}

fn add(partial: &mut [u8], came: &[u8]) {
    let inputs = [Memory::of(partial), Memory::of_const(came)];
    let (input, output) = (DType::F32, DType::F32);
    let sum = Sum { inputs: &inputs, outputs: &inputs[..1], input, output, order: Order::Fold };
    // SAFETY: both slices are borrowed; the kernel reads an element before it writes it.
    unsafe { sum.run(Level::detect()) };
}

fn round<const TO: u8>(output: &mut [u8], partial: &[u8]) {
    let to = DType::from_wire(TO).expect("a type's own number");
    let (inputs, outputs) = ([Memory::of_const(partial)], [Memory::of(output)]);
    let (inputs, outputs) = (&inputs[..], &outputs[..]);
    let sum = Sum { inputs, outputs, input: DType::F32, output: to, order: Order::Fold };
    // SAFETY: both slices are borrowed and distinct.
    unsafe { sum.run(Level::detect()) };
}
