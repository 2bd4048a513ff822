//! What must hold of every program, whoever wrote its order; proved by going through it once. A rank then need not look.
//!
//! - Every wait has a start, every start is waited for, gathers at the latest in the next step.
//! - Nothing is taken before it is there or after it is freed, and everything is freed.
//! - A slot's gradient has the contributions of all its readers when it is taken.
//! - To each parameter, the contributions of a leaf come in the order of micro-batches, and of each micro-batch in the order
//!   of the plain program, whatever the schedule: sums then have the same bits.
//! - A leaf is folded after its last contribution and before another leaf uses its accumulator; sums over ranks follow the
//!   last fold, updates the norm, gathers the updates.

mod gradients;
mod mistake;

pub use mistake::Mistake;

use super::{Act, Machine, Program, StepShape, Task, Transfer, Value, run, values};
use crate::segments::{Graph, Operation, Pass, Segment};
use gradients::GradientSums;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// Checks a whole step.
///
/// # Errors
/// The first mistake.
pub fn check(program: &Program, shape: &StepShape) -> Result<(), Mistake> {
    let mut checker = Checker::new(&shape.graph, &program.carried);
    checker.sums = Some(GradientSums::new(shape));
    run(program, &mut checker)?;
    checker.end(program, shape)
}

/// Checks a forward pass without gradients.
///
/// # Errors
/// The first mistake.
pub fn check_forward(program: &Program, graph: &Graph) -> Result<(), Mistake> {
    let mut checker = Checker::new(graph, &program.carried);
    run(program, &mut checker)?;
    match checker.under_way.into_iter().min() {
        Some(transfer) => Err(Mistake::NeverWaitedFor { transfer }),
        None => Ok(()),
    }
}

/// What stands at a point of a program.
struct Checker<'a> {
    graph: &'a Graph,
    under_way: HashSet<Transfer>,
    /// Values that are there; of a gradient, who has contributed.
    alive: HashMap<Value, Vec<Operation>>,
    freed: HashSet<Value>,
    done: HashSet<Act>,
    /// None in a forward pass alone.
    sums: Option<GradientSums<'a>>,
}

impl<'a> Checker<'a> {
    fn new(graph: &'a Graph, carried: &[Transfer]) -> Checker<'a> {
        Checker {
            graph,
            under_way: carried.iter().copied().collect(),
            alive: HashMap::new(),
            freed: HashSet::new(),
            done: HashSet::new(),
            sums: None,
        }
    }

    /// An act takes its values and makes others.
    fn act(&mut self, act: Act) -> Result<(), Mistake> {
        if !self.done.insert(act) {
            return Err(Mistake::Twice { act });
        }
        for value in values::taken(self.graph, act) {
            self.take(act, value)?;
        }
        self.reads_weights(act)?;
        let by = act.operation().map(|(_, operation, _)| operation);
        for value in values::made(self.graph, act) {
            self.make(value, by)?;
        }
        Ok(())
    }

    fn take(&self, act: Act, value: Value) -> Result<(), Mistake> {
        if self.freed.contains(&value) {
            return Err(Mistake::TakenAfterFree { act, value });
        }
        let Some(contributed) = self.alive.get(&value) else {
            return Err(Mistake::NotThere { act, value });
        };
        if let Value::Gradient { slot, .. } = value {
            let missing = self.graph.readers(slot).iter().find(|r| !contributed.contains(r));
            if let Some(&reader) = missing {
                return Err(Mistake::MissingContribution { act, value, reader });
            }
        }
        Ok(())
    }

    fn make(&mut self, value: Value, by: Option<Operation>) -> Result<(), Mistake> {
        if self.freed.contains(&value) {
            return Err(Mistake::MadeAfterFree { value });
        }
        self.alive.entry(value).or_default().extend(by);
        Ok(())
    }

    /// Weights that a forward pass reads are neither on their way nor those of the next step.
    fn reads_weights(&self, act: Act) -> Result<(), Mistake> {
        let (Some((_, Operation::Segment(segment), Pass::Forward)), Some(sums)) =
            (act.operation(), &self.sums)
        else {
            return Ok(());
        };
        for bucket in sums.read_by(segment) {
            let transfer = Transfer::Gather { bucket };
            if self.under_way.contains(&transfer) {
                return Err(Mistake::TakenUnderWay { act, transfer });
            }
            if self.done.contains(&Act::Run(Task::UpdateShard { bucket })) {
                return Err(Mistake::ReadsUpdated { act, bucket });
            }
        }
        Ok(())
    }

    /// After the last instruction.
    fn end(self, program: &Program, shape: &StepShape) -> Result<(), Mistake> {
        let carried: HashSet<Transfer> = program.carried.iter().copied().collect();
        if let Some(&transfer) = self.under_way.difference(&carried).min() {
            return Err(Mistake::NeverWaitedFor { transfer });
        }
        if let Some(&transfer) = carried.difference(&self.under_way).min() {
            return Err(Mistake::NotStarted { transfer });
        }
        if let Some(value) = self.alive.keys().copied().min() {
            return Err(Mistake::NeverFreed { value });
        }
        match every_act(shape).into_iter().find(|act| !self.done.contains(act)) {
            Some(act) => Err(Mistake::Missing { act }),
            None => Ok(()),
        }
    }
}

impl Machine for Checker<'_> {
    type Error = Mistake;

