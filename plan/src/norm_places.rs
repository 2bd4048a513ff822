//! Where the sums of the global gradient norm stand, so that it has the same bits for any layout: squares are summed in
//! fp64 over fixed blocks of each parameter, blocks left to right, parameters in order (docs/architecture.md, "Canonical
//! reduction").
//!
//! Every block is summed by one rank, the one whose shard it lies in. A parameter inside one shard is one number; one that
//! is cut gives a number per block.

use crate::buckets::Buckets;
use crate::inventory::ParameterId;
use crate::shards::NORM_BLOCK;
use std::ops::Range;

/// Places of a table that all ranks fill together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormPlaces {
    /// By parameter.
    places: Vec<Range<usize>>,
}

impl NormPlaces {
    /// The places of `parameters` parameters: `buckets` of every expert index, all cut into the same shards.
    pub fn new<'a>(
        parameters: usize,
        buckets: impl Iterator<Item = &'a Buckets>,
        shards: &[Vec<Range<usize>>],
    ) -> NormPlaces {
        let mut lengths = vec![0usize; parameters];
        for buckets in buckets {
            for (bucket, shards) in buckets.buckets.iter().zip(shards) {
                for p in &bucket.placements {
                    // Shards follow each other; some may be empty.
                    let first = shards.partition_point(|shard| shard.end <= p.offset);
                    let whole = shards[first].end >= p.offset + p.elements;
                    lengths[p.parameter] = if whole { 1 } else { p.elements.div_ceil(NORM_BLOCK) };
                }
            }
        }
        let mut next = 0;
        let place = |length| {
            next += length;
            next - length..next
        };
        NormPlaces { places: lengths.into_iter().map(place).collect() }
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.places.last().map_or(0, |places| places.end)
    }

    /// Whether there is nothing to sum.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The places of a parameter: one if it lies in one shard, else one per block.
    pub fn of(&self, parameter: ParameterId) -> Range<usize> {
        self.places[parameter].clone()
    }

    /// Sum of the places of each parameter, in order.
    pub fn sums<'a>(&'a self, table: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        self.places.iter().map(|places| table[places.clone()].iter().sum())
    }
}
