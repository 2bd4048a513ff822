//! Step programs: what a rank does in one optimizer step, as a list of instructions that carries its own dependencies.
//! Pure data. An [`Instruction`] names what it does, which transfers it waits for, and what nobody needs after it. Every
//! overlap in the system is an order of instructions here.
//!
//! | step | where |
//! |---|---|
//! | somebody writes an order of acts | [`sequential`], [`overlapped`](Program::overlapped) |
//! | folds, reductions, updates and gathers are put where they belong | `complete.rs` |
//! | waits and frees are computed | [`depend`] |
//! | what must hold of every program is checked | [`check`] |
//! | a [`Machine`] goes through it: the rank, the critical path, the peak of memory, the checker | [`run`] |
//!
//! Gradient leaves (docs/architecture.md, "Canonical reduction"): the micro-batches of a step form L equal consecutive
//! runs; a run is summed left to right into one fp32 accumulator, and the accumulators are summed as one balanced binary
//! tree. `FoldLeaf` is one step of that tree, in the manner of a binary counter.
//!
//! [`sequential`]: Program::sequential

use crate::segments::{Exchange, Graph, Operation, Pass, Segment, Slot};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

mod chart;
mod check;
mod complete;
mod depend;
mod overlapped;
mod run;
mod sequential;
mod values;

pub use chart::chart;
pub use check::{Mistake, check, check_forward};
pub use depend::depend;
pub use run::{Machine, run};
pub(crate) use values::{made as made_by, made_by_landing as brought_by};

/// A piece of work for the compute thread. `micro` counts the micro-batches of this rank's step from 0, `leaf` its gradient
/// leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Task {
    /// Run a segment.
    Forward {
        /// Micro-batch.
        micro: usize,
        /// Any segment but a head.
        segment: Segment,
    },
    /// Head and loss at one prediction depth. Both gradients are made at once: the one of the weights goes to the leaf, the
    /// one of the input to its slot.
    Loss {
        /// Micro-batch.
        micro: usize,
        /// Prediction depth; 0 is the next token.
        depth: usize,
        /// The micro-batch's leaf.
        leaf: usize,
    },
    /// Input gradients of a segment; its weight gradients are queued.
    Backward {
        /// Micro-batch.
        micro: usize,
        /// Any segment but a head.
        segment: Segment,
    },
    /// Add the queued weight gradients of a segment to a leaf.
    Weight {
        /// Micro-batch.
        micro: usize,
        /// Any segment with weights but a head.
        segment: Segment,
        /// The micro-batch's leaf.
        leaf: usize,
    },
    /// The bucket has the last contribution of the leaf: add finished neighbours of the tree together.
    FoldLeaf {
        /// Index of the bucket.
        bucket: usize,
        /// Leaf just finished.
        leaf: usize,
    },
    /// After the last leaf: add what the bucket's accumulators hold of the tokens of different ranks.
    MergeSources {
        /// Index of the bucket.
        bucket: usize,
    },
    /// Global gradient norm over all buckets, in parameter order; clipping factor; NaN guard.
    GradNorm,
    /// The optimizer on this rank's shard of the bucket; where nothing is sharded the shard is the bucket.
    UpdateShard {
        /// Index of the bucket.
        bucket: usize,
    },
    /// Gate biases from the expert counts of the global batch (DeepSeek-V3, section 2.1.2).
    UpdateBias,
}

/// Something that travels between ranks while the compute thread goes on. Starting it returns at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transfer {
    /// Rows between tokens and experts.
    Rows {
        /// Micro-batch.
        micro: usize,
        /// Which exchange.
        exchange: Exchange,
        /// In the backward pass the gradient of that exchange.
        pass: Pass,
    },
    /// A finished gradient, summed over the ranks that hold the same parameters: to the shards, or to all of them.
    Reduce {
        /// Index of the bucket.
        bucket: usize,
    },
    /// The updated shards of a bucket, on all ranks that hold it.
    Gather {
        /// Index of the bucket.
        bucket: usize,
    },
}

/// What an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Act {
    /// Compute.
    Run(Task),
    /// Begin a transfer.
    Start(Transfer),
}

/// Something that takes memory from the act that makes it to the last one that needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// The value of a slot.
    Slot {
        /// Micro-batch.
        micro: usize,
        /// Its name.
        slot: Slot,
    },
    /// What the readers of a slot contribute to its gradient.
    Gradient {
        /// Micro-batch.
        micro: usize,
        /// Its name.
        slot: Slot,
    },
    /// What a segment keeps for its backward pass.
    Tape {
        /// Micro-batch.
        micro: usize,
        /// Its segment.
        segment: Segment,
    },
    /// Factors of the weight gradients of a segment.
    Queue {
        /// Micro-batch.
        micro: usize,
        /// Its segment.
        segment: Segment,
    },
    /// The way of the rows of a layer.
    Route {
        /// Micro-batch.
        micro: usize,
        /// Decoder layer.
        layer: usize,
    },
}

