//! Computation under communication, as in DeepSeek's overlapped forward and backward (DeepSeek-V3, section 3.2.1;
//! github.com/deepseek-ai/profile-data): the forward pass of a micro-batch and the backward pass of the one before run
//! alternately. Each runs until it has started an exchange; the other computes while those rows fly.
//!
//! ```text
//! backward of m0    merge, start combine | shared, experts, start dispatch | expert weights, attention, ...
//! forward of m1     ... attention, start dispatch | shared, experts, start combine | merge, ...
//! ```
//!
//! Bits are those of the sequential program: to every parameter, contributions come in the order of micro-batches. Heads
//! make weight gradients in their forward pass, so they run with the backward pass that follows them; their long
//! computation is what the first exchange of the next micro-batch flies under. Activations of two micro-batches are alive
//! at a time.

use super::{Folds, Instruction, Program, Shape, backward, forward, has_weights, update};
use crate::buckets::Buckets;
use crate::inventory::Inventory;
use crate::segments::{Graph, Operation, Segment};

/// The overlapped program of a rank.
///
/// # Panics
/// If the leaves are no power of two or do not divide the micro-batches; `validate` refuses such plans.
pub fn overlapped(
    graph: &Graph,
    inventory: &Inventory,
    buckets: &Buckets,
    shape: &Shape,
) -> Program {
    let folds = Folds::new(&backward_stream(graph, 0), (graph, inventory), buckets, shape);
    let is_head = |op: &Operation| matches!(op, Operation::Segment(Segment::Head(_)));
    let (heads, body): (Vec<_>, Vec<_>) = graph.forward().into_iter().partition(is_head);
    let mut instructions = Vec::new();
    let mut before: Vec<Instruction> = Vec::new();
    for micro in 0..shape.micro_batches {
        let body = body.iter().map(|op| forward(micro, *op)).collect();
        instructions.extend(alternate(body, before));
        before = shape.begins_leaf(micro).into_iter().collect();
        before.extend(heads.iter().map(|op| forward(micro, *op)));
        before.extend(folds.after(backward_stream(graph, micro), micro));
    }
    instructions.extend(before);
    update(graph, inventory, buckets, shape, &mut instructions);
    Program::new(instructions, shape)
}

/// A micro-batch's backward pass. The shared expert computes under the flight of the routed rows' gradients to the
/// experts, and the experts' weight gradients under the flight of their input gradients to the tokens.
fn backward_stream(graph: &Graph, micro: usize) -> Vec<Instruction> {
    let mut out = Vec::new();
    let mut order: Vec<Operation> = graph.forward().into_iter().rev().collect();
    for i in 1..order.len() {
        if matches!(order[i], Operation::Segment(Segment::Shared(_))) {
            order.swap(i - 1, i);
        }
    }
    let mut experts = None;
    for operation in order {
        out.push(backward(micro, operation));
        match operation {
            Operation::Segment(segment @ Segment::Experts(_)) => experts = Some(segment),
            Operation::Segment(segment) if has_weights(segment) => {
                out.push(Instruction::Weight { micro, segment });
            }
            Operation::Dispatch(_) => {
                let weight = |segment| Instruction::Weight { micro, segment };
                out.extend(experts.take().map(weight));
            }
            _ => {}
        }
    }
    out
}

/// Both streams in turns, `first` first, each until it has started an exchange.
fn alternate(first: Vec<Instruction>, second: Vec<Instruction>) -> Vec<Instruction> {
    let starts =
        |i: &Instruction| matches!(i, Instruction::Dispatch { .. } | Instruction::Combine { .. });
    let mut out = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (&first[..], &second[..]);
    while !first.is_empty() || !second.is_empty() {
        for stream in [&mut first, &mut second] {
            let end = stream.iter().position(starts).map_or(stream.len(), |at| at + 1);
            let (now, later) = stream.split_at(end);
            out.extend_from_slice(now);
            *stream = later;
        }
    }
    out
}
