//! Reduction of gradient buckets through host memory: Fire-Flyer's HFReduce (section IV).
//!
//! [`HfReduce`] sums the buckets of all ranks: inside the node by one fused pass over shared memory ([`kernels`]), between
//! nodes by the collectives of `lampyris_comm`, piece by piece and overlapped, and back. [`Bucket`]s lie in shared
//! memory or are copied through rings ([`DeviceCopy`]). [`LeafTree`] is the rank's own part of a canonical reduction.
//!
//! Not here: transports and algorithms between nodes (crate `comm`), the device itself (crate `torch`).

pub mod bench;
pub mod canonical;
pub mod kernels;

mod bucket;
mod copying;
mod error;
mod flags;
mod layout;
mod reducer;
mod streaming;
mod work;

pub use bucket::Bucket;
pub use canonical::LeafTree;
pub use copying::{CopyId, DeviceCopy, HostTensor};
pub use error::{Error, Result};
pub use layout::Grid;
pub use reducer::{HfReduce, Options, Reduction};
