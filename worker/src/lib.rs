//! The node daemon and the per-job shim.
