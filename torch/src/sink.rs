//! Weight gradients that a backward pass leaves for later.

use crate::ffi::SinkHandle;
use tch::Tensor;

/// Collects the weight gradients of the operations in [`crate::ops`]. One sink belongs to one compute thread; it must
/// live at least as long as every graph built with it, which an executor guarantees by owning both.
#[derive(Debug)]
pub struct Sink(pub(crate) SinkHandle);

/// One contribution to the gradient of a parameter, in the order in which backward made it.
#[derive(Debug)]
pub enum WeightGradient {
    /// `dyᵀ x`: x `[rows, in]`, dy `[rows, out]`, in compute type.
    Matmul {
        /// Parameter id given to the operation.
        parameter: usize,
        /// Input rows.
        x: Tensor,
        /// Output gradients.
        dy: Tensor,
    },
    /// The gradient itself, fp32.
    Direct {
        /// Parameter id given to the operation.
        parameter: usize,
        /// Gradient in the parameter's shape.
        gradient: Tensor,
    },
    /// Rows of dy `[tokens, hidden]` belong to rows `ids` of the embedding.
    Embedding {
        /// Parameter id given to the operation.
        parameter: usize,
        /// Token ids `[tokens]`.
        ids: Tensor,
        /// Output gradients.
        dy: Tensor,
    },
}

impl Sink {
    /// An empty sink.
    pub fn new() -> Sink {
        Sink(SinkHandle::new())
    }

    /// Takes out everything collected so far, oldest first.
    pub fn drain(&mut self) -> Vec<WeightGradient> {
        self.0.drain()
    }
}

impl Default for Sink {
    fn default() -> Sink {
        Sink::new()
    }
}
