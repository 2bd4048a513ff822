//! The reduction itself: inside the node, between nodes, back.
//!
//! Every rank sums one shard of every node's column (see `layout.rs`): it reads that shard from all local buckets, adds
//! it in registers, and, when there is one node only, writes the result to all of them: two sweeps of memory in total.
//! With more nodes, pieces of the sum leave for the counterparts on the other nodes as they are made.

#![allow(unsafe_code, reason = "runs kernels on memory shared with other processes")]

use crate::bucket::{Bucket, Inner, Staging};
use crate::copying::{Copying, DeviceCopy, Plan};
use crate::error::{Error, Result};
use crate::flags::{Counter, Flags};
use crate::kernels::{Level, MAX_TREE, Order, Sum};
use crate::layout::{Grid, check_shards};
use crate::streaming::{Column, Sums, arithmetic};
use crate::work::{Job, Outcome, Work};
use lampyris_comm::schedule::even_slices;
use lampyris_comm::{
    Algorithm, Arithmetic, Communicator, DType, Group, Kind, Memory, Rank, SharedMemory, Streamed,
};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Settings of a reducer. Equal on all its ranks.
#[derive(Debug, Clone)]
pub struct Options {
    /// Add as one balanced binary tree over the ranks (canonical reduction): powers of two only.
    pub canonical: bool,
    /// Most bytes of one piece of a private bucket.
    pub chunk_bytes: usize,
    /// Instructions to use; by default the best there are.
    pub level: Option<Level>,
    /// Deadline of one reduction; by default the communicator's.
    pub timeout: Option<Duration>,
    /// The algorithm between nodes; by default the table's choice.
    pub algorithm: Option<Algorithm>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            canonical: true,
            chunk_bytes: 256 << 10,
            level: None,
            timeout: None,
            algorithm: None,
        }
    }
}

/// Reduces buckets over the ranks of one group.
#[derive(Debug)]
pub struct HfReduce {
    pub(crate) machine: Arc<Machine>,
    work: Work,
    chunk_bytes: usize,
}

/// What the working thread needs.
#[derive(Debug)]
pub(crate) struct Machine {
    grid: Grid,
    /// The ranks of this node.
    local: Group,
    /// One rank per node.
    cross: Group,
    members: usize,
    order: Order,
    level: Level,
}

/// What to do with a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    AllReduce,
    ReduceScatter,
    Gather,
}

impl HfReduce {
    /// A reducer over these ranks, which all make it with the same list. Ranks of a node follow each other, equally many
    /// per node.
    ///
    /// # Errors
    /// When the ranks do not form such a grid, or canonical order is asked for other than a power of two.
    pub fn new(comm: &Communicator, members: &[Rank], options: &Options) -> Result<Self> {
        let all = comm.group(members)?;
        let grid = Grid::of(&all.nodes(), all.member())?;
        let powers = grid.nodes.is_power_of_two() && grid.locals.is_power_of_two();
        if options.canonical && (!powers || grid.locals > MAX_TREE) {
            return Err(Error::Invalid(format!(
                "canonical reduction over {} nodes of {} ranks: both must be powers of two (at most {MAX_TREE} ranks \
                 per node); choose reduction = \"fast\"",
                grid.nodes, grid.locals
            )));
        }
        let timeout = options.timeout.unwrap_or(comm.options().operation_timeout);
        let local = comm.group(&grid.neighbours(members))?.with_timeout(timeout);
        let cross = comm.group(&grid.counterparts(members))?.with_timeout(timeout);
        let mut cross = cross.with_canonical(options.canonical);
        if let Some(algorithm) = options.algorithm {
            cross = cross.with_algorithm(Kind::AllReduce, algorithm);
        }
        let order = if options.canonical { Order::Tree } else { Order::Fold };
        let level = options.level.unwrap_or_else(Level::detect);
        if !level.available() {
            return Err(Error::Invalid(format!("this processor has no {level:?}")));
        }
        let machine =
            Arc::new(Machine { grid, local, cross, members: members.len(), order, level });
        let work = Work::start(Arc::clone(&machine))?;
        Ok(Self { machine, work, chunk_bytes: options.chunk_bytes })
    }

    /// The grid of its ranks.
    pub fn grid(&self) -> &Grid {
        &self.machine.grid
    }

    /// A bucket of zeros in shared memory. Collective over the local ranks.
    ///
    /// # Errors
    /// When there is no memory or a local rank does not do the same.
    pub fn bucket(&self, dtype: DType, elements: usize) -> Result<Bucket> {
        let own = SharedMemory::create("bucket", elements * dtype.bytes())?;
        own.populate();
        let all = self.machine.local.share(&own)?;
        let flags = Flags::share(&self.machine.local)?;
        if all.iter().any(|memory| memory.len() != own.len()) {
            let sizes: Vec<usize> = all.iter().map(|memory| memory.len()).collect();
            return Err(Error::Invalid(format!("the local ranks' buckets have {sizes:?} bytes")));
        }
        Ok(Bucket::new(dtype, elements, Staging::InPlace(all), flags))
    }

