//! Sharded, atomic, re-shardable snapshots keyed by global tensor coordinates; Hugging Face layout in and out.
//!
//! Links no libtorch: tensors are plain `f32` slices here, so `lampyris export` and `lampyris checkpoint` run on a login
//! node.

mod agreement;
mod aligned;
mod claims;
pub mod disk;
mod error;
pub mod format;
pub mod hf;
mod lineage;
mod ranks;
mod read;
mod repair;
mod replica;
pub mod report;
mod restore;
mod resume;
mod retention;
mod run;
mod saver;
mod shard;
mod start;
pub mod tensors;

pub use error::{Error, Result};
pub use format::{CheckpointId, Digests, Manifest};
pub use lineage::{Lineage, MAX_ATTEMPT, Record};
pub use ranks::{AllGather, Ranks, WORD_BYTES};
pub use read::{Destination, Reader, Request};
pub use repair::Repaired;
pub use replica::{HostMemory, Neighbour, Replica, Shift};
pub use restore::Restored;
pub use resume::{Loaded, Quarantined};
pub use retention::{Pruned, Retention};
pub use run::{Meta, Run};
pub use saver::{Buffers, Busy, Saved, Saver, Slot, Snapshot, Target};
pub use shard::{Piece, ShardReport, Transfer};
pub use start::Start;
pub use tensors::Kind;
