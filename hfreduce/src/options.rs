//! Settings of a reducer.

use lampyris_comm::Algorithm;
use std::time::Duration;

/// Settings of a reducer. All its ranks give the same ones.
#[derive(Debug, Clone)]
pub struct Options {
    /// Add as one balanced binary tree over the ranks (canonical reduction): powers of two only.
    pub canonical: bool,
    /// Most bytes of one piece of a private bucket.
    pub chunk_bytes: usize,
    /// Deadline of one reduction; by default the communicator's.
    pub timeout: Option<Duration>,
    /// The algorithm of all-reduces between nodes; by default the table chooses it.
    pub algorithm: Option<Algorithm>,
}

impl Default for Options {
    fn default() -> Self {
        Self { canonical: true, chunk_bytes: 256 << 10, timeout: None, algorithm: None }
    }
}
