//! Step programs: what a rank does in one optimizer step, as a list of instructions. Pure data; `trainer` executes it
//! one instruction after the other, so every overlap in the system is an order of instructions here.
//!
//! Gradient leaves (docs/architecture.md, "Canonical reduction"): the micro-batches of a step form L equal consecutive
//! runs; a run is summed left to right into one fp32 accumulator, and the accumulators are summed as one balanced binary
//! tree. `FoldLeaf` is one step of that tree, in the manner of a binary counter.

use crate::buckets::{Bucket, Buckets};
use crate::inventory::{Group, Inventory, Kind};
use crate::mesh::Mesh;
use crate::segments::{Graph, Operation, Segment};
use std::fmt;

mod overlapped;
mod sequential;

pub use overlapped::overlapped;
pub use sequential::sequential;

/// One instruction of a step program. `micro` counts the micro-batches of the step from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// Clear the accumulators that gradient leaf `leaf` will use.
    BeginLeaf {
        /// Leaf of this rank, 0-based.
        leaf: usize,
    },
    /// Run a segment.
    Forward {
        /// Micro-batch.
        micro: usize,
        /// Segment.
        segment: Segment,
    },
    /// Input gradients of a segment; its weight gradients are queued.
    Backward {
        /// Micro-batch.
        micro: usize,
        /// Segment.
        segment: Segment,
    },
    /// Add the queued weight gradients of a segment to the open leaf.
    Weight {
        /// Micro-batch.
        micro: usize,
        /// Segment.
        segment: Segment,
    },
    /// Rows from tokens to experts.
    Dispatch {
        /// Micro-batch.
        micro: usize,
        /// Decoder layer.
        layer: usize,
        /// Direction of the pass: in the backward pass this is the gradient of `Dispatch`.
        pass: Pass,
    },
    /// Rows from experts back to tokens.
    Combine {
        /// Micro-batch.
        micro: usize,
        /// Decoder layer.
        layer: usize,
        /// Direction of the pass: in the backward pass this is the gradient of `Combine`.
        pass: Pass,
    },
    /// The bucket has the last contribution of leaf `leaf`: add finished neighbours of the tree together.
    FoldLeaf {
        /// Bucket.
        bucket: usize,
        /// Leaf just finished.
        leaf: usize,
    },
    /// The bucket's gradient is complete on this rank: sum it over the ranks that hold the same parameters, to the
    /// shards of ZeRO-1 or to all of them. Returns at once; `GradNorm` waits.
    ReduceBucket {
        /// Bucket.
        bucket: usize,
    },
    /// Global gradient norm over all buckets, in parameter order; clipping factor; NaN guard.
    GradNorm,
    /// The optimizer on this rank's shard of the bucket; with one rank the shard is the bucket.
    UpdateShard {
        /// Bucket.
        bucket: usize,
    },
    /// The updated shards of the bucket, on all ranks that hold it. Returns at once; the first segment that reads one of
    /// its parameters waits, in the next step if need be.
    GatherBucket {
        /// Bucket.
        bucket: usize,
    },
    /// Gate biases from the expert counts of the global batch (DeepSeek-V3, section 2.1.2).
    UpdateBias,
}

/// Direction of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Forward pass.
    Forward,
    /// Backward pass.
    Backward,
}

/// The instructions of one step and what the executor must allocate for them.
#[derive(Debug, Clone)]
pub struct Program {
    /// In order of execution.
    pub instructions: Vec<Instruction>,
    /// Micro-batches of the step.
    pub micro_batches: usize,
    /// Gradient accumulators per bucket: log2(leaves) + 1.
    pub accumulators: usize,
}

impl Program {
    fn new(instructions: Vec<Instruction>, shape: &Shape) -> Program {
        let accumulators = shape.leaves.ilog2() as usize + 1;
        Program { instructions, micro_batches: shape.micro_batches, accumulators }
    }

    /// The same program without its updates: it ends when all gradients are complete.
    pub fn gradients(&self) -> Program {
        let updates = |i: &&Instruction| !matches!(i, Instruction::GradNorm);
        let instructions = self.instructions.iter().take_while(updates).copied().collect();
        Program { instructions, ..*self }
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

/// What a step consists of, and how far its state is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Micro-batches of this rank.
    pub micro_batches: usize,
    /// Gradient leaves of this rank, a power of two that divides `micro_batches`.
    pub leaves: usize,
    /// Ranks of the job.
    pub mesh: Mesh,
    /// ZeRO-1: each rank updates its shard of a bucket.
    pub sharded: bool,
}

impl Shape {
    /// A step on one rank.
    pub fn one_rank(micro_batches: usize, leaves: usize) -> Shape {
        Shape { micro_batches, leaves, mesh: Mesh::ONE, sharded: false }
    }

