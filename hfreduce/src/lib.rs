//! Reduction of gradient buckets through host memory.

pub mod kernels;
