//! The networks as compute segments (docs/architecture.md, "Models"): dense LLaMA blocks with GQA, DeepSeek-V3 blocks
//! with MLA, sigmoid gate and experts, multi-token prediction. [`Network::forward`] computes one segment; what runs when
//! is the step program's business, what travels between ranks the trainer's.

pub mod batch;
pub mod deepseek;
pub mod head;
pub mod llama;
pub mod network;
pub mod rope;
pub mod weights;

#[cfg(test)]
mod reference;

pub use batch::MicroBatch;
pub use deepseek::routing::{Blocks, Routing};
pub use network::{Context, Network, SegmentOutput};
pub use weights::{Weights, parameter_and_source, sourced};

/// What a network cannot do with the plan or the batch it is given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libtorch refused an operation.
    #[error(transparent)]
    Torch(#[from] lampyris_torch::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
    /// The architecture cannot be trained by this release.
    #[error("{0} is not trained by this release; `lampyris plan` handles it")]
    Unsupported(&'static str),
}

/// Result of a model operation.
pub type Result<T> = std::result::Result<T, Error>;