    /// Micro-batches of one leaf.
    fn run(&self) -> usize {
        let Shape { micro_batches, leaves, .. } = *self;
        assert!(leaves.is_power_of_two() && micro_batches.is_multiple_of(leaves));
        micro_batches / leaves
    }

    /// The instruction that opens the leaf of `micro`, if it is the first of its leaf.
    fn begins_leaf(&self, micro: usize) -> Option<Instruction> {
        let first = micro.is_multiple_of(self.run());
        first.then(|| Instruction::BeginLeaf { leaf: micro / self.run() })
    }

    /// Whether the gradients of a group's buckets are summed beyond this rank's leaves.
    fn reduces(&self, group: Group) -> bool {
        self.mesh.replicas(group, 0).len() * self.mesh.sources(group) > 1
    }

    /// Whether the updated shards of a group's buckets must be brought together.
    fn gathers(&self, group: Group) -> bool {
        self.sharded && self.mesh.replicas(group, 0).len() > 1
    }
}

/// What follows the last backward: norm, updates and gathers in the order in which the next forward pass reads, biases.
fn update(
    graph: &Graph,
    inventory: &Inventory,
    buckets: &Buckets,
    shape: &Shape,
    out: &mut Vec<Instruction>,
) {
    out.push(Instruction::GradNorm);
    let forward = graph.forward();
    let first_reader = |bucket: &&Bucket| {
        let readers = readers(bucket, inventory, graph);
        forward
            .iter()
            .position(|op| matches!(op, Operation::Segment(segment) if readers.contains(segment)))
    };
    let mut order: Vec<&Bucket> = buckets.buckets.iter().collect();
    order.sort_by_key(first_reader);
    for bucket in order {
        out.push(Instruction::UpdateShard { bucket: bucket.id });
        if shape.gathers(bucket.group) {
            out.push(Instruction::GatherBucket { bucket: bucket.id });
        }
    }
    out.push(Instruction::UpdateBias);
}

/// Every segment whose forward reads a parameter of the bucket.
pub fn readers(bucket: &Bucket, inventory: &Inventory, graph: &Graph) -> Vec<Segment> {
    let mut out = Vec::new();
    for placement in &bucket.placements {
        let parameter = &inventory.parameters[placement.parameter];
        let last = owner(inventory, graph, placement.parameter);
        let head = |segment: &Segment| matches!(segment, Segment::Head(_));
        let takes_tokens =
            |segment: &Segment| matches!(segment, Segment::Embed | Segment::MtpInput(_));
        let tied = inventory.parameters.iter().all(|p| p.kind != Kind::Head);
        let segments = graph.forward().into_iter().filter_map(|operation| match operation {
            Operation::Segment(segment) => Some(segment),
            _ => None,
        });
        out.extend(segments.filter(|segment| match parameter.kind {
            Kind::Embedding => takes_tokens(segment) || tied && head(segment),
            Kind::Head => head(segment),
            _ => *segment == last,
        }));
    }
    out.sort_unstable();
    out.dedup();
    out
}

fn forward(micro: usize, operation: Operation) -> Instruction {
    match operation {
        Operation::Segment(segment) => Instruction::Forward { micro, segment },
        Operation::Dispatch(layer) => Instruction::Dispatch { micro, layer, pass: Pass::Forward },
        Operation::Combine(layer) => Instruction::Combine { micro, layer, pass: Pass::Forward },
    }
}

fn backward(micro: usize, operation: Operation) -> Instruction {
    match operation {
        Operation::Segment(segment) => Instruction::Backward { micro, segment },
        Operation::Dispatch(layer) => Instruction::Dispatch { micro, layer, pass: Pass::Backward },
        Operation::Combine(layer) => Instruction::Combine { micro, layer, pass: Pass::Backward },
    }
}

/// The head adds its weight gradient chunk by chunk in its forward pass; a merge has no weights.
fn has_weights(segment: Segment) -> bool {
    !matches!(segment, Segment::Head(_) | Segment::Merge(_))
}

/// Where buckets are complete in a micro-batch's backward pass.
struct Folds {
    shape: Shape,
    /// (index of the instruction that makes the last contribution, bucket, whether it is reduced after the last leaf).
    points: Vec<(usize, usize, bool)>,
}

impl Folds {
    /// `stream`: the backward pass of a micro-batch, any of them.
    fn new(
        stream: &[Instruction],
        (graph, inventory): (&Graph, &Inventory),
        buckets: &Buckets,
        shape: &Shape,
    ) -> Folds {
        let done = |owner: Segment| {
            let contributes = |i: &Instruction| match i {
                Instruction::Backward { segment, .. } | Instruction::Weight { segment, .. } => {
                    *segment == owner
                }
                _ => false,
            };
            stream.iter().rposition(contributes).expect("every parameter has a segment")
        };
        let point = |bucket: &Bucket| {
            let parameters = bucket.placements.iter().map(|placement| placement.parameter);
            let last = parameters.map(|parameter| done(owner(inventory, graph, parameter))).max();
            let last = last.expect("a bucket holds at least one parameter");
            (last, bucket.id, shape.reduces(bucket.group))
        };
        Folds { shape: *shape, points: buckets.buckets.iter().map(point).collect() }
    }

