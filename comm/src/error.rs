//! What can go wrong between ranks, as facts with the rank, the operation and what to do next.
//!
//! Three kinds of missing peer are kept apart (design, section 3): a **dead process**, a **vanished host**, and a
//! **stopped or slow process**, which is not a death: its operation ends at its deadline.

use crate::ids::{Attempt, Generation, Rank};
use std::io;
use std::sync::Arc;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Failure of a communicator or of one of its operations. Cloneable, because every pending operation gets the cause.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer's process ended without saying goodbye; its host lives.
    #[error(
        "rank {rank} died (seen by rank {seen_by}): its process ended; look at the last lines of its log"
    )]
    PeerDead {
        /// The rank whose process ended.
        rank: Rank,
        /// The rank that saw it first.
        seen_by: Rank,
    },
    /// The peer's host acknowledged nothing for `peer_timeout_ms`: host down or link cut.
    #[error(
        "rank {rank} vanished (seen by rank {seen_by}): its host acknowledged nothing for {peer_timeout_ms} ms; \
         check the host and its network link"
    )]
    PeerVanished {
        /// The rank that cannot be reached.
        rank: Rank,
        /// The rank that saw it first.
        seen_by: Rank,
        /// The configured limit.
        peer_timeout_ms: u64,
    },
    /// The peer closed its communicator in good order, but an operation still needs it.
    #[error(
        "rank {rank} has closed its communicator, but {operation} still needs it: the ranks run different programs"
    )]
    PeerLeft {
        /// The rank that left.
        rank: Rank,
        /// The operation that needs it.
        operation: String,
    },
    /// Somebody called `abort`, here or on another rank.
    #[error("rank {rank} aborted the communicator: {reason}")]
    Aborted {
        /// The rank that called `abort`.
        rank: Rank,
        /// Its reason.
        reason: String,
    },
    /// An operation passed its deadline although no peer is known to be dead: somebody is stopped, slow or elsewhere.
    #[error("{operation} did not finish within {timeout_ms} ms: {}", describe_waiting(.waiting))]
    Timeout {
        /// The operation, with group and sequence number.
        operation: String,
        /// Its deadline.
        timeout_ms: u64,
        /// Each rank that holds it up, with what is last known about it.
        waiting: Vec<(Rank, String)>,
    },
    /// Two ranks entered different operations at the same place of the program.
    #[error(
        "rank {ours} runs {our_operation}, but rank {theirs} runs {their_operation}: the ranks run different programs"
    )]
    Mismatch {
        /// The rank that noticed.
        ours: Rank,
        /// What it runs.
        our_operation: String,
        /// The other rank.
        theirs: Rank,
        /// What that one runs.
        their_operation: String,
    },
    /// Not every rank came to the rendezvous in time.
    #[error(
        "rendezvous of attempt {attempt}, generation {generation} incomplete after {timeout_ms} ms: missing ranks \
         {missing:?}; look at the logs of those ranks"
    )]
    RendezvousIncomplete {
        /// The attempt that was to form.
        attempt: Attempt,
        /// The generation that was to form.
        generation: Generation,
        /// Who did not come.
        missing: Vec<Rank>,
        /// The configured limit.
        timeout_ms: u64,
    },
    /// The rendezvous turned this rank away.
    #[error("the rendezvous refused rank {rank}: {reason}")]
    Refused {
        /// This rank.
        rank: Rank,
        /// Why.
        reason: String,
    },
    /// Peers that were in the table could not be connected in time.
    #[error(
        "no connection to ranks {missing:?} after {timeout_ms} ms; check that the hosts can reach each other on the \
         addresses in the table"
    )]
    ConnectIncomplete {
        /// Who is not connected.
        missing: Vec<Rank>,
        /// The configured limit.
        timeout_ms: u64,
    },
    /// An argument that cannot work: refused before any byte moves.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// An [`Error::Io`] with its context.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: Arc::new(source.into()) }
    }

    /// The rank that the error blames, when it blames exactly one.
    pub fn culprit(&self) -> Option<Rank> {
        match self {
            Self::PeerDead { rank, .. }
            | Self::PeerVanished { rank, .. }
            | Self::PeerLeft { rank, .. }
            | Self::Aborted { rank, .. } => Some(*rank),
            Self::Timeout { waiting, .. } if waiting.len() == 1 => Some(waiting[0].0),
            _ => None,
        }
    }
}

fn describe_waiting(waiting: &[(Rank, String)]) -> String {
    let parts: Vec<String> =
        waiting.iter().map(|(rank, what)| format!("rank {rank} {what}")).collect();
    if parts.is_empty() { "waiting for nobody in particular".into() } else { parts.join("; ") }
}
