//! Sharded, atomic, re-shardable snapshots keyed by global tensor coordinates; Hugging Face layout in and out.
//!
//! Links no libtorch: tensors are plain `f32` slices here, so `lampyris export` and `lampyris checkpoint` run on a login
//! node.

pub mod disk;
mod error;
pub mod hf;

pub use error::{Error, Result};
