//! The worker daemon: one per node. It tells a scheduler what the node has, starts a shim's process for every attempt it is
//! given, keeps their leases, and reports how far they are and how they ended.
//!
//! `Options -> build() -> Service::run()`, with a [`Handle`] to stop it. It may die or be replaced at any time: what runs
//! does so in processes of its own ([`crate::host`]), each with a folder ([`crate::launch`]) in the state directory from
//! which the next daemon knows it. It keeps nothing else on disk.
//!
//! The lease: every heartbeat that the scheduler answers gives the right to go on until that heartbeat's sending plus
//! `lease_ms`, on CLOCK_BOOTTIME. The daemon only passes it on; the shims enforce it.

mod attempts;
mod fitness;
#[cfg(test)]
mod fuzz;
mod lease;
mod link;
mod logs;
mod machine;
mod service;
mod start;

pub use service::{Handle, Options, Service, WorkerError};