    /// A bucket whose elements a copier moves to and from the host. Collective over the local ranks.
    ///
    /// # Errors
    /// When there is no memory or a local rank does not do the same.
    pub fn private_bucket(
        &self,
        dtype: DType,
        elements: usize,
        device: Box<dyn DeviceCopy>,
    ) -> Result<Bucket> {
        let flags = Flags::share(&self.machine.local)?;
        let copying = Copying::share(&self.machine.local, device, self.chunk_bytes)?;
        let staging = Staging::Copying(Box::new(copying.into()));
        Ok(Bucket::new(dtype, elements, staging, flags))
    }

    /// The sum of all ranks' buckets, in all of them.
    ///
    /// # Errors
    /// When the request is refused; failures while it runs come from [`Reduction::wait`].
    pub fn all_reduce(&self, bucket: &Bucket) -> Result<Reduction> {
        let shards = even_slices(bucket.elements(), self.machine.members);
        self.start(bucket, What::AllReduce, shards)
    }

    /// The sum of all ranks' buckets, shard `r` in rank `r`'s bucket. What the other elements hold afterwards is not
    /// specified.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn reduce_scatter(&self, bucket: &Bucket, shards: &[Range<usize>]) -> Result<Reduction> {
        self.start(bucket, What::ReduceScatter, shards.to_vec())
    }

    /// Shard `r` of rank `r`'s bucket, in all buckets.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn gather(&self, bucket: &Bucket, shards: &[Range<usize>]) -> Result<Reduction> {
        self.start(bucket, What::Gather, shards.to_vec())
    }

    /// The sum of all ranks' buckets, in the root's.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn reduce(&self, bucket: &Bucket, root: usize) -> Result<Reduction> {
        self.reduce_scatter(bucket, &self.all_to(root, bucket.elements())?)
    }

    /// The root's bucket, in all of them.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn broadcast(&self, bucket: &Bucket, root: usize) -> Result<Reduction> {
        self.gather(bucket, &self.all_to(root, bucket.elements())?)
    }

    fn all_to(&self, root: usize, elements: usize) -> Result<Vec<Range<usize>>> {
        if root >= self.machine.members {
            return Err(Error::Invalid(format!("root {root} of {}", self.machine.members)));
        }
        let shard = |rank| if rank == root { 0..elements } else { 0..0 };
        Ok((0..self.machine.members).map(shard).collect())
    }

    fn start(&self, bucket: &Bucket, what: What, shards: Vec<Range<usize>>) -> Result<Reduction> {
        self.machine.local.check()?;
        check_shards(&shards, self.machine.members, bucket.elements())?;
        if what != What::AllReduce && matches!(bucket.inner.staging, Staging::Copying(_)) {
            return Err(Error::Invalid(
                "a private bucket can be all-reduced only; put it into shared memory".into(),
            ));
        }
        let inner = Arc::clone(&bucket.inner);
        assert!(!inner.busy.swap(true, Ordering::AcqRel), "a reduction of this bucket runs");
        let generation = inner.generation.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        inner.flags.set(Counter::Entered, generation);
        let until = inner.flags.deadline();
        let outcome = Arc::new(Outcome::default());
        let job = Job { inner, what, shards, generation, until, outcome: Arc::clone(&outcome) };
        self.work.push(job);
        let (bucket, work) = (bucket.clone(), self.work.door());
        Ok(Reduction { bucket, generation, until, outcome, work })
    }
}

/// A running reduction; the bucket's memory belongs to it until [`Self::wait`] returns.
#[must_use = "the bucket belongs to the reduction until wait()"]
#[derive(Debug)]
pub struct Reduction {
    bucket: Bucket,
    generation: u32,
    until: Instant,
    outcome: Arc<Outcome>,
    work: crate::work::Door,
}

impl Reduction {
    /// Waits for the end. Helps: sums on the calling thread when the working thread has not begun.
    ///
    /// # Errors
    /// Why it failed: a peer is gone, late, or runs something else.
    pub fn wait(self) -> Result<()> {
        self.wait_for_end().map(drop)
    }

    /// As [`Self::wait`]; says when this rank's part had ended, which may be long ago.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_for_end(self) -> Result<Instant> {
        let inner = &self.bucket.inner;
        let ended = self.work.finish(&self.outcome).and_then(|(ended, streamed)| {
            let ended = streamed.map_or(Ok(ended), |streamed| streamed.ended())?;
            // Others may still read or write this bucket until their part is done.
            inner.flags.wait_all(Counter::Done, self.generation, self.until)?;
            Ok(ended)
        });
        inner.busy.store(false, Ordering::Release);
        ended
    }
}

