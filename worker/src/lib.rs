//! What runs on a node: the [`daemon`] that takes orders from a scheduler, and under it, one per job, the [`shim`] that
//! starts, watches and stops the rank processes, in a process of its own ([`host`]) that outlives the daemon.

mod board;
pub mod client;
pub mod cores;
pub mod daemon;
pub mod fail_point;
pub mod hangup;
pub mod host;
pub mod launch;
mod meeting;
pub mod private;
mod processes;
pub mod report;
pub mod run_file;
pub mod shim;
