//! The rank process: builds from the plan, executes step programs, updates, reports, suspends (docs/architecture.md,
//! "The rank").

pub mod alone;
pub mod batches;
pub mod bench;
pub mod build;
pub mod costs;
pub mod eval;
pub mod executor;
pub mod failure;
pub mod flat;
pub mod forecast;
pub mod forward;
pub mod generate;
pub mod gradients;
pub mod init;
pub mod lanes;
pub mod link;
pub mod load;
pub mod logits;
pub mod machine;
pub mod metrics;
pub mod micro;
pub mod muon;
pub mod norm;
pub mod optimizer;
pub mod parity;
mod planted;
pub mod ranks;
pub mod replicas;
pub mod route;
pub mod sampling;
pub mod saves;
pub mod screen;
pub mod snapshot;
pub mod state;
pub mod step_metrics;
pub mod tally;
mod tensorboard;
pub mod trace;
pub mod train;
pub mod validate;
pub mod verify;

/// The id that `lampyris` and `lampyris-rank` must share.
pub fn build_id() -> String {
    lampyris_proto::build_id(lampyris_plan::train_plan::SCHEMA)
}

/// What stops a rank.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A segment failed.
    #[error(transparent)]
    Model(#[from] lampyris_model::Error),
    /// Another rank is gone, late, or runs something else.
    #[error(transparent)]
    Peer(#[from] lampyris_comm::Error),
    /// A reduction cannot be set up.
    #[error(transparent)]
    Reduction(lampyris_hfreduce::Error),
    /// A loss or gradient is NaN or infinite.
    #[error(
        "step {step}: the {what} is not finite; nothing was updated: lower the learning rate or look at the data of this step"
    )]
    NotFinite {
        /// Optimizer step, 1-based.
        step: u64,
        /// Which value.
        what: String,
    },
}

impl From<lampyris_torch::Error> for Error {
    fn from(error: lampyris_torch::Error) -> Error {
        Error::Model(error.into())
    }
}

impl From<lampyris_hfreduce::Error> for Error {
    fn from(error: lampyris_hfreduce::Error) -> Error {
        match error {
            lampyris_hfreduce::Error::Comm(error) => Error::Peer(error),
            other => Error::Reduction(other),
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Error {
        Error::Model(error.into())
    }
}

/// Result of a trainer operation.
pub type Result<T> = std::result::Result<T, Error>;
