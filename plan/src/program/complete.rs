//! What follows from an order of forward and backward passes: where gradients are complete, and the updates.

use super::depend::read_by;
use super::{Act, Program, StepShape, Task, Transfer, check, depend};
use crate::segments::Operation;
use std::collections::{BTreeMap, HashMap};

/// A whole step: `order`, with folds and reductions as soon as a bucket has its last contribution, and the updates.
pub(super) fn complete(order: Vec<Act>, shape: &StepShape) -> Program {
    let mut order = with_folds(order, shape);
    update(shape, &mut order);
    let program = depend(order, &shape.graph, &shape.buckets, shape.micro_batches);
    if cfg!(debug_assertions) {
        check(&program, shape).unwrap_or_else(|mistake| panic!("{mistake}"));
    }
    program
}

/// After the last contribution of a leaf to a bucket its fold; after the last leaf's, the sum over ranks.
fn with_folds(order: Vec<Act>, shape: &StepShape) -> Vec<Act> {
    let mut last: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let read_by = read_by(&shape.buckets);
    for (at, act) in order.iter().enumerate() {
        let Act::Run(task) = act else { continue };
        let Some((segment, leaf)) = task.contributes() else { continue };
        for &bucket in read_by.get(&segment).into_iter().flatten() {
            last.insert((bucket, leaf), at);
        }
    }
    let mut folds: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for (fold, at) in last {
        folds.entry(at).or_default().push(fold);
    }
    let mut out = Vec::new();
    for (at, act) in order.into_iter().enumerate() {
        out.push(act);
        for &(bucket, leaf) in folds.get(&at).into_iter().flatten() {
            out.push(Act::Run(Task::FoldLeaf { bucket, leaf }));
            if leaf + 1 == shape.leaves {
                reduce(shape, bucket, &mut out);
            }
        }
    }
    out
}

fn reduce(shape: &StepShape, bucket: usize, out: &mut Vec<Act>) {
    let used = &shape.buckets[bucket];
    if used.sources > 1 {
        out.push(Act::Run(Task::MergeSources { bucket }));
    }
    if used.reduced {
        out.push(Act::Start(Transfer::Reduce { bucket }));
    }
}

/// What follows the last backward: norm, updates and gathers in the order in which the next forward pass reads, biases.
fn update(shape: &StepShape, out: &mut Vec<Act>) {
    out.push(Act::Run(Task::GradNorm));
    let operations = shape.graph.forward();
    let places: HashMap<Operation, usize> =
        operations.into_iter().enumerate().map(|(at, operation)| (operation, at)).collect();
    let first_reader = |bucket: &usize| {
        let readers = shape.buckets[*bucket].readers.iter().flatten();
        readers.filter_map(|segment| places.get(&Operation::Segment(*segment))).min().copied()
    };
    let mut order: Vec<usize> = (0..shape.buckets.len()).collect();
    order.sort_by_cached_key(first_reader);
    for bucket in order {
        out.push(Act::Run(Task::UpdateShard { bucket }));
        if shape.buckets[bucket].gathered {
            out.push(Act::Start(Transfer::Gather { bucket }));
        }
    }
    out.push(Act::Run(Task::UpdateBias));
}
