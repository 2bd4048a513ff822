//! Reduction of gradient buckets through host memory: Fire-Flyer's HFReduce (section IV).
//!
//! [`HfReduce`] sums the buckets of all ranks: inside the node by one fused pass over all local buckets ([`kernels`]),
//! between nodes by the collectives of `lampyris_comm`, piece by piece and overlapped, and back. A [`Bucket`] lies in
//! shared memory, or is private and copied through rings ([`DeviceCopy`]); both know the same collectives and give the
//! same bits.
//!
//! From the bottom up: `topology` (who reduces what), `route` (which pieces), `flags` (how the local ranks follow each
//! other), `staging` (how pieces reach the processor), `column` (the way between nodes), `operation` (the loop over all
//! of these), `worker` (the thread that runs it), `reducer` (the calls).
//!
//! Not here: transports and algorithms between nodes (crate `comm`), the device itself (crate `torch`), a rank's own part
//! of a canonical reduction (crate `trainer`), benches (crate `bench`).
//!
//! Two ranks, here threads of one process, sum a bucket that lies in shared memory:
//!
//! ```
//! use lampyris_comm::{Communicator, DType, Options as CommOptions};
//! use lampyris_hfreduce::{HfReduce, Options, Result};
//!
//! fn rank(comm: &Communicator) -> Result<Vec<f32>> {
//!     let reducer = HfReduce::new(comm, comm.world().members(), &Options::default())?;
//!     let bucket = reducer.bucket(DType::F32, 1000)?;
//!     bucket.with(|elements: &mut [f32]| elements.fill(1.5 + comm.rank().index() as f32));
//!     let reduction = reducer.all_reduce(&bucket)?;
//!     // ... the backward pass of the next layer ...
//!     reduction.wait()?;
//!     Ok(bucket.with(|elements: &mut [f32]| elements.to_vec()))
//! }
//!
//! # fn main() -> Result<()> {
//! let (ranks, _network) = Communicator::fakes(2, 2, 0, &CommOptions::default())?;
//! let sums = std::thread::scope(|scope| {
//!     let threads: Vec<_> = ranks.iter().map(|comm| scope.spawn(|| rank(comm))).collect();
//!     threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>>>()
//! })?;
//! assert_eq!(sums, [vec![4.0; 1000], vec![4.0; 1000]]);
//! # Ok(())
//! # }
//! ```

pub mod kernels;

mod bucket;
mod column;
mod device;
mod error;
mod flags;
mod operation;
mod options;
mod reducer;
mod route;
mod staging;
mod topology;
mod worker;

pub use bucket::Bucket;
pub use device::{CopyId, DeviceCopy, HostTensor};
pub use error::{Error, Result};
pub use options::Options;
pub use reducer::{HfReduce, Reduction};
