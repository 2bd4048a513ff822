//! The column of one local rank on its way between the nodes: pieces go out as soon as they are summed inside the node
//! and come back one by one (Fire-Flyer Algorithm 2; the pass up and the pass down run at once in the engine).

#![allow(unsafe_code, reason = "copies results into the buckets of the local ranks")]

use crate::bucket::Inner;
use crate::error::Result;
use crate::flags::Counter;
use crate::kernels::{Level, Order, Sum};
use crate::route::Collective;
use lampyris_comm::{Advance, Arithmetic, DType, Group, Memory, SharedMemory, Stream, Streamed};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Progress of one operation's pieces, shared by the thread that works inside the node and the engine.
pub(crate) struct Column {
    bucket: Arc<Inner>,
    generation: u32,
    collective: Collective,
    memories: Memories,
    /// Buckets that the engine copies final elements to.
    neighbours: Vec<Memory>,
    /// By first element; filled in once the order is known.
    pieces: OnceLock<HashMap<usize, Progress>>,
    /// Wakes the engine when a contribution is there.
    engine: OnceLock<Advance>,
    /// Elements still to come, plus one while the local part runs.
    open: AtomicUsize,
}

#[derive(Default)]
struct Progress {
    ready: AtomicBool,
    finished: AtomicBool,
}

/// Running sums and results of a column, both indexed like the bucket.
struct Memories {
    partial: Memory,
    output: Memory,
    /// What holds them where the bucket does not: mapped until the last user of the column is gone.
    #[cfg_attr(not(test), expect(dead_code, reason = "held, not read"))]
    scratch: Vec<Arc<SharedMemory>>,
}

impl Memories {
    /// Running sums and results in `home`, the bucket itself, as far as they may lie there; else in fresh memory, of
    /// which only the pages of the column are ever touched.
    fn new(home: Option<Memory>, elements: usize, arithmetic: &Arithmetic) -> Result<Self> {
        let mut scratch = Vec::new();
        let mut fresh = |bytes: usize| -> Result<Memory> {
            let memory = SharedMemory::create("scratch", elements * bytes)?;
            scratch.push(Arc::clone(&memory));
            Ok(memory.memory())
        };
        let output = match home {
            Some(home) => home,
            None => fresh(arithmetic.dtype.bytes())?,
        };
        let partial = match arithmetic.round {
            Some(_) => fresh(arithmetic.partial_bytes)?,
            None => output,
        };
        Ok(Self { partial, output, scratch })
    }
}

/// The elements of one column: what is exchanged between the nodes, and what of it is this rank's own.
#[derive(Debug, Clone)]
pub(crate) struct Slices {
    /// By node.
    pub(crate) all: Vec<Range<usize>>,
    /// This rank's node.
    pub(crate) node: usize,
}

impl Slices {
    /// Elements that the engine says are finished.
    fn expected(&self, collective: Collective) -> usize {
        let total: usize = self.all.iter().map(Range::len).sum();
        match collective {
            Collective::AllReduce => total,
            Collective::ReduceScatter => self.all[self.node].len(),
            Collective::Gather => total - self.all[self.node].len(),
        }
    }
}

impl Column {
    /// The column of an operation on `bucket`, which no engine has taken yet.
    ///
    /// # Errors
    /// When there is no memory for running sums.
    pub(crate) fn new(
        bucket: &Arc<Inner>,
        generation: u32,
        collective: Collective,
        slices: &Slices,
        in_place: &[Memory],
    ) -> Result<Self> {
        let me = bucket.flags.me();
        let arithmetic = arithmetic(collective, bucket.dtype);
        let memories = Memories::new(in_place.get(me).copied(), bucket.elements, &arithmetic)?;
        let mut neighbours = in_place.to_vec();
        if collective == Collective::ReduceScatter {
            neighbours.clear();
        } else if !neighbours.is_empty() {
            neighbours.remove(me);
        }
        let open = AtomicUsize::new(slices.expected(collective) + 1);
        Ok(Self {
            bucket: Arc::clone(bucket),
            generation,
            collective,
            memories,
            neighbours,
            pieces: OnceLock::new(),
            engine: OnceLock::new(),
            open,
        })
    }

    /// Starts the way between the nodes.
    ///
    /// # Errors
    /// When the engine refuses.
    pub(crate) fn start(self: &Arc<Self>, cross: &Group, slices: &Slices) -> Result<Streamed> {
        let arithmetic = arithmetic(self.collective, self.bucket.dtype);
        let memories = (self.memories.partial, self.memories.output);
        let shared: Arc<dyn Stream> = Arc::<Self>::clone(self);
        let (kind, slices) = (self.collective.kind(), &slices.all);
        // SAFETY: the column, which the operation keeps, holds bucket and scratch; local ranks leave its elements alone
        // until they are final.
        let streamed = unsafe {
            cross.start_streamed(kind, arithmetic, slices, memories, (Some(shared), ()))
        }?;
        assert!(self.engine.set(streamed.advance()).is_ok(), "a column is started once");
        self.follow(streamed.order());
        Ok(streamed)
    }

    /// From now on each of these pieces is followed. What finishes before is not known: who asks for finished pieces
    /// names them before the start. Further calls change nothing.
    pub(crate) fn follow(&self, order: &[Range<usize>]) {
        let progress = |range: &Range<usize>| (range.start, Progress::default());
        let pieces = self.pieces.get_or_init(|| order.iter().map(progress).collect());
        assert_eq!(pieces.len(), order.len(), "the pieces of a column are those of its engine");
    }

