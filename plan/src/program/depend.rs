//! From an order of acts to a program: what each of them waits for, and what may be freed after it.

use super::{Act, BucketUse, Instruction, Program, Task, Transfer, Value, values};
use crate::segments::{Graph, Operation, Pass, Segment};
use std::collections::{HashMap, HashSet};

/// The program that carries out `order`. An act waits for a transfer as late as it can: when it takes what the transfer
/// brings. A value is freed after the last act that takes it; one that none takes is the program's result. A gather that no
/// later act of the order waits for is waited for in the next step.
pub fn depend(
    order: Vec<Act>,
    graph: &Graph,
    buckets: &[BucketUse],
    micro_batches: usize,
) -> Program {
    let gathers = order.iter().filter_map(|act| match *act {
        Act::Start(Transfer::Gather { bucket }) => Some(bucket),
        _ => None,
    });
    // Gathers under way at the start are those of the step before.
    let mut under_way =
        UnderWay { gathers: gathers.collect(), others: Vec::new(), read_by: read_by(buckets) };
    let mut instructions: Vec<Instruction> = Vec::new();
    for act in order {
        let needs = under_way.take(graph, act);
        instructions.push(Instruction { act, needs, frees: Vec::new() });
        match act {
            Act::Start(Transfer::Gather { bucket }) => _ = under_way.gathers.insert(bucket),
            Act::Start(transfer) => under_way.others.push(transfer),
            Act::Run(_) => {}
        }
    }
    free(graph, &mut instructions);
    let mut carried: Vec<usize> = under_way.gathers.into_iter().collect();
    carried.sort_unstable();
    let carried = carried.into_iter().map(|bucket| Transfer::Gather { bucket }).collect();
    Program { instructions, micro_batches, carried }
}

/// The buckets of which each segment reads a parameter.
pub(super) fn read_by(buckets: &[BucketUse]) -> HashMap<Segment, Vec<usize>> {
    let mut read_by: HashMap<Segment, Vec<usize>> = HashMap::new();
    for (bucket, used) in buckets.iter().enumerate() {
        let segments: HashSet<Segment> = used.readers.iter().flatten().copied().collect();
        for segment in segments {
            read_by.entry(segment).or_default().push(bucket);
        }
    }
    read_by
}

/// Transfers that are started and not waited for.
struct UnderWay {
    /// By bucket: of large networks there are thousands.
    gathers: HashSet<usize>,
    /// In the order of their starts.
    others: Vec<Transfer>,
    read_by: HashMap<Segment, Vec<usize>>,
}

impl UnderWay {
    /// Takes out those that bring what `act` takes.
    fn take(&mut self, graph: &Graph, act: Act) -> Vec<Transfer> {
        let mut needs = Vec::new();
        if let Some((_, Operation::Segment(segment), Pass::Forward)) = act.operation() {
            for &bucket in self.read_by.get(&segment).into_iter().flatten() {
                if self.gathers.remove(&bucket) {
                    needs.push(Transfer::Gather { bucket });
                }
            }
        }
        needs.extend(self.others.extract_if(.., |transfer| feeds(graph, *transfer, act)));
        needs
    }
}

/// Whether `act` takes the rows or the sum that `transfer` brings.
fn feeds(graph: &Graph, transfer: Transfer, act: Act) -> bool {
    match transfer {
        Transfer::Rows { micro, exchange, pass } => {
            let taker = act.operation().filter(|taker| (taker.0, taker.2) == (micro, pass));
            taker.is_some_and(|(_, operation, _)| graph.feeds(exchange, operation, pass))
        }
        Transfer::Reduce { .. } => act == Act::Run(Task::GradNorm),
        Transfer::Gather { .. } => false,
    }
}

/// Frees every value after the last instruction that takes it: seen from the end, the first.
fn free(graph: &Graph, instructions: &mut [Instruction]) {
    let mut taken: HashSet<Value> = HashSet::new();
    for Instruction { act, needs, frees } in instructions.iter_mut().rev() {
        let mut takes = values::taken(graph, *act);
        takes.extend(needs.iter().filter_map(|transfer| values::taken_by_landing(*transfer)));
        frees.extend(takes.into_iter().filter(|value| taken.insert(*value)));
    }
}
