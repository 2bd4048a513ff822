//! The plain order: micro-batch after micro-batch, forward then backward.

use super::{Act, StepShape};

/// Forward and backward passes of a step.
pub(super) fn order(shape: &StepShape) -> Vec<Act> {
    let operations = shape.graph.forward();
    let mut out = Vec::new();
    for micro in 0..shape.micro_batches {
        out.extend(operations.iter().map(|operation| shape.forward(micro, *operation)));
        for &operation in operations.iter().rev() {
            out.extend(shape.backward(micro, operation));
            out.extend(shape.weight(micro, operation));
        }
    }
    out
}
