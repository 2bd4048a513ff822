//! The words between cli, scheduler, worker and rank, compiled from `proto/*.proto` without protoc.
//!
//! [`rank`] holds what a rank process and its shim say to each other, [`frame`] puts it on a socket, [`v1`] holds what cli,
//! scheduler and workers say over gRPC. [`Rank`], [`Attempt`], [`Step`] and [`JobId`] are the numbers that must never be
//! mixed up, [`words`] has the rules for names and tokens, and [`build_id`] tells whether two programs speak the same words.
//! No sockets are opened here and nothing is decided.

mod build_id;
pub mod frame;
mod ids;
pub mod words;

pub use build_id::build_id;
pub use ids::{Attempt, JobId, Rank, Step};

/// Messages between a rank process and its shim, package `lampyris.rank.v1`. A rank's duties stand in the head of
/// `rank.proto`.
#[allow(missing_docs, clippy::all, reason = "generated from rank.proto")]
pub mod rank {
    include!(concat!(env!("OUT_DIR"), "/lampyris.rank.v1.rs"));
}

/// Messages and services between cli, scheduler and worker, package `lampyris.v1`, documented in `proto/lampyris/v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated from lampyris/v1/*.proto"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/lampyris.v1.rs"));

    /// Descriptor of the package, for gRPC reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api_descriptor.bin"));
}