    /// The order in which an engine would want the pieces of a column: that of [`Self::start`], for any local rank.
    ///
    /// # Errors
    /// When the engine would refuse.
    pub(crate) fn order(
        cross: &Group,
        collective: Collective,
        dtype: DType,
        slices: &[Range<usize>],
    ) -> Result<Vec<Range<usize>>> {
        Ok(cross.preview(collective.kind(), arithmetic(collective, dtype), slices)?)
    }

    /// Where this rank's part of these elements goes: the running sum, or the result of a gather.
    pub(crate) fn target_of(&self, range: &Range<usize>) -> Memory {
        if !self.collective.adds() {
            return self.output_of(range);
        }
        let bytes = size_of::<f32>();
        self.memories.partial.slice(range.start * bytes..range.end * bytes)
    }

    /// The result of these elements.
    pub(crate) fn output_of(&self, range: &Range<usize>) -> Memory {
        let bytes = self.bucket.dtype.bytes();
        self.memories.output.slice(range.start * bytes..range.end * bytes)
    }

    /// The node's sum of these elements lies in the running sum.
    pub(crate) fn contribute(&self, range: &Range<usize>) {
        self.piece(range).ready.store(true, Ordering::Release);
        self.engine.get().expect("started before the first sum").ring();
    }

    /// Whether the result of these elements has come from the other nodes.
    pub(crate) fn is_finished(&self, range: &Range<usize>) -> bool {
        self.piece(range).finished.load(Ordering::Acquire)
    }

    /// This rank has read and written all it had to inside the node.
    pub(crate) fn local_part_done(&self) {
        self.close(1);
    }

    fn close(&self, elements: usize) {
        let open = self.open.fetch_sub(elements, Ordering::AcqRel);
        assert!(open >= elements, "{elements} elements are finished, {open} were open");
        if open == elements {
            self.bucket.flags.set(Counter::Done, self.generation);
        }
    }

    fn piece(&self, range: &Range<usize>) -> &Progress {
        let pieces = self.pieces.get().expect("known before the first piece moves");
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
        let bytes = self.bucket.dtype.bytes();
        for neighbour in &self.neighbours {
            let to = neighbour.slice(elements.start * bytes..elements.end * bytes);
            // SAFETY: every local rank has entered this operation and leaves its bucket alone until we are done; this
            // rank alone writes these elements.
            unsafe { to.bytes_mut().copy_from_slice(from.bytes()) };
        }
        if !self.neighbours.is_empty() {
            self.bucket.flags.group().touched((self.neighbours.len() + 1) * from.len());
        }
        if let Some(pieces) = self.pieces.get() {
            pieces[&elements.start].finished.store(true, Ordering::Release);
        }
        self.close(elements.len());
    }
}

/// How elements of a column are added: fp32 running sums, added and rounded by the SIMD kernels. Gathering adds nothing.
fn arithmetic(collective: Collective, dtype: DType) -> Arithmetic {
    if !collective.adds() {
        let add = |_: &mut [u8], _: &[u8]| unreachable!("gathering adds nothing");
        return Arithmetic { dtype, partial_bytes: dtype.bytes(), widen: None, add, round: None };
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_finishes_what_this_rank_gets_from_it() {
        let slices = Slices { all: vec![0..10, 10..10, 10..17], node: 2 };
        let expected =
            [(Collective::AllReduce, 17), (Collective::ReduceScatter, 7), (Collective::Gather, 10)];
        for (collective, elements) in expected {
            assert_eq!(slices.expected(collective), elements, "{collective:?}");
        }
    }

    #[test]
    fn sums_lie_in_the_bucket_itself_where_its_type_holds_them() {
        let mut bucket = vec![0f32; 8];
        let home = Memory::of(&mut bucket);
        let of = |home, collective, dtype| {
            Memories::new(home, 8, &arithmetic(collective, dtype)).expect("memory")
        };
        for (collective, dtype, fresh) in [
            (Collective::AllReduce, DType::F32, 0),
            (Collective::Gather, DType::Bf16, 0),
            (Collective::ReduceScatter, DType::Bf16, 1),
        ] {
            let in_place = of(Some(home), collective, dtype);
            assert!(in_place.output.same_start(home), "{collective:?} {dtype:?}");
            assert_eq!(in_place.partial.same_start(home), fresh == 0, "{collective:?} {dtype:?}");
            let copied = of(None, collective, dtype);
            assert!(!copied.output.same_start(home), "{collective:?} {dtype:?}");
            assert_eq!(in_place.scratch.len(), fresh, "{collective:?} {dtype:?}");
            assert_eq!(copied.scratch.len(), fresh + 1, "{collective:?} {dtype:?}");
        }
    }

    #[test]
    fn the_kernels_of_the_way_between_nodes_add_in_fp32_and_round_once() {
        let (mut sum, came) = ([1f32, 1e8, f32::NAN], [2f32.powi(-9), 1.0, 1.0]);
        add(bytemuck::cast_slice_mut(&mut sum), bytemuck::cast_slice(&came));
        assert_eq!(sum.map(f32::to_bits)[..2], [1.0 + 2f32.powi(-9), 1e8].map(f32::to_bits));
        assert_eq!(sum[2].to_bits(), lampyris_comm::CANONICAL_NAN.to_bits());
        let mut rounded = [0u16; 3];
        let round = arithmetic(Collective::AllReduce, DType::Bf16).round.expect("it is narrower");
        round(bytemuck::cast_slice_mut(&mut rounded), bytemuck::cast_slice(&sum));
        assert_eq!(half::bf16::from_bits(rounded[0]).to_f32(), 1.0, "half a unit, to even");
    }
}