/// One step of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub act: Act,
    /// Transfers that are waited for before it, in this order.
    pub needs: Vec<Transfer>,
    /// What no later instruction takes. The act itself may already use it up.
    pub frees: Vec<Value>,
}

/// The instructions of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// In order of execution.
    pub instructions: Vec<Instruction>,
    /// Micro-batches of this rank.
    pub micro_batches: usize,
    /// Transfers that a step begins and the next one waits for. In the first step of a process nothing is under way yet,
    /// and other readers may have waited between two steps: waiting for one of these returns at once if it is not under way.
    pub carried: Vec<Transfer>,
}

/// How a program uses a bucket of parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUse {
    /// The segments that read a parameter, in forward order; a list for each different one among the bucket's parameters.
    pub readers: Vec<Vec<Segment>>,
    /// Sets of gradient accumulators: one for each rank whose tokens contribute.
    pub sources: usize,
    /// Whether its gradient is summed over several ranks.
    pub reduced: bool,
    /// Whether several ranks update parts of it.
    pub gathered: bool,
}

/// What the step of a rank consists of, in whatever order.
#[derive(Debug, Clone)]
pub struct StepShape {
    /// Segments and slots.
    pub graph: Arc<Graph>,
    /// By bucket.
    pub buckets: Arc<[BucketUse]>,
    /// Micro-batches of this rank.
    pub micro_batches: usize,
    /// Gradient leaves of this rank, a power of two that divides `micro_batches`.
    pub leaves: usize,
}

impl Program {
    /// Micro-batch after micro-batch, forward then backward.
    ///
    /// # Panics
    /// If the leaves are no power of two or do not divide the micro-batches; `validate` refuses such plans.
    pub fn sequential(shape: &StepShape) -> Program {
        complete::complete(sequential::order(shape), shape)
    }

    /// Computation under the flight of rows (`overlapped.rs`); the sequential program if the network exchanges no rows.
    ///
    /// # Panics
    /// As [`Program::sequential`].
    pub fn overlapped(shape: &StepShape) -> Program {
        let exchanges = |op: &Operation| matches!(op, Operation::Exchange(_));
        if !shape.graph.forward().iter().any(exchanges) {
            return Program::sequential(shape);
        }
        complete::complete(overlapped::order(shape), shape)
    }

    /// The forward pass of one micro-batch without gradients and losses, up to `end` if it is given: what that segment reads
    /// is then there. Weights are taken as they are.
    pub fn forward(graph: &Graph, end: Option<Segment>) -> Program {
        let end = end.map(Operation::Segment);
        let before_end = graph.forward().into_iter().take_while(|op| Some(*op) != end);
        let computed = before_end.filter(|op| !matches!(op, Operation::Segment(Segment::Head(_))));
        let order = computed.map(|operation| match operation {
            Operation::Segment(segment) => Act::Run(Task::Forward { micro: 0, segment }),
            Operation::Exchange(exchange) => {
                Act::Start(Transfer::Rows { micro: 0, exchange, pass: Pass::Forward })
            }
        });
        let program = depend(order.collect(), graph, &[], 1);
        if cfg!(debug_assertions) {
            check_forward(&program, graph).unwrap_or_else(|mistake| panic!("{mistake}"));
        }
        program
    }

    /// The same program without its updates: it ends when all gradients are complete on this rank.
    pub fn gradients(&self) -> Program {
        let norm = Act::Run(Task::GradNorm);
        let before = |i: &&Instruction| i.act != norm;
        let instructions = self.instructions.iter().take_while(before).cloned().collect();
        Program { instructions, micro_batches: self.micro_batches, carried: Vec::new() }
    }

    /// What its instructions do, in order.
    pub fn acts(&self) -> impl Iterator<Item = Act> + '_ {
        self.instructions.iter().map(|instruction| instruction.act)
    }
}

/// The accumulator that leaf `leaf` writes: one is taken for every finished subtree before it, which are as many as
/// `leaf` has bits set.
pub fn accumulator_of(leaf: usize) -> usize {
    leaf.count_ones() as usize
}

/// How many additions follow leaf `leaf`: the finished subtrees that it completes.
pub fn folds_after(leaf: usize) -> usize {
    leaf.trailing_ones() as usize
}

impl BucketUse {
    /// Whether a segment reads one of its parameters.
    pub fn is_read_by(&self, segment: Segment) -> bool {
        self.readers.iter().flatten().any(|reader| *reader == segment)
    }
}

impl StepShape {
    /// Micro-batches of one leaf.
    fn run(&self) -> usize {
        let StepShape { micro_batches, leaves, .. } = *self;
        assert!(leaves.is_power_of_two() && micro_batches.is_multiple_of(leaves));
        micro_batches / leaves
    }

    /// The leaf of a micro-batch.
    fn leaf(&self, micro: usize) -> usize {
        micro / self.run()
    }

