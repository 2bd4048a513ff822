//! What can go wrong in a bench.

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Failure of a bench.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ranks could not meet, or one of them failed.
    #[error(transparent)]
    Comm(#[from] lampyris_comm::Error),
    /// A reduction failed.
    #[error(transparent)]
    Reduce(#[from] lampyris_hfreduce::Error),
    /// The options make no sense, a rank ended badly, or a result is wrong.
    #[error("bench: {0}")]
    Invalid(String),
}
