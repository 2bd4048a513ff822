//! The little of libtorch that tch lacks, behind a small C++ shim.
