//! The most memory that a program's activations take at a time: the order of makes and frees is the program's, the bytes of
//! each value are a table's.
//!
//! A slot's value is one piece of memory, whoever holds it: the slot, the tape of the segment that wrote it, the tapes of
//! those that read it.

use crate::program::{Act, Machine, Program, Task, Transfer, Value, brought_by, made_by, run};
use crate::segments::{Graph, Operation, Segment, Slot};
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;

/// A piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Piece {
    /// The value of a slot.
    Slot(Slot),
    /// The gradient of a slot.
    Gradient(Slot),
    /// What a segment keeps for its backward pass beside the slots that it reads and writes.
    Inside(Segment),
    /// Factors of the weight gradients of a segment.
    Queue(Segment),
}

/// The most bytes that the values of `program`, a whole step, take at a time; `bytes` says how many each of a micro-batch takes.
pub fn peak(program: &Program, graph: &Graph, bytes: impl Fn(Piece) -> u64) -> u64 {
    let mut peak =
        Peak { graph, bytes, alive: HashSet::new(), holders: HashMap::new(), now: 0, most: 0 };
    let Ok(()) = run(program, &mut peak);
    peak.most
}

/// Memory on its way through a program.
struct Peak<'a, B> {
    graph: &'a Graph,
    bytes: B,
    alive: HashSet<Value>,
    /// By micro-batch and piece: how many values hold it.
    holders: HashMap<(usize, Piece), usize>,
    now: u64,
    most: u64,
}

impl<B: Fn(Piece) -> u64> Peak<'_, B> {
    fn make(&mut self, values: Vec<Value>) {
        for value in values {
            if !self.alive.insert(value) {
                continue;
            }
            for piece in held(self.graph, value) {
                let holders = self.holders.entry((value.micro(), piece)).or_default();
                *holders += 1;
                if *holders == 1 {
                    self.now += (self.bytes)(piece);
                }
            }
        }
        self.most = self.most.max(self.now);
    }
}

impl<B: Fn(Piece) -> u64> Machine for Peak<'_, B> {
    type Error = Infallible;

    fn wait(&mut self, transfer: Transfer) -> Result<(), Infallible> {
        self.make(brought_by(self.graph, transfer));
        Ok(())
    }

    fn start(&mut self, _transfer: Transfer) -> Result<(), Infallible> {
        Ok(())
    }

    fn compute(&mut self, task: Task) -> Result<(), Infallible> {
        self.make(made_by(self.graph, Act::Run(task)));
        Ok(())
    }

    fn free(&mut self, value: Value) {
        if !self.alive.remove(&value) {
            return;
        }
        for piece in held(self.graph, value) {
            let holders = self.holders.get_mut(&(value.micro(), piece));
            let holders = holders.expect("what is alive holds its memory");
            *holders -= 1;
            if *holders == 0 {
                self.now -= (self.bytes)(piece);
            }
        }
    }
}

/// The pieces of memory that a value holds.
fn held(graph: &Graph, value: Value) -> Vec<Piece> {
    match value {
        Value::Slot { slot, .. } => vec![Piece::Slot(slot)],
        Value::Gradient { slot, .. } => vec![Piece::Gradient(slot)],
        Value::Queue { segment, .. } => vec![Piece::Queue(segment)],
        Value::Tape { segment, .. } => {
            let operation = Operation::Segment(segment);
            let slots = graph.reads(operation).into_iter().chain(graph.writes(operation));
            slots.map(Piece::Slot).chain([Piece::Inside(segment)]).collect()
        }
        // A few numbers per token.
        Value::Route { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::share::Shares;

    /// Everything takes one byte: the peak counts pieces.
    fn pieces(program: &Program, graph: &Graph) -> u64 {
        peak(program, graph, |_| 1)
    }

    #[test]
    fn memory_of_the_sequential_program_is_that_of_one_micro_batch() {
        let mut plan = fixture::plan();
        plan.batch.leaves = 1;
        let share = Shares::of(&plan).rank(0);
        let (single, shape) = (share.step_shape(1), share.step_shape(4));
        let wanted = pieces(&Program::sequential(&single), &single.graph);
        assert_eq!(pieces(&Program::sequential(&shape), &shape.graph), wanted);
        let slots = single.graph.forward().into_iter().flat_map(|op| single.graph.writes(op));
        assert!(wanted > slots.count() as u64, "all slots and tapes are alive at the first loss");
    }

    /// Two micro-batches are in work, but while one grows the other shrinks.
    #[test]
    fn overlap_takes_more_than_one_micro_batch_and_less_than_two() {
        let mut plan = fixture::plan();
        plan.batch.leaves = 1;
        let shape = Shares::of(&plan).rank(0).step_shape(4);
        let one = pieces(&Program::sequential(&shape), &shape.graph);
        let two = pieces(&Program::overlapped(&shape), &shape.graph);
        assert!(one < two && two < 2 * one, "{one} {two}");
    }
}
