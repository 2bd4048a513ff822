//! The part of the checker that follows parameters: contributions, folds, sums, norm, updates.

use super::super::{Act, StepShape, Task, Transfer, accumulator_of};
use super::{Mistake, turn};
use crate::segments::Segment;
use std::collections::HashMap;

/// A parameter, as far as sums go: those of a bucket that have the same readers behave alike.
#[derive(Debug)]
struct Parameter {
    bucket: usize,
    readers: Vec<Segment>,
    /// Contributions by leaf.
    counts: HashMap<usize, usize>,
    /// The last contribution, and its micro-batch.
    last: Option<(usize, Act)>,
}

/// A bucket's accumulators.
#[derive(Debug, Default)]
struct Bucket {
    /// Leaf that each accumulator is summing.
    open: HashMap<usize, usize>,
    /// Leaves folded.
    folded: usize,
    merged: bool,
    reduced: bool,
    updated: bool,
}

/// How far the gradients of a step are.
#[derive(Debug)]
pub(super) struct GradientSums<'a> {
    shape: &'a StepShape,
    parameters: Vec<Parameter>,
    read_by: HashMap<Segment, Vec<usize>>,
    buckets: Vec<Bucket>,
    norm: bool,
}

impl<'a> GradientSums<'a> {
    pub(super) fn new(shape: &'a StepShape) -> GradientSums<'a> {
        let mut parameters = Vec::new();
        let mut read_by: HashMap<Segment, Vec<usize>> = HashMap::new();
        for (bucket, used) in shape.buckets.iter().enumerate() {
            for readers in &used.readers {
                for segment in readers {
                    read_by.entry(*segment).or_default().push(parameters.len());
                }
                let readers = readers.clone();
                let counts = HashMap::new();
                parameters.push(Parameter { bucket, readers, counts, last: None });
            }
        }
        let buckets = shape.buckets.iter().map(|_| Bucket::default()).collect();
        GradientSums { shape, parameters, read_by, buckets, norm: false }
    }

    /// Buckets of which a segment reads a parameter.
    pub(super) fn read_by(&self, segment: Segment) -> impl Iterator<Item = usize> + '_ {
        let parameters = self.read_by.get(&segment).into_iter().flatten();
        parameters.map(|&parameter| self.parameters[parameter].bucket)
    }

    pub(super) fn start(&mut self, transfer: Transfer) -> Result<(), Mistake> {
        match transfer {
            Transfer::Rows { .. } => Ok(()),
            Transfer::Reduce { bucket } => {
                let used = &self.shape.buckets[bucket];
                let state = &mut self.buckets[bucket];
                let complete = state.folded == self.shape.leaves;
                state.reduced = true;
                if !used.reduced || !complete || (used.sources > 1 && !state.merged) {
                    return Err(Mistake::SumOutOfPlace { act: Act::Start(transfer) });
                }
                Ok(())
            }
            Transfer::Gather { bucket } => {
                if self.shape.buckets[bucket].gathered && self.buckets[bucket].updated {
                    return Ok(());
                }
                Err(Mistake::GatherOutOfPlace { bucket })
            }
        }
    }

    pub(super) fn compute(
        &mut self,
        task: Task,
        under_way: impl Fn(Transfer) -> bool,
    ) -> Result<(), Mistake> {
        let act = Act::Run(task);
        match task {
            Task::Forward { .. } | Task::Backward { .. } => Ok(()),
            Task::Loss { micro, .. } | Task::Weight { micro, .. } => {
                self.contribute(act, task, micro)
            }
            Task::FoldLeaf { bucket, leaf } => self.fold(act, bucket, leaf),
            Task::MergeSources { bucket } => {
                let state = &mut self.buckets[bucket];
                let misplaced = state.folded < self.shape.leaves || state.reduced;
                state.merged = true;
                if misplaced || self.shape.buckets[bucket].sources == 1 {
                    return Err(Mistake::SumOutOfPlace { act });
                }
                Ok(())
            }
            Task::GradNorm => {
                self.norm = true;
                let incomplete = |bucket: &usize| {
                    let (used, state) = (&self.shape.buckets[*bucket], &self.buckets[*bucket]);
                    state.folded < self.shape.leaves
                        || used.reduced != state.reduced
                        || (used.sources > 1) != state.merged
                        || under_way(Transfer::Reduce { bucket: *bucket })
                };
                match (0..self.buckets.len()).find(incomplete) {
                    Some(bucket) => Err(Mistake::NormTooEarly { bucket }),
                    None => Ok(()),
                }
            }
            Task::UpdateShard { bucket } => {
                self.buckets[bucket].updated = true;
                self.after_norm(act)
            }
            Task::UpdateBias => self.after_norm(act),
        }
    }

    fn after_norm(&self, act: Act) -> Result<(), Mistake> {
        if self.norm { Ok(()) } else { Err(Mistake::UpdateBeforeNorm { act }) }
    }

    fn contribute(&mut self, act: Act, task: Task, micro: usize) -> Result<(), Mistake> {
        let (segment, leaf) = task.contributes().expect("a loss or weight gradients");
        let wanted = self.shape.leaf(micro);
        if leaf != wanted {
            return Err(Mistake::WrongLeaf { act, wanted });
        }
        for &parameter in self.read_by.get(&segment).into_iter().flatten() {
            let parameter = &mut self.parameters[parameter];
            let (bucket, state) = (parameter.bucket, &mut self.buckets[parameter.bucket]);
            if leaf < state.folded {
                return Err(Mistake::AfterFold { act, bucket });
            }
            let open = *state.open.entry(accumulator_of(leaf)).or_insert(leaf);
            if open != leaf {
                return Err(Mistake::LeavesMixed { act, bucket, open });
            }
            if let Some((before, after)) = parameter.last
                && (before, turn_of(after)) >= (micro, Some(turn(segment)))
            {
                return Err(Mistake::OutOfOrder { act, after });
            }
            parameter.last = Some((micro, act));
            *parameter.counts.entry(leaf).or_default() += 1;
        }
        Ok(())
    }

    fn fold(&mut self, act: Act, bucket: usize, leaf: usize) -> Result<(), Mistake> {
        let state = &mut self.buckets[bucket];
        state.open.remove(&accumulator_of(leaf));
        let in_turn = state.folded == leaf;
        state.folded += 1;
        let run = self.shape.run();
        let mut of_bucket = self.parameters.iter().filter(|p| p.bucket == bucket);
        let complete = of_bucket.all(|parameter| {
            let found = parameter.counts.get(&leaf).copied().unwrap_or(0);
            found == run * parameter.readers.len()
        });
        if in_turn && complete { Ok(()) } else { Err(Mistake::FoldOutOfPlace { act }) }
    }
}

fn turn_of(act: Act) -> Option<(bool, std::cmp::Reverse<usize>, usize)> {
    match act {
        Act::Run(task) => task.contributes().map(|(segment, _)| turn(segment)),
        Act::Start(_) => None,
    }
}
