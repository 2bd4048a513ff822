//! Decides which job runs where; pure core, gRPC shell.

pub mod core;
