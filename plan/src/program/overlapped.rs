//! Computation under communication, as in DeepSeek's overlapped forward and backward (DeepSeek-V3, section 3.2.1;
//! github.com/deepseek-ai/profile-data): the forward pass of a micro-batch and the backward pass of the one before run
//! in turns. Each runs until it needs rows that are still under way; the other computes while they fly.
//!
//! ```text
//! forward of m1     experts, start combine |                                  | merge, attention, start dispatch | ...
//! backward of m0                           | experts, start dispatch, weights |                                  | ...
//! ```
//!
//! Weight gradients of a backward pass, for which nothing waits, stand behind the start of its next exchange, or behind the
//! first one of the next micro-batch of the same leaf: they compute while rows fly. The turns go on from one micro-batch
//! to the next: a forward pass begins before the backward pass beside the one in front of it has ended, so that rows also
//! fly under heads, dense layers and embedding. Activations of two micro-batches are alive at a time, and for a moment
//! those before the first exchange of a third.
//!
//! Bits are those of the sequential program: to every parameter, contributions come in the order of micro-batches. Heads
//! make weight gradients in their forward pass, so they run with the backward pass that follows them.

use super::{
    Folds, Instruction, Program, Shape, backward, forward, has_weights, sequential, update,
};
use crate::buckets::Buckets;
use crate::inventory::Inventory;
use crate::segments::{Graph, Operation, Segment};
use std::collections::VecDeque;

/// The overlapped program of a rank; the sequential one if the network exchanges no rows.
///
/// # Panics
/// If the leaves are no power of two or do not divide the micro-batches; `validate` refuses such plans.
pub fn overlapped(
    graph: &Graph,
    inventory: &Inventory,
    buckets: &Buckets,
    shape: &Shape,
) -> Program {
    if !graph.forward().iter().any(is_exchange) {
        return sequential(graph, inventory, buckets, shape);
    }
    let folds = Folds::new(&backward_stream(graph, 0), (graph, inventory), buckets, shape);
    let is_head = |op: &Operation| matches!(op, Operation::Segment(Segment::Head(_)));
    let (heads, body): (Vec<_>, Vec<_>) = graph.forward().into_iter().partition(is_head);
    let forward_of = |micro| body.iter().map(move |op| forward(micro, *op));
    let first = forward_of(0).collect();
    let forwards = (1..shape.micro_batches).flat_map(forward_of).collect();
    let (mut backwards, mut carried) = (Vec::new(), Vec::new());
    for micro in 0..shape.micro_batches {
        backwards.extend(shape.begins_leaf(micro));
        backwards.extend(heads.iter().map(|op| forward(micro, *op)));
        let mut stream = folds.after(backward_stream(graph, micro), micro);
        let first = stream.iter().position(starts_exchange).expect("there are exchanges");
        stream.splice(first + 1..first + 1, carried.drain(..));
        if (micro + 1) % shape.run() != 0 {
            carried = take_weights_of_the_end(&mut stream);
        }
        backwards.extend(stream);
    }
    let mut instructions: Vec<Instruction> = first;
    let (mut forwards, mut backwards) = (turns(graph, forwards), turns(graph, backwards));
    while !backwards.is_empty() {
        for stream in [&mut forwards, &mut backwards] {
            instructions.extend(stream.pop_front().into_iter().flatten());
        }
    }
    update(graph, inventory, buckets, shape, &mut instructions);
    Program::new(instructions, shape)
}

fn is_exchange(operation: &Operation) -> bool {
    !matches!(operation, Operation::Segment(_))
}

/// A micro-batch's backward pass. The shared expert computes under the flight of the routed rows' gradients to the
/// experts; weight gradients follow the start of the next exchange.
fn backward_stream(graph: &Graph, micro: usize) -> Vec<Instruction> {
    let mut out = Vec::new();
    let mut order: Vec<Operation> = graph.forward().into_iter().rev().collect();
    for i in 1..order.len() {
        if matches!(order[i], Operation::Segment(Segment::Shared(_))) {
            order.swap(i - 1, i);
        }
    }
    let last_exchange = order.iter().rposition(is_exchange);
    let mut later = Vec::new();
    for (at, operation) in order.into_iter().enumerate() {
        out.push(backward(micro, operation));
        if let Operation::Segment(segment) = operation
            && has_weights(segment)
        {
            later.push(Instruction::Weight { micro, segment });
        }
        // The shared expert computes under a flight already; behind the last exchange there is none to wait for.
        let shared = matches!(operation, Operation::Segment(Segment::Shared(_)));
        if shared || is_exchange(&operation) || Some(at) > last_exchange {
            out.append(&mut later);
        }
    }
    out
}

fn starts_exchange(instruction: &Instruction) -> bool {
    matches!(instruction, Instruction::Dispatch { .. } | Instruction::Combine { .. })
}

/// Weight gradients of the segments behind a backward pass's last exchange, for which the next one's first exchange need
/// not wait. Those of the embedding stay: their places in its sum are between those of the heads.
fn take_weights_of_the_end(stream: &mut Vec<Instruction>) -> Vec<Instruction> {
    let last = stream.iter().rposition(starts_exchange).map_or(0, |at| at + 1);
    let behind = |i: &Instruction| match *i {
        Instruction::Backward { segment, .. } => Some(segment),
        _ => None,
    };
    let segments: Vec<Segment> = stream[last..].iter().filter_map(behind).collect();
    let goes = |i: &mut Instruction| match *i {
        Instruction::Weight { segment: Segment::Embed | Segment::MtpInput(_), .. } => false,
        Instruction::Weight { segment, .. } => segments.contains(&segment),
        _ => false,
    };
    stream.extract_if(last.., goes).collect()
}

/// A stream cut in front of every instruction that needs rows which may still be under way.
fn turns(graph: &Graph, stream: Vec<Instruction>) -> VecDeque<Vec<Instruction>> {
    let needs_rows = |i: &Instruction| match *i {
        Instruction::Forward { segment: Segment::Experts(_) | Segment::Merge(_), .. }
        | Instruction::Backward { segment: Segment::Experts(_), .. } => true,
        Instruction::Backward { segment: Segment::Attention(layer), .. } => graph.exchanges(layer),
        _ => false,
    };
    let mut turns = VecDeque::from([Vec::new()]);
    for instruction in stream {
        if needs_rows(&instruction) {
            turns.push_back(Vec::new());
        }
        turns.back_mut().expect("never empty").push(instruction);
    }
    turns
}
