//! Decides which job runs where; pure core, gRPC shell.
//!
//! [`core`] holds every decision, as a function of (now, state, event). [`store`] makes them durable. [`service`] is the
//! daemon: one thread that decides, and gRPC around it.

pub mod core;
mod error;
mod limits;
pub mod service;
pub mod store;

pub use error::Error;
