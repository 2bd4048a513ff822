//! The global gradient norm with the same bits for any layout: squares are summed in fp64 over fixed blocks of each
//! parameter, blocks left to right, parameters in order (docs/architecture.md, "Canonical reduction").
//!
//! Every block is summed by one rank, the one whose shard it lies in. A parameter inside one shard is one number; one that
//! is cut gives a number per block. All ranks fill their places of one table and then add it up in the same order.

use crate::Result;
use crate::planted::{Bug, planted};
use crate::state::{State, intersection};
use lampyris_plan::Mesh;
use lampyris_plan::buckets::Buckets;
use lampyris_plan::inventory::{Group, Inventory, ParameterId};
use lampyris_plan::shards::{NORM_BLOCK, shards};
use lampyris_torch::{dim, ops};
use std::ops::Range;

/// Where each parameter's sums stand in the table; the same on all ranks.
#[derive(Debug)]
pub struct NormTable {
    /// By parameter: its places, one if it lies in one shard, else one per block.
    places: Vec<Range<usize>>,
}

impl NormTable {
    /// The table of a layout.
    pub fn new(inventory: &Inventory, bucket_bytes: usize, mesh: Mesh) -> NormTable {
        let mut lengths = vec![0usize; inventory.parameters.len()];
        for index in 0..mesh.expert {
            let keep = |id: ParameterId| mesh.holds(index, inventory, id);
            let buckets = Buckets::new(inventory, bucket_bytes, keep);
            let all = shards(inventory, &buckets, |group| mesh.replicas(group, index).len());
            for (bucket, shards) in buckets.buckets.iter().zip(all) {
                for p in &bucket.placements {
                    let whole = p.offset..p.offset + p.elements;
                    let cut =
                        shards.iter().filter(|s| !intersection(s, &whole).is_empty()).count() > 1;
                    lengths[p.parameter] = if cut { p.elements.div_ceil(NORM_BLOCK) } else { 1 };
                }
            }
        }
        let mut next = 0;
        let place = |length| {
            next += length;
            next - length..next
        };
        NormTable { places: lengths.into_iter().map(place).collect() }
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.places.last().map_or(0, |places| places.end)
    }

    /// Whether there is nothing to sum.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the places of the blocks in this rank's shards.
    pub fn fill(&self, state: &State, table: &mut [f64]) -> Result<()> {
        for (bucket, array) in state.buckets.buckets.iter().zip(&state.arrays) {
            let gradient = &state.gradients.bucket(bucket.id).tensor;
            let shard = array.shard();
            for p in &bucket.placements {
                let part = intersection(&(p.offset..p.offset + p.elements), &shard);
                if part.is_empty() {
                    continue;
                }
                let sum = |range: &Range<usize>| {
                    ops::square_sum(&gradient.narrow(0, dim(range.start), dim(range.len())))
                };
                let places = self.places[p.parameter].clone();
                if places.len() == 1 {
                    table[places.start] = sum(&part)?;
                    if planted(Bug::CountTwice) && bucket.group == Group::Dense {
                        table[places.start] *= 2.0;
                    }
                    continue;
                }
                for start in part.clone().step_by(NORM_BLOCK) {
                    let block = start..(start + NORM_BLOCK).min(part.end);
                    table[places.start + (start - p.offset) / NORM_BLOCK] = sum(&block)?;
                }
            }
        }
        Ok(())
    }

    /// Squared norm of each parameter, in order.
    pub fn squares<'a>(&'a self, table: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        self.places.iter().map(|places| table[places.clone()].iter().sum())
    }
}
