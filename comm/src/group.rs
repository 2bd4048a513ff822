//! Collectives over any subset of ranks.
//!
//! All members call the same operations of a group in the same order; several may be in flight, and different groups
//! are independent. Each operation comes as a call that waits and as `start_...`, which takes the buffer and gives it
//! back from [`Pending::wait`]. How an operation is carried out is the table's choice.

use crate::communicator::Inner;
use crate::completion::{Completion, Pending};
use crate::dtype::{Arithmetic, DType, Element};
use crate::engine::operation::{Launch, Memories, Stream};
use crate::error::{Error, Result};
use crate::ids::{Node, Rank};
use crate::memory::{Memory, SharedMemory};
use crate::plan::{Request, plan};
use crate::schedule::even_slices;
use crate::table::{Algorithm, Table};
use crate::wire::header::Kind;
use bytemuck::Pod;
use std::any::Any;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Some ranks, in a fixed order, that run collectives together. Cheap to clone; clones count operations together.
#[derive(Debug, Clone)]
pub struct Group {
    inner: Arc<Inner>,
    members: Arc<[Rank]>,
    me: usize,
    id: u64,
    sequence: Arc<Mutex<u64>>,
    /// One sequence per ordered pair, for send and receive.
    pairs: Arc<Mutex<std::collections::HashMap<(usize, usize), u64>>>,
    shares: Arc<AtomicU64>,
    timeout: Duration,
    canonical: bool,
    chunk_bytes: usize,
    table: Arc<Table>,
}

