//! What can go wrong in a reduction.

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Failure of a reduction.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A peer is gone, an operation is late, a peer runs something else.
    #[error(transparent)]
    Comm(#[from] lampyris_comm::Error),
    /// The ranks cannot be arranged as nodes times equal numbers of local ranks.
    #[error("hfreduce needs the same number of consecutive ranks on every node: {0}")]
    Layout(String),
    /// An argument that cannot work.
    #[error("invalid reduction: {0}")]
    Invalid(String),
    /// The device refused a copy, or a copy failed. The communicator is aborted, so that the other ranks do not wait.
    #[error("device copy failed: {0}")]
    Device(String),
    /// A bug: the code of a reduction panicked. The panic's message is in the log.
    #[error("a reduction panicked, which is a bug; the log of this rank says where")]
    Panicked,
}