impl Machine {
    /// Does this rank's part of a job; what it returns still runs between the nodes.
    pub(crate) fn run(&self, job: &Job) -> Result<Option<Streamed>> {
        match &job.inner.staging {
            Staging::Copying(copying) => {
                let mut copying = copying.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                self.run_copying(&mut copying, job)
            }
            Staging::InPlace(buckets) => {
                let flags = &job.inner.flags;
                flags.wait_all(Counter::Entered, job.generation, job.until)?;
                let memories: Vec<Memory> = buckets.iter().map(|bucket| bucket.memory()).collect();
                if self.grid.nodes == 1 {
                    self.run_in_node(job, &memories)?;
                    flags.set(Counter::Done, job.generation);
                    return Ok(None);
                }
                self.run_between_nodes(job, &memories).map(Some)
            }
        }
    }

    fn run_in_node(&self, job: &Job, memories: &[Memory]) -> Result<()> {
        let me = self.grid.local;
        let shard = &job.shards[me];
        let own = &memories[me..=me];
        for range in pieces_of(shard, CHECK_ELEMENTS) {
            match job.what {
                What::AllReduce => self.sum(job.inner.dtype, memories, memories, &range),
                What::ReduceScatter => self.sum(job.inner.dtype, memories, own, &range),
                What::Gather => self.copy(job.inner.dtype, memories, &range),
            }
            self.local.check()?;
        }
        Ok(())
    }

    /// Sums `range` of the inputs into the outputs, all in the bucket's type.
    fn sum(&self, dtype: DType, inputs: &[Memory], outputs: &[Memory], range: &Range<usize>) {
        let cut =
            |memory: &Memory| memory.slice(range.start * dtype.bytes()..range.end * dtype.bytes());
        let inputs: Vec<Memory> = inputs.iter().map(cut).collect();
        let outputs: Vec<Memory> = outputs.iter().map(cut).collect();
        let (inputs, outputs) = (&inputs[..], &outputs[..]);
        let sum = Sum { inputs, outputs, input: dtype, output: dtype, order: self.order };
        // SAFETY: all local ranks have entered and leave their buckets alone until everybody is done; each rank alone
        // touches its shard of them.
        unsafe { sum.run(self.level) };
        self.local.touched(sum.bytes());
    }

    /// Copies `range` of this rank's bucket to its neighbours.
    fn copy(&self, dtype: DType, memories: &[Memory], range: &Range<usize>) {
        let cut =
            |memory: &Memory| memory.slice(range.start * dtype.bytes()..range.end * dtype.bytes());
        let from = cut(&memories[self.grid.local]);
        for to in others(memories, self.grid.local).iter().map(cut) {
            // SAFETY: as in `sum`.
            unsafe { to.bytes_mut().copy_from_slice(from.bytes()) };
        }
        self.local.touched(self.grid.locals * from.len());
    }

    fn run_between_nodes(&self, job: &Job, memories: &[Memory]) -> Result<Streamed> {
        let (inner, me) = (&job.inner, self.grid.local);
        let slices = self.grid.column(&job.shards, me);
        let own = memories[me];
        let sums = job.what != What::Gather;
        let arithmetic = if sums { arithmetic(inner.dtype) } else { copies(inner.dtype) };
        let scratch = self.scratch(sums && arithmetic.round.is_some(), inner.elements, 4)?;
        let partial = scratch.as_ref().map_or(own, |scratch| scratch.memory());
        let total: usize = slices.iter().map(Range::len).sum();
        let (neighbours, expected) = match job.what {
            What::AllReduce => (others(memories, me), total),
            What::ReduceScatter => (Vec::new(), slices[self.grid.node].len()),
            What::Gather => (others(memories, me), total - slices[self.grid.node].len()),
        };
        let sums_of_column = Sums {
            partial,
            partial_bytes: arithmetic.partial_bytes,
            output: own,
            scratch: scratch.into_iter().collect(),
        };
        let operation = (Arc::clone(inner), job.generation);
        let column = Arc::new(Column::new(operation, sums_of_column, neighbours, expected));
        let streamed = stream(&self.cross, job.what, arithmetic, (&slices, &column))?;
        if sums {
            // One rank per node, and its bucket is the running sum already.
            let nothing_to_add = self.grid.locals == 1 && arithmetic.round.is_none();
            for range in streamed.order() {
                if nothing_to_add {
                    column.contribute(range);
                    continue;
                }
                let cut = |memory: &Memory| {
                    let bytes = inner.dtype.bytes();
                    memory.slice(range.start * bytes..range.end * bytes)
                };
                let inputs: Vec<Memory> = memories.iter().map(cut).collect();
                let outputs = [column.partial_of(range)];
                let (inputs, outputs) = (&inputs[..], &outputs[..]);
                let (input, output, order) = (inner.dtype, DType::F32, self.order);
                let sum = Sum { inputs, outputs, input, output, order };
                // SAFETY: as in `Self::sum`; the running sum is this rank's bucket or scratch.
                unsafe { sum.run(self.level) };
                self.local.touched(sum.bytes());
                column.contribute(range);
                self.local.check()?;
            }
        } else {
            self.copy(inner.dtype, memories, &slices[self.grid.node]);
        }
        column.local_part_done();
        Ok(streamed)
    }