impl Group {
    pub(crate) fn new(inner: Arc<Inner>, members: &[Rank]) -> Result<Self> {
        let own = inner.shared.rank;
        let me = members.iter().position(|rank| *rank == own).ok_or_else(|| {
            Error::Invalid(format!("rank {own} is not a member of the group {members:?}"))
        })?;
        let mut sorted = members.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let last = sorted.last().expect("this rank at least");
        if sorted.len() != members.len() || last.index() >= inner.shared.ranks {
            return Err(Error::Invalid(format!("a rank twice or none such in {members:?}")));
        }
        let nth = {
            let mut groups = inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
            let count = groups.entry(members.to_vec()).or_insert(0);
            *count += 1;
            *count
        };
        let mut hasher = blake3::Hasher::new();
        members.iter().for_each(|rank| {
            hasher.update(&rank.0.to_le_bytes());
        });
        let digest = hasher.update(&nth.to_le_bytes()).finalize();
        let id = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("8 of 32 bytes"));
        Ok(Self {
            members: members.into(),
            me,
            id,
            sequence: Arc::default(),
            pairs: Arc::default(),
            shares: Arc::default(),
            timeout: inner.options.operation_timeout,
            canonical: false,
            chunk_bytes: inner.options.chunk_bytes,
            table: Arc::new(inner.options.table.clone()),
            inner,
        })
    }

    /// This rank's index among the members.
    pub fn member(&self) -> usize {
        self.me
    }

    /// The members, in order.
    pub fn members(&self) -> &[Rank] {
        &self.members
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never: this rank is a member.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Its number: equal on all members, different from all other groups of the communicator.
    pub fn number(&self) -> u64 {
        self.id
    }

    /// The node of each member.
    pub fn nodes(&self) -> Vec<Node> {
        self.members.iter().map(|rank| self.inner.nodes[rank.index()]).collect()
    }

    /// The same group whose further operations have this deadline.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same group whose sums add as the balanced binary tree over its members (the canonical order).
    #[must_use]
    pub fn with_canonical(&self, canonical: bool) -> Self {
        Self { canonical, ..self.clone() }
    }

    /// The same group with pieces of at most this many bytes. No result depends on it.
    #[must_use]
    pub fn with_chunk_bytes(&self, chunk_bytes: usize) -> Self {
        Self { chunk_bytes, ..self.clone() }
    }

    /// The same group that always uses this algorithm for these operations.
    #[must_use]
    pub fn with_algorithm(&self, kind: Kind, algorithm: Algorithm) -> Self {
        let mut table = (*self.table).clone();
        table.always(kind, algorithm);
        Self { table: Arc::new(table), ..self.clone() }
    }

    /// The cause when the communicator has failed.
    ///
    /// # Errors
    /// That cause.
    pub fn check(&self) -> Result<()> {
        self.inner.shared.check()
    }

    /// The counters of this rank's communicator.
    pub fn counters(&self) -> &crate::shared::Counters {
        &self.inner.shared.counters
    }

    /// The deadline of this group's operations.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Fails the communicator of all ranks with this cause, seen by a layer above.
    pub fn fail(&self, cause: Error) {
        self.inner.shared.fail(cause);
    }

    /// Returns when every member has called it.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn barrier(&self) -> Result<()> {
        let mut count = [1i64];
        self.reduction(Kind::Barrier, &mut count, 0)?.wait()?;
        let members = i64::try_from(self.len()).expect("few");
        assert_eq!(count, [members], "a barrier counts its members");
        Ok(())
    }

    /// The root's buffer to all members.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn broadcast<T: Pod>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        let memory = Memory::of(buffer);
        self.launch_bytes(Kind::Broadcast, memory, memory.len(), root, ())?.wait()
    }

    /// Every member's `mine`, in member order, in `all` (`mine.len() * members` elements).
    ///
    /// # Errors
    /// When the lengths do not fit or the communicator fails.
    pub fn all_gather<T: Pod>(&self, mine: &[T], all: &mut [T]) -> Result<()> {
        if all.len() != mine.len() * self.len() {
            let (have, want) = (all.len(), mine.len() * self.len());
            return Err(Error::Invalid(format!(
                "all-gather into {have} instead of {want} elements"
            )));
        }
        all[self.me * mine.len()..][..mine.len()].copy_from_slice(mine);
        let bytes = size_of_val(mine);
        let slices: Vec<Range<usize>> =
            (0..self.len()).map(|m| m * bytes..(m + 1) * bytes).collect();
        let memory = Memory::of(all);
        self.gather(memory, &slices, ())?.wait()
    }

    /// The sum of all members' buffers, on all members.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn all_reduce<T: Element>(&self, buffer: &mut [T]) -> Result<()> {
        self.reduction(Kind::AllReduce, buffer, 0)?.wait()
    }

    /// As [`Self::all_reduce`], without waiting.
    ///
    /// # Errors
    /// When the request is refused; failures while it runs come from `wait`.
    pub fn start_all_reduce<T, B>(&self, buffer: B) -> Result<Pending<B>>
    where
        T: Element,
        B: AsMut<[T]> + Send + 'static,
    {
        let mut buffer = Box::new(buffer);
        let slice = (*buffer).as_mut();
        let (memory, elements) = (Memory::of(slice), slice.len());
        let request = self.request(Kind::AllReduce, T::ARITHMETIC, elements, 0);
        let launched = self.launch_sum(&request, memory, buffer)?;
        Ok(Pending::new(launched.0))
    }

    /// The sum of all members' buffers, on the root; the other buffers are left with partial sums.
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn reduce<T: Element>(&self, buffer: &mut [T], root: usize) -> Result<()> {
        self.reduction(Kind::Reduce, buffer, root)?.wait()
    }

    /// The sum of all members' buffers, each member's even slice of it in place; the rest is left with partial sums.
    /// Returns the slice: see [`even_slices`].
    ///
    /// # Errors
    /// When the communicator fails.
    pub fn reduce_scatter<T: Element>(&self, buffer: &mut [T]) -> Result<Range<usize>> {
        let slice = even_slices(buffer.len(), self.len())[self.me].clone();
        self.reduction(Kind::ReduceScatter, buffer, 0)?.wait()?;
        Ok(slice)
    }

    /// Part `m` of `input` (of `input_counts[m]` elements) to member `m`; what member `m` sends here becomes part `m`
    /// of `output`. Counts may be zero; both sides must agree on them, which is checked.
    ///
    /// # Errors
    /// When counts and lengths do not fit or the communicator fails.
    pub fn all_to_all<T: Pod>(
        &self,
        input: (&[T], &[usize]),
        output: (&mut [T], &[usize]),
    ) -> Result<()> {
        let element = size_of::<T>();
        let cut = |counts: &[usize], len: usize| -> Result<Vec<Range<usize>>> {
            if counts.len() != self.len() || counts.iter().sum::<usize>() != len {
                return Err(Error::Invalid(format!("all-to-all of {len} elements as {counts:?}")));
            }
            let mut at = 0;
            Ok(counts
                .iter()
                .map(|count| {
                    let start = at;
                    at += count * element;
                    start..at
                })
                .collect())
        };
        let (sends, receives) = (cut(input.1, input.0.len())?, cut(output.1, output.0.len())?);
        let (own_in, own_out) = (sends[self.me].clone(), receives[self.me].clone());
        if own_in.len() != own_out.len() {
            return Err(Error::Invalid("a member's counts for itself differ".into()));
        }
        let bytes: &[u8] = bytemuck::cast_slice(input.0);
        bytemuck::cast_slice_mut::<T, u8>(output.0)[own_out].copy_from_slice(&bytes[own_in]);
        let (from, to) = (Memory::of_const(input.0), Memory::of(output.0));
        self.exchange((from, &sends), (to, &receives), ())?.wait()
    }

    /// One message to a member, which must receive it. Messages between two members keep their order.
    ///
    /// # Errors
    /// When the communicator fails or the lengths differ.
    pub fn send<T: Pod>(&self, buffer: &[T], to: usize) -> Result<()> {
        let memory = Memory::of_const(buffer);
        self.point_to_point((self.me, to), memory, ())?.wait()
    }

    /// One message from a member.
    ///
    /// # Errors
    /// When the communicator fails or the lengths differ.
    pub fn receive<T: Pod>(&self, buffer: &mut [T], from: usize) -> Result<()> {
        self.point_to_point((from, self.me), Memory::of(buffer), ())?.wait()
    }

    /// As [`Self::send`], without waiting.
    ///
    /// # Errors
    /// When the request is refused.
    pub fn start_send<T: Pod, B>(&self, buffer: B, to: usize) -> Result<Pending<B>>
    where
        B: AsRef<[T]> + Send + 'static,
    {
        let buffer = Box::new(buffer);
        let memory = Memory::of_const((*buffer).as_ref());
        Ok(Pending::new(self.point_to_point((self.me, to), memory, buffer)?.0))
    }

    /// As [`Self::receive`], without waiting.
    ///
    /// # Errors
    /// When the request is refused.
    pub fn start_receive<T: Pod, B>(&self, buffer: B, from: usize) -> Result<Pending<B>>
    where
        B: AsMut<[T]> + Send + 'static,
    {
        let mut buffer = Box::new(buffer);
        let memory = Memory::of((*buffer).as_mut());
        Ok(Pending::new(self.point_to_point((from, self.me), memory, buffer)?.0))
    }

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
        let (launch, completion) = self.prepare(&request, memories, stream, keep)?;
        let order = launch.schedule.pieces.iter().map(|piece| piece.range.clone()).collect();
        let inner = Arc::clone(&self.inner);
        self.submit(launch);
        Ok(Streamed { completion, order, inner })
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

    fn reduction<T: Element>(&self, kind: Kind, buffer: &mut [T], root: usize) -> Result<Waiting> {
        let (memory, elements) = (Memory::of(buffer), buffer.len());
        self.launch_sum(&self.request(kind, T::ARITHMETIC, elements, root), memory, ())
    }

    fn launch_sum<K: Any + Send>(
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

    fn launch_bytes(
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

    fn gather(&self, memory: Memory, slices: &[Range<usize>], keep: ()) -> Result<Waiting> {
        let request = self.request(Kind::AllGather, BYTES, memory.len(), 0);
        let request = Request { slices: Some(slices), ..request };
        let memories = Memories { input: memory, partial: memory, output: memory };
        self.run(&request, memories, keep.into(), Vec::new())
    }

    fn exchange(
        &self,
        (input, sends): (Memory, &[Range<usize>]),
        (output, receives): (Memory, &[Range<usize>]),
        keep: (),
    ) -> Result<Waiting> {
        let request = self.request(Kind::AllToAll, BYTES, 0, 0);
        let request = Request { exchange: Some((sends, receives)), ..request };
        let memories = Memories { input, partial: output, output };
        self.run(&request, memories, keep.into(), Vec::new())
    }

    fn point_to_point<K: Any + Send>(
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

    fn request(
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

    fn prepare<K: Any + Send>(
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
            scratch: Vec::new(),
        };
        Ok((launch, completion))
    }

    /// Numbers the operation and hands it over, under one lock: the order of numbers is the order of entry.
    fn submit(&self, mut launch: Launch) {
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
enum Keep<K> {
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
struct Waiting(Arc<Completion>);

impl Waiting {
    fn wait(self) -> Result<()> {
        self.0.wait()
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

    /// Tells the engine to ask `ready` again.
    pub fn advance(&self) {
        self.inner.queue.advance();
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
}