    fn wait(&mut self, transfer: Transfer) -> Result<(), Mistake> {
        if !self.under_way.remove(&transfer) {
            return Err(Mistake::NotStarted { transfer });
        }
        if let Some(value) = values::taken_by_landing(transfer)
            && !self.alive.contains_key(&value)
        {
            return Err(Mistake::TakenAfterFree { act: Act::Start(transfer), value });
        }
        let by = Act::Start(transfer).operation().map(|(_, operation, _)| operation);
        for value in values::made_by_landing(self.graph, transfer) {
            self.make(value, by)?;
        }
        Ok(())
    }

    fn start(&mut self, transfer: Transfer) -> Result<(), Mistake> {
        self.act(Act::Start(transfer))?;
        if let Some(sums) = &mut self.sums {
            sums.start(transfer)?;
        }
        self.under_way.insert(transfer);
        Ok(())
    }

    fn compute(&mut self, task: Task) -> Result<(), Mistake> {
        self.act(Act::Run(task))?;
        let under_way = &self.under_way;
        match &mut self.sums {
            Some(sums) => sums.compute(task, |transfer| under_way.contains(&transfer)),
            None => Ok(()),
        }
    }

    fn free(&mut self, value: Value) {
        // Freeing what is not there shows at the end: it was made later, and is never freed.
        if self.alive.remove(&value).is_some() {
            self.freed.insert(value);
        }
    }
}

/// All acts that a step must have, the order aside.
fn every_act(shape: &StepShape) -> Vec<Act> {
    let mut out = Vec::new();
    for micro in 0..shape.micro_batches {
        for operation in shape.graph.forward() {
            out.push(shape.forward(micro, operation));
            out.extend(shape.backward(micro, operation));
            out.extend(shape.weight(micro, operation));
        }
    }
    for bucket in 0..shape.buckets.len() {
        let folds = (0..shape.leaves).map(|leaf| Task::FoldLeaf { bucket, leaf });
        out.extend(folds.map(Act::Run));
        out.push(Act::Run(Task::UpdateShard { bucket }));
        if shape.buckets[bucket].gathered {
            out.push(Act::Start(Transfer::Gather { bucket }));
        }
    }
    out.extend([Act::Run(Task::GradNorm), Act::Run(Task::UpdateBias)]);
    out
}

/// Where a segment's contribution to a parameter stands among those of a micro-batch in the plain program: losses forward,
/// the others backward.
fn turn(segment: Segment) -> (bool, Reverse<usize>, usize) {
    match segment {
        Segment::Head(depth) => (false, Reverse(0), depth),
        Segment::MtpInput(layer) => (true, Reverse(layer + 1), 0),
        _ => (true, Reverse(0), 0),
    }
}

#[cfg(test)]
mod tests;