    fn run_copying(&self, copying: &mut Copying, job: &Job) -> Result<Option<Streamed>> {
        let inner = &job.inner;
        let arithmetic = arithmetic(inner.dtype);
        let columns: Vec<Vec<Range<usize>>> =
            (0..self.grid.locals).map(|local| self.grid.column(&job.shards, local)).collect();
        let mut plan = Plan {
            inner,
            grid: &self.grid,
            order: self.order,
            level: self.level,
            pieces: Vec::new(),
            column: None,
            until: job.until,
        };
        if self.grid.nodes == 1 {
            let most = copying.piece_elements(inner.dtype);
            plan.pieces =
                columns.iter().map(|column| pieces_of(&column[0], most).collect()).collect();
            copying.run(&plan)?;
            inner.flags.set(Counter::Done, job.generation);
            return Ok(None);
        }
        let partial = self.scratch(true, inner.elements, 4)?.expect("asked for");
        let result =
            self.scratch(arithmetic.round.is_some(), inner.elements, inner.dtype.bytes())?;
        let output = result.as_ref().unwrap_or(&partial).memory();
        let slices = &columns[self.grid.local];
        let total: usize = slices.iter().map(Range::len).sum();
        let sums = Sums {
            partial: partial.memory(),
            partial_bytes: arithmetic.partial_bytes,
            output,
            scratch: std::iter::once(partial).chain(result).collect(),
        };
        let operation = (Arc::clone(inner), job.generation);
        let column = Arc::new(Column::new(operation, sums, Vec::new(), total));
        let cross = self.cross.with_chunk_bytes(copying.piece_elements(inner.dtype) * 4);
        let previews =
            columns.iter().map(|column| cross.preview(Kind::AllReduce, arithmetic, column));
        plan.pieces = previews.collect::<std::result::Result<_, _>>()?;
        let streamed = stream(&cross, What::AllReduce, arithmetic, (slices, &column))?;
        plan.column = Some(&column);
        copying.run(&plan)?;
        column.local_part_done();
        Ok(Some(streamed))
    }

    /// Private memory indexed like the bucket; only the pages of this rank's column are ever touched.
    fn scratch(
        &self,
        needed: bool,
        elements: usize,
        bytes: usize,
    ) -> Result<Option<Arc<SharedMemory>>> {
        if !needed {
            return Ok(None);
        }
        Ok(Some(SharedMemory::create("scratch", elements * bytes)?))
    }
}

/// Starts the way between the nodes; the column owns all memory that it needs.
fn stream(
    cross: &Group,
    what: What,
    arithmetic: Arithmetic,
    (slices, column): (&[Range<usize>], &Arc<Column>),
) -> Result<Streamed> {
    let kind = match what {
        What::AllReduce => Kind::AllReduce,
        What::ReduceScatter => Kind::ReduceScatter,
        What::Gather => Kind::AllGather,
    };
    let memories = column.memories();
    let shared: Arc<dyn lampyris_comm::Stream> = Arc::<Column>::clone(column);
    // SAFETY: the column, which the operation keeps, holds bucket and scratch; local ranks leave its elements alone
    // until they are final.
    let streamed =
        unsafe { cross.start_streamed(kind, arithmetic, slices, memories, (Some(shared), ())) }?;
    column.attach(streamed.order(), streamed.advance());
    Ok(streamed)
}

/// How much is summed between two looks at the communicator's health: a millisecond or two.
const CHECK_ELEMENTS: usize = 4 << 20;

fn pieces_of(range: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (start, end) = (range.start, range.end);
    (start..end).step_by(most.max(1)).map(move |at| at..(at + most).min(end))
}

fn others(memories: &[Memory], me: usize) -> Vec<Memory> {
    memories.iter().enumerate().filter(|(at, _)| *at != me).map(|(_, memory)| *memory).collect()
}

/// Elements that are moved, not summed.
fn copies(dtype: DType) -> Arithmetic {
    let add = |_: &mut [u8], _: &[u8]| unreachable!("gathering adds nothing");
    Arithmetic { dtype, partial_bytes: dtype.bytes(), widen: None, add, round: None }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {:?}", self.elements, self.dtype)
    }
}
