//! What runs on a node: the [`shim`], one per job and node, that starts, watches and stops the rank processes.

pub mod shim;
