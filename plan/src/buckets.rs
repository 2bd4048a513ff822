//! Flat buckets: parameters and their gradients live in a few long arrays, so that a reduction, an optimizer pass or a
//! copy is one operation on one range (HFReduce, Fire-Flyer section IV; Megatron's distributed optimizer).
//!
//! One list of buckets per (reduction group, storage type, optimizer), each in order of **last** gradient contribution in
//! the backward pass: the bucket that is complete first comes first. Every parameter starts on a 64-byte boundary.

use crate::inventory::{Group, Inventory, Optimizer, ParameterId, Storage};

/// Parameters start at multiples of this many elements: 64 bytes of bf16, 128 of fp32.
pub const ALIGN_ELEMENTS: usize = 32;

/// One flat array of parameters. Weights, gradients and optimizer state of a bucket share its offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Position in [`Buckets::buckets`].
    pub id: usize,
    /// Reduction group of all its parameters.
    pub group: Group,
    /// Storage type of the weights that the forward pass reads.
    pub storage: Storage,
    /// What updates its parameters.
    pub optimizer: Optimizer,
    /// Parameters in the order in which they lie.
    pub placements: Vec<Placement>,
    /// Elements, alignment gaps included.
    pub elements: usize,
}

/// Where a parameter lies in its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The parameter.
    pub parameter: ParameterId,
    /// First element in the bucket.
    pub offset: usize,
    /// Number of elements.
    pub elements: usize,
}

/// The buckets of a network and the place of every parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// All buckets; a bucket's id is its index.
    pub buckets: Vec<Bucket>,
    /// Per parameter: `(bucket, index into its placements)`.
    pub places: Vec<(usize, usize)>,
}

impl Buckets {
    /// Lays out the parameters of `inventory` that `keep` selects (an expert-parallel rank keeps its own experts), in
    /// buckets of at most `bucket_bytes` of fp32 (a larger parameter has a bucket of its own).
    pub fn new(
        inventory: &Inventory,
        bucket_bytes: usize,
        keep: impl Fn(ParameterId) -> bool,
    ) -> Buckets {
        let limit = (bucket_bytes / 4).max(1);
        let mut buckets: Vec<Bucket> = Vec::new();
        let order: Vec<ParameterId> =
            backward_order(inventory).into_iter().filter(|id| keep(*id)).collect();
        let mut places = vec![(usize::MAX, usize::MAX); inventory.parameters.len()];
        for (group, storage, optimizer) in [
            (Group::Dense, Storage::Compute, Optimizer::AdamW),
            (Group::Dense, Storage::Compute, Optimizer::Muon),
            (Group::Dense, Storage::Fp32, Optimizer::AdamW),
            (Group::Expert, Storage::Compute, Optimizer::AdamW),
            (Group::Expert, Storage::Compute, Optimizer::Muon),
            (Group::Expert, Storage::Fp32, Optimizer::AdamW),
        ] {
            let mut open: Option<Bucket> = None;
            for &id in &order {
                let parameter = &inventory.parameters[id];
                let key = (parameter.group, parameter.storage, parameter.optimizer);
                if key != (group, storage, optimizer) {
                    continue;
                }
                let elements = parameter.elements();
                if open.as_ref().is_some_and(|bucket| bucket.elements + elements > limit) {
                    buckets.extend(open.take());
                }
                let bucket = open.get_or_insert_with(|| Bucket {
                    id: buckets.len(),
                    group,
                    storage,
                    optimizer,
                    placements: Vec::new(),
                    elements: 0,
                });
                places[id] = (bucket.id, bucket.placements.len());
                bucket.placements.push(Placement {
                    parameter: id,
                    offset: bucket.elements,
                    elements,
                });
                bucket.elements += elements.next_multiple_of(ALIGN_ELEMENTS);
            }
            buckets.extend(open);
        }
        Buckets { buckets, places }
    }

    /// The place of a parameter: its bucket and offsets; none if it is not kept.
    pub fn find(&self, parameter: ParameterId) -> Option<(usize, Placement)> {
        let (bucket, index) = self.places[parameter];
        Some((bucket, *self.buckets.get(bucket)?.placements.get(index)?))
    }

    /// The place of a kept parameter: its bucket and offsets.
    pub fn place(&self, parameter: ParameterId) -> (usize, Placement) {
        let (bucket, index) = self.places[parameter];
        (bucket, self.buckets[bucket].placements[index])
    }
}

/// Parameters in order of their last gradient contribution: the head (its gradient is made in the forward pass), then
/// against the order of first use. The tied or shared embedding is last.
fn backward_order(inventory: &Inventory) -> Vec<ParameterId> {
    let mut order: Vec<ParameterId> = (0..inventory.parameters.len()).rev().collect();
    order.sort_by_key(|&id| inventory.parameters[id].kind != crate::inventory::Kind::Head);
    order
}
