//! The calls: a reducer over the ranks of a group, its buckets, and the reductions that it starts.

use crate::bucket::Bucket;
use crate::device::DeviceCopy;
use crate::error::Result;
use crate::flags::{Counter, Flags, Turn};
use crate::operation::Operation;
use crate::options::Options;
use crate::route::Collective;
use crate::staging::{Copied, InPlace};
use crate::topology::{Topology, check_shards};
use crate::worker::{Ticket, Worker};
use lampyris_comm::schedule::even_slices;
use lampyris_comm::{Communicator, DType, Rank, Streamed};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// What the working thread's jobs return: what still runs between the nodes.
type LocalEnd = Result<Option<Streamed>>;

/// Sums and gathers buckets over the ranks of one group.
///
/// Every rank of the group makes the reducer, its buckets and its reductions in the same order.
#[derive(Debug)]
pub struct HfReduce {
    topology: Arc<Topology>,
    worker: Worker<LocalEnd>,
    chunk_bytes: usize,
}

impl HfReduce {
    /// A reducer over these ranks, which all make it with the same list. Ranks of a node follow each other, equally many
    /// per node.
    ///
    /// # Errors
    /// When the ranks do not form such a grid, or canonical order is asked for other than a power of two.
    pub fn new(comm: &Communicator, members: &[Rank], options: &Options) -> Result<Self> {
        let topology = Arc::new(Topology::new(comm, members, options)?);
        let worker = Worker::start("hfreduce")?;
        Ok(Self { topology, worker, chunk_bytes: options.chunk_bytes })
    }

    /// A bucket of zeros in shared memory. Collective over the local ranks.
    ///
    /// # Errors
    /// When there is no memory or a local rank does not do the same.
    pub fn bucket(&self, dtype: DType, elements: usize) -> Result<Bucket> {
        let local = &self.topology.local;
        let flags = Flags::share(local)?;
        let staging = InPlace::share(local, flags.clone(), dtype, elements)?;
        Ok(Bucket::new(dtype, elements, flags, Box::new(staging)))
    }

    /// A bucket of `elements` elements of `dtype` in a tensor that `device` copies to and from the host. Collective over
    /// the local ranks.
    ///
    /// # Errors
    /// When there is no memory or a local rank does not do the same.
    ///
    /// # Examples
    ///
    /// One rank alone owns every shard, so nothing changes; with more of them this is a step of ZeRO-1.
    ///
    /// ```
    /// use lampyris_comm::{Communicator, DType, Memory, Options as CommOptions};
    /// use lampyris_hfreduce::{HfReduce, HostTensor, Options, Result};
    ///
    /// # fn main() -> Result<()> {
    /// let (ranks, _network) = Communicator::fakes(1, 1, 0, &CommOptions::default())?;
    /// let reducer = HfReduce::new(&ranks[0], ranks[0].world().members(), &Options::default())?;
    /// let tensor = HostTensor { data: vec![0.5f32; 100] };
    /// let bucket = reducer.private_bucket(DType::F32, 100, Box::new(tensor))?;
    /// reducer.reduce_scatter(&bucket, &[0..100])?.wait()?;
    /// // ... update the elements of the own shard ...
    /// reducer.gather(&bucket, &[0..100])?.wait()?;
    /// let mut found = vec![0f32; 100];
    /// let to = Memory::of(&mut found);
    /// bucket.with_device(|device| device.copy_to_host(0..100, to)).expect("a private bucket")?;
    /// assert_eq!(found, [0.5; 100]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn private_bucket(
        &self,
        dtype: DType,
        elements: usize,
        device: Box<dyn DeviceCopy>,
    ) -> Result<Bucket> {
        let local = &self.topology.local;
        let flags = Flags::share(local)?;
        let staging = Copied::share(local, flags.clone(), dtype, device, self.chunk_bytes)?;
        Ok(Bucket::new(dtype, elements, flags, Box::new(staging)))
    }

    /// The sum of all ranks' buckets, in all of them.
    ///
    /// # Errors
    /// When the request is refused; failures while it runs come from [`Reduction::wait`].
    pub fn all_reduce(&self, bucket: &Bucket) -> Result<Reduction> {
        let shards = even_slices(bucket.elements(), self.topology.members());
        self.start(bucket, Collective::AllReduce, shards)
    }

    /// The sum of all ranks' buckets, shard `r` in rank `r`'s bucket. What the other elements hold afterwards is not
    /// specified.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn reduce_scatter(&self, bucket: &Bucket, shards: &[Range<usize>]) -> Result<Reduction> {
        self.start(bucket, Collective::ReduceScatter, shards.to_vec())
    }

    /// Shard `r` of rank `r`'s bucket, in all buckets.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn gather(&self, bucket: &Bucket, shards: &[Range<usize>]) -> Result<Reduction> {
        self.start(bucket, Collective::Gather, shards.to_vec())
    }

    fn start(
        &self,
        bucket: &Bucket,
        collective: Collective,
        shards: Vec<Range<usize>>,
    ) -> Result<Reduction> {
        self.topology.local.check()?;
        check_shards(&shards, self.topology.members(), bucket.elements())?;
        let inner = Arc::clone(&bucket.inner);
        let turn = inner.take();
        inner.flags.set(Counter::Entered, turn.generation);
        let operation = Operation { bucket: inner, collective, shards, turn };
        let topology = Arc::clone(&self.topology);
        let local = self.worker.push(move || operation.run(&topology));
        Ok(Reduction { bucket: bucket.clone(), turn, local })
    }
}

/// A running reduction; the bucket's memory belongs to it until [`Self::wait`] returns.
#[must_use = "the bucket belongs to the reduction until wait()"]
#[derive(Debug)]
pub struct Reduction {
    bucket: Bucket,
    turn: Turn,
    local: Ticket<LocalEnd>,
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
        let inner = Arc::clone(&self.bucket.inner);
        let ended = self.finish();
        inner.give_back();
        ended
    }

    fn finish(self) -> Result<Instant> {
        let local = self.local.wait()?;
        let ended = match local.value? {
            Some(streamed) => streamed.ended()?,
            None => local.at,
        };
        // Others may still read or write this bucket until their part is done.
        self.bucket.inner.flags.wait_all(Counter::Done, self.turn)?;
        Ok(ended)
    }
}
