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

use super::{Act, StepShape, Task, Transfer};
use crate::segments::{Graph, Operation, Pass, Segment, Slot};
use std::collections::{HashSet, VecDeque};

/// Forward and backward passes of a step, in turns. The network exchanges rows.
pub(super) fn order(shape: &StepShape) -> Vec<Act> {
    let graph = &*shape.graph;
    let is_head = |op: &Operation| matches!(op, Operation::Segment(Segment::Head(_)));
    let (heads, body): (Vec<_>, Vec<_>) = graph.forward().into_iter().partition(is_head);
    let forward_of = |micro| body.iter().map(move |op| shape.forward(micro, *op));
    let mut acts: Vec<Act> = forward_of(0).collect();
    let forwards = (1..shape.micro_batches).flat_map(forward_of).collect();
    let (mut backwards, mut carried) = (Vec::new(), Vec::new());
    for micro in 0..shape.micro_batches {
        backwards.extend(heads.iter().map(|op| shape.forward(micro, *op)));
        let mut stream = backward_stream(shape, micro);
        let first = stream.iter().position(starts_exchange).expect("there are exchanges");
        stream.splice(first + 1..first + 1, carried.drain(..));
        if (micro + 1) % shape.run() != 0 {
            carried = take_weights_of_the_end(&mut stream);
        }
        backwards.extend(stream);
    }
    let (mut forwards, mut backwards) = (turns(graph, forwards), turns(graph, backwards));
    while !backwards.is_empty() {
        for stream in [&mut forwards, &mut backwards] {
            acts.extend(stream.pop_front().into_iter().flatten());
        }
    }
    acts
}

/// A micro-batch's backward pass. The shared expert computes under the flight of the routed rows' gradients to the
/// experts; weight gradients follow the start of the next exchange.
fn backward_stream(shape: &StepShape, micro: usize) -> Vec<Act> {
    let is_exchange = |operation: &Operation| matches!(operation, Operation::Exchange(_));
    let is_shared = |op: &Operation| matches!(op, Operation::Segment(Segment::Shared(_)));
    let mut out = Vec::new();
    let mut order: Vec<Operation> = shape.graph.forward().into_iter().rev().collect();
    for i in 1..order.len() {
        if is_shared(&order[i]) {
            order.swap(i - 1, i);
        }
    }
    let last_exchange = order.iter().rposition(is_exchange);
    let mut later = Vec::new();
    for (at, operation) in order.into_iter().enumerate() {
        out.extend(shape.backward(micro, operation));
        later.extend(shape.weight(micro, operation));
        // The shared expert computes under a flight already; behind the last exchange there is none to wait for.
        if is_shared(&operation) || is_exchange(&operation) || Some(at) > last_exchange {
            out.append(&mut later);
        }
    }
    out
}

fn starts_exchange(act: &Act) -> bool {
    matches!(act, Act::Start(Transfer::Rows { .. }))
}

/// Weight gradients of the segments behind a backward pass's last exchange, for which the next one's first exchange need
/// not wait. Those of the embedding stay: their places in its sum are between those of the heads.
fn take_weights_of_the_end(stream: &mut Vec<Act>) -> Vec<Act> {
    let last = stream.iter().rposition(starts_exchange).map_or(0, |at| at + 1);
    let behind = |act: &Act| match *act {
        Act::Run(Task::Backward { segment, .. }) => Some(segment),
        _ => None,
    };
    let segments: Vec<Segment> = stream[last..].iter().filter_map(behind).collect();
    let goes = |act: &mut Act| match *act {
        Act::Run(Task::Weight { segment, .. }) => {
            !matches!(segment, Segment::Embed | Segment::MtpInput(_)) && segments.contains(&segment)
        }
        _ => false,
    };
    stream.extract_if(last.., goes).collect()
}

/// A stream cut in front of every act that takes rows which may still be under way.
fn turns(graph: &Graph, stream: Vec<Act>) -> VecDeque<Vec<Act>> {
    let mut takes_rows: HashSet<(Operation, Pass)> = HashSet::new();
    let operations = graph.forward();
    for pass in [Pass::Forward, Pass::Backward] {
        let exchanges = operations.iter().filter(|op| matches!(op, Operation::Exchange(_)));
        let brought = |exchange: &Operation| match pass {
            Pass::Forward => graph.writes(*exchange),
            Pass::Backward => graph.reads(*exchange),
        };
        let brought: HashSet<Slot> = exchanges.flat_map(brought).collect();
        let takes = |op: &&Operation| graph.takes(**op, pass).iter().any(|s| brought.contains(s));
        takes_rows.extend(operations.iter().filter(takes).map(|op| (*op, pass)));
    }
    let mut turns = VecDeque::from([Vec::new()]);
    for act in stream {
        if act.operation().is_some_and(|(_, op, pass)| takes_rows.contains(&(op, pass))) {
            turns.push_back(Vec::new());
        }
        turns.back_mut().expect("never empty").push(act);
    }
    turns
}