    /// The backward pass of `micro` with the folds, and after the last leaf the reductions, of what it completes.
    fn after(&self, stream: Vec<Instruction>, micro: usize) -> Vec<Instruction> {
        let (run, leaf) = (self.shape.run(), micro / self.shape.run());
        if micro % run != run - 1 {
            return stream;
        }
        let mut out = Vec::new();
        for (at, instruction) in stream.into_iter().enumerate() {
            out.push(instruction);
            for &(_, bucket, reduced) in self.points.iter().filter(|point| point.0 == at) {
                out.push(Instruction::FoldLeaf { bucket, leaf });
                if reduced && leaf + 1 == self.shape.leaves {
                    out.push(Instruction::ReduceBucket { bucket });
                }
            }
        }
        out
    }
}

/// The segment whose backward makes the last contribution to a parameter.
fn owner(inventory: &Inventory, graph: &Graph, parameter: usize) -> Segment {
    let parameter = &inventory.parameters[parameter];
    let Some(layer) = parameter.layer else {
        return match parameter.kind {
            Kind::Embedding => Segment::Embed,
            // The loss segments ran in the forward pass: their gradient is complete when backward begins.
            Kind::Head => Segment::Head(graph.depths() - 1),
            _ => Segment::FinalNorm,
        };
    };
    let name = parameter.name.as_str();
    match parameter.kind {
        Kind::Expert { .. } => Segment::Experts(layer),
        Kind::FeedForward if name.contains(".shared.") => Segment::Shared(layer),
        Kind::FeedForward => Segment::FeedForward(layer),
        Kind::MtpProjection => Segment::MtpInput(layer),
        Kind::Norm if name.ends_with(".embedding_norm") || name.ends_with(".hidden_norm") => {
            Segment::MtpInput(layer)
        }
        Kind::Norm if name.ends_with(".head_norm") => Segment::MtpNorm(layer),
        _ => Segment::Attention(layer),
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = |pass: &Pass| if *pass == Pass::Forward { "" } else { " (backward)" };
        match self {
            Instruction::BeginLeaf { leaf } => write!(f, "BeginLeaf    leaf {leaf}"),
            Instruction::Forward { micro, segment } => write!(f, "Forward      m{micro} {segment}"),
            Instruction::Backward { micro, segment } => {
                write!(f, "Backward     m{micro} {segment}")
            }
            Instruction::Weight { micro, segment } => write!(f, "Weight       m{micro} {segment}"),
            Instruction::Dispatch { micro, layer, pass } => {
                write!(f, "Dispatch     m{micro} layer {layer}{}", direction(pass))
            }
            Instruction::Combine { micro, layer, pass } => {
                write!(f, "Combine      m{micro} layer {layer}{}", direction(pass))
            }
            Instruction::FoldLeaf { bucket, leaf } => {
                write!(f, "FoldLeaf     bucket {bucket} leaf {leaf}")
            }
            Instruction::ReduceBucket { bucket } => write!(f, "ReduceBucket bucket {bucket}"),
            Instruction::GradNorm => write!(f, "GradNorm"),
            Instruction::UpdateShard { bucket } => write!(f, "UpdateShard  bucket {bucket}"),
            Instruction::GatherBucket { bucket } => write!(f, "GatherBucket bucket {bucket}"),
            Instruction::UpdateBias => write!(f, "UpdateBias"),
        }
    }
}

#[cfg(test)]
mod tests;
