//! The plain program: micro-batch after micro-batch, forward then backward.

use super::{Folds, Instruction, Program, Shape, backward, forward, has_weights, update};
use crate::buckets::Buckets;
use crate::inventory::Inventory;
use crate::segments::{Graph, Operation};

/// The plain program of a rank.
///
/// # Panics
/// If the leaves are no power of two or do not divide the micro-batches; `validate` refuses such plans.
pub fn sequential(
    graph: &Graph,
    inventory: &Inventory,
    buckets: &Buckets,
    shape: &Shape,
) -> Program {
    let stream = |micro| {
        let mut out = Vec::new();
        for operation in graph.forward().into_iter().rev() {
            out.push(backward(micro, operation));
            if let Operation::Segment(segment) = operation
                && has_weights(segment)
            {
                out.push(Instruction::Weight { micro, segment });
            }
        }
        out
    };
    let folds = Folds::new(&stream(0), (graph, inventory), buckets, shape);
    let mut instructions = Vec::new();
    for micro in 0..shape.micro_batches {
        instructions.extend(shape.begins_leaf(micro));
        instructions.extend(graph.forward().into_iter().map(|op| forward(micro, op)));
        instructions.extend(folds.after(stream(micro), micro));
    }
    update(graph, inventory, buckets, shape, &mut instructions);
    Program::new(instructions, shape)
}
