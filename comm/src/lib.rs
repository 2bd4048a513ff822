//! Moves bytes between ranks: rendezvous, transports, collectives, all with deadlines.
//!
//! From the bottom up: [`transport`] (write with immediate, over shared memory, tcp or a seeded fake), the engine
//! (one thread that runs schedules), [`schedule`] (every collective as pure data, with its slow twin), [`table`]
//! (which algorithm when), [`Group`] (the calls), [`dispatch`] (rows to experts and back). Beside it the control
//! plane: who is alive, who has entered what.
//!
//! Docs: docs/collectives.md has steps, bytes and memory per algorithm; docs/adr/0010 maps the transport to ibverbs.
//! Not here: SIMD reduction of gradient buckets and the device (crate `hfreduce`).

pub mod dispatch;
pub mod emulation;
pub mod schedule;
pub mod table;
pub mod transport;
pub mod wire;

mod communicator;
mod completion;
mod connect;
mod control;
mod door;
mod dtype;
mod engine;
mod error;
mod group;
mod ids;
mod memory;
mod plan;
mod rendezvous;
mod secret;
mod shared;

pub use communicator::{Aborter, Communicator, Options};
pub use completion::Pending;
pub use connect::Membership;
pub use dtype::{Arithmetic, CANONICAL_NAN, DType, Element, Kernel};
pub use engine::launch::Stream;
pub use error::{Error, Result};
pub use group::Group;
pub use group::streamed::{Advance, Streamed};
pub use ids::{Attempt, Generation, Node, Rank};
pub use memory::{Memory, SharedMemory};
pub use rendezvous::Server;
pub use secret::Secret;
pub use shared::Counters;
pub use table::{Algorithm, Table};
pub use wire::header::Kind;
