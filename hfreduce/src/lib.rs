//! Reduction of gradient buckets through host memory.
