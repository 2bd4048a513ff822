//! The little of libtorch that tch lacks: `grad()` with grad-outputs, a few custom autograd functions whose weight
//! gradients wait in a [`Sink`], and fused row kernels for the CPU (docs/architecture.md, "The libtorch wall").
//!
//! Every fused kernel has a plain twin made of ATen operations, used on other devices and, through [`plain_only`], by
//! the tests that compare the two. What this crate does not do: choose layouts, know about layers, or hold state.

mod ffi;
pub mod ops;
mod sink;

pub use sink::{Sink, WeightGradient};

use std::ffi::CStr;
use tch::Tensor;

/// What libtorch or the shim refused.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct Error(String);

/// Result of a call into libtorch.
pub type Result<T> = std::result::Result<T, Error>;

/// A tensor dimension as libtorch counts it.
///
/// # Panics
/// If `size` does not fit in an `i64`: no tensor is that large.
pub fn dim(size: usize) -> i64 {
    i64::try_from(size).expect("tensor sizes fit in i64")
}

/// Gradients of `sum(outputs * grad_outputs)` to `inputs`; none for an input on which nothing depends. Weight gradients
/// of the operations in between go to their sinks.
pub fn grad(
    outputs: &[Tensor],
    grad_outputs: &[Tensor],
    inputs: &[&Tensor],
) -> Result<Vec<Option<Tensor>>> {
    ffi::grad(outputs, grad_outputs, inputs)
}

/// Turns the fused kernels off in this process: everything runs as plain ATen operations. For tests of the kernels.
pub fn plain_only(on: bool) {
    ffi::plain_only(on);
}

/// Instruction set of the fused kernels on this machine: "avx512", "avx2" or "baseline".
pub fn kernel_name() -> &'static str {
    ffi::kernel_name()
}

fn text(pointer: &'static CStr) -> &'static str {
    pointer.to_str().unwrap_or("(not UTF-8)")
}

#[cfg(test)]
mod tests;