    /// An operation in the forward pass.
    fn forward(&self, micro: usize, operation: Operation) -> Act {
        match operation {
            Operation::Segment(Segment::Head(depth)) => {
                Act::Run(Task::Loss { micro, depth, leaf: self.leaf(micro) })
            }
            Operation::Segment(segment) => Act::Run(Task::Forward { micro, segment }),
            Operation::Exchange(exchange) => {
                Act::Start(Transfer::Rows { micro, exchange, pass: Pass::Forward })
            }
        }
    }

    /// An operation in the backward pass; none for a head, whose gradients were made with its loss.
    fn backward(&self, micro: usize, operation: Operation) -> Option<Act> {
        match operation {
            Operation::Segment(Segment::Head(_)) => None,
            Operation::Segment(segment) => Some(Act::Run(Task::Backward { micro, segment })),
            Operation::Exchange(exchange) => {
                Some(Act::Start(Transfer::Rows { micro, exchange, pass: Pass::Backward }))
            }
        }
    }

    /// The weight gradients of an operation, if it has any that its loss has not made.
    fn weight(&self, micro: usize, operation: Operation) -> Option<Act> {
        let Operation::Segment(segment) = operation else { return None };
        let queued = values::queues_weights(segment);
        queued.then(|| Act::Run(Task::Weight { micro, segment, leaf: self.leaf(micro) }))
    }
}

impl Task {
    /// The micro-batch that it belongs to, if it belongs to one.
    pub fn micro(self) -> Option<usize> {
        match self {
            Task::Forward { micro, .. }
            | Task::Loss { micro, .. }
            | Task::Backward { micro, .. }
            | Task::Weight { micro, .. } => Some(micro),
            _ => None,
        }
    }

    /// The segment whose weight gradients it adds up, and their leaf.
    fn contributes(self) -> Option<(Segment, usize)> {
        match self {
            Task::Loss { depth, leaf, .. } => Some((Segment::Head(depth), leaf)),
            Task::Weight { segment, leaf, .. } => Some((segment, leaf)),
            _ => None,
        }
    }

    /// The same task of the first micro-batch: tasks for which this is equal take the same time.
    fn alike(self) -> Task {
        let (micro, leaf) = (0, 0);
        match self {
            Task::Forward { segment, .. } => Task::Forward { micro, segment },
            Task::Loss { depth, .. } => Task::Loss { micro, depth, leaf },
            Task::Backward { segment, .. } => Task::Backward { micro, segment },
            Task::Weight { segment, .. } => Task::Weight { micro, segment, leaf },
            other => other,
        }
    }
}

impl Transfer {
    /// The micro-batch that it belongs to, if it belongs to one.
    pub fn micro(self) -> Option<usize> {
        match self {
            Transfer::Rows { micro, .. } => Some(micro),
            Transfer::Reduce { .. } | Transfer::Gather { .. } => None,
        }
    }

    /// The same transfer of the first micro-batch: transfers for which this is equal take the same time.
    pub fn alike(self) -> Transfer {
        match self {
            Transfer::Rows { exchange, pass, .. } => Transfer::Rows { micro: 0, exchange, pass },
            other => other,
        }
    }
}

impl Act {
    /// The micro-batch that it belongs to, if it belongs to one.
    pub fn micro(self) -> Option<usize> {
        match self {
            Act::Run(task) => task.micro(),
            Act::Start(transfer) => transfer.micro(),
        }
    }

    /// The same act of the first micro-batch: acts for which this is equal take the same time.
    pub fn alike(self) -> Act {
        match self {
            Act::Run(task) => Act::Run(task.alike()),
            Act::Start(transfer) => Act::Start(transfer.alike()),
        }
    }

    /// What of the graph it carries out, for which micro-batch and in which pass; none for what does not follow the graph.
    pub fn operation(self) -> Option<(usize, Operation, Pass)> {
        match self {
            Act::Run(Task::Forward { micro, segment }) => {
                Some((micro, Operation::Segment(segment), Pass::Forward))
            }
            Act::Run(Task::Loss { micro, depth, .. }) => {
                Some((micro, Operation::Segment(Segment::Head(depth)), Pass::Forward))
            }
            Act::Run(Task::Backward { micro, segment }) => {
                Some((micro, Operation::Segment(segment), Pass::Backward))
            }
            Act::Start(Transfer::Rows { micro, exchange, pass }) => {
                Some((micro, Operation::Exchange(exchange), pass))
            }
            _ => None,
        }
    }
}

impl Value {
    /// The micro-batch that it belongs to.
    pub fn micro(self) -> usize {
        match self {
            Value::Slot { micro, .. }
            | Value::Gradient { micro, .. }
            | Value::Tape { micro, .. }
            | Value::Queue { micro, .. }
            | Value::Route { micro, .. } => micro,
        }
    }
}

#[cfg(test)]
mod tests;
