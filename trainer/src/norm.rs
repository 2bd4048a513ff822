//! This rank's part of the global gradient norm: the sums of squares of the blocks in its shards, at their places in the
//! table that all ranks fill together ([`lampyris_plan::norm_places`]).

use crate::Result;
use crate::planted::{Bug, planted};
use crate::state::State;
use lampyris_plan::inventory::Group;
use lampyris_plan::shards::NORM_BLOCK;
use lampyris_plan::share::intersection;
use lampyris_torch::{dim, ops};
use std::ops::Range;

/// The table with this rank's places filled; the others are zero.
///
/// # Errors
/// libtorch refuses.
pub fn table(state: &State) -> Result<Vec<f64>> {
    let norm = state.share.norm();
    let mut table = vec![0f64; norm.len()];
    for (bucket, array) in state.buckets.buckets.iter().zip(&state.arrays) {
        let gradient = &state.gradients.bucket(bucket.id).tensor;
        for p in &bucket.placements {
            let part = intersection(&(p.offset..p.offset + p.elements), &array.shard);
            if part.is_empty() {
                continue;
            }
            let sum = |range: &Range<usize>| {
                ops::square_sum(&gradient.narrow(0, dim(range.start), dim(range.len())))
            };
            let places = norm.of(p.parameter);
            if places.len() == 1 {
                let twice = planted(Bug::CountTwice) && bucket.group == Group::Dense;
                table[places.start] = sum(&part)? * if twice { 2.0 } else { 1.0 };
                continue;
            }
            for start in part.clone().step_by(NORM_BLOCK) {
                let block = start..(start + NORM_BLOCK).min(part.end);
                table[places.start + (start - p.offset) / NORM_BLOCK] = sum(&block)?;
            }
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests;
