//! ZeRO-1 shards: which part of a bucket each of its ranks updates (1910.02054, section 5.1).
//!
//! Shards of AdamW are flat: cut where blocks of the gradient norm end, so that every block is squared and summed by one
//! rank, and the norm has the same bits for any number of ranks. A matrix of Muon has one owner, because its update needs
//! all of it; owners are balanced by what their updates cost, over all buckets of a reduction group.

use crate::buckets::{Bucket, Buckets};
use crate::flops::newton_schulz;
use crate::inventory::{Group, Inventory, Optimizer};
use std::collections::BTreeMap;
use std::ops::Range;

/// Elements of one block of the squared norm, counted from the beginning of each parameter.
pub const NORM_BLOCK: usize = 4096;

/// Of each bucket one contiguous shard per rank of its reduction group, which has `ranks(group)`; together they are the
/// bucket.
pub fn shards(
    inventory: &Inventory,
    buckets: &Buckets,
    ranks: impl Fn(Group) -> usize,
) -> Vec<Vec<Range<usize>>> {
    let mut loads: BTreeMap<Group, Vec<u64>> = BTreeMap::new();
    let of_bucket = |bucket: &Bucket| match bucket.optimizer {
        Optimizer::AdamW => flat(bucket, ranks(bucket.group)),
        Optimizer::Muon => {
            let none = || vec![0; ranks(bucket.group)];
            whole_matrices(inventory, bucket, loads.entry(bucket.group).or_insert_with(none))
        }
    };
    buckets.buckets.iter().map(of_bucket).collect()
}

/// Shards that are cut where a parameter begins: the ranks in order take consecutive matrices, so that the rank with the
/// most operations, those of earlier buckets (`loads`) included, has as few as possible. `loads` grows by what each takes.
fn whole_matrices(inventory: &Inventory, bucket: &Bucket, loads: &mut [u64]) -> Vec<Range<usize>> {
    let costs: Vec<u64> = bucket
        .placements
        .iter()
        .map(|placement| newton_schulz(&inventory.parameters[placement.parameter]))
        .collect();
    // Where each rank's matrices end if every rank takes as many as it can within `limit`.
    let take = |limit: u64| {
        let mut next = 0;
        let ends = loads.iter().map(|&load| {
            let mut load = load;
            while next < costs.len() && load + costs[next] <= limit {
                load += costs[next];
                next += 1;
            }
            next
        });
        ends.collect::<Vec<usize>>()
    };
    let most = loads.iter().copied().max().unwrap_or(0);
    let (mut low, mut high) = (most, most + costs.iter().sum::<u64>());
    while low < high {
        let limit = low + (high - low) / 2;
        if take(limit).last() == Some(&costs.len()) { high = limit } else { low = limit + 1 }
    }
    let ends = take(low);
    let offset = |at: usize| bucket.placements.get(at).map_or(bucket.elements, |p| p.offset);
    let mut first = 0;
    let mut out = Vec::new();
    for (load, end) in loads.iter_mut().zip(ends) {
        *load += costs[first..end].iter().sum::<u64>();
        out.push(offset(first)..offset(end));
        first = end;
    }
    out
}

/// Shards as even as the blocks of the norm allow.
fn flat(bucket: &Bucket, ranks: usize) -> Vec<Range<usize>> {
    let bounds: Vec<usize> = (0..=ranks)
        .map(|rank| match rank {
            0 => 0,
            _ if rank == ranks => bucket.elements,
            _ => nearest_cut(bucket, bucket.elements * rank / ranks),
        })
        .collect();
    bounds.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// The end of a block that is nearest to element `wanted`; of two the one below. Blocks begin at each parameter, so that
/// this is a search for the parameter and a division.
fn nearest_cut(bucket: &Bucket, wanted: usize) -> usize {
    let next = bucket.placements.partition_point(|placement| placement.offset < wanted);
    let next_begins = bucket.placements.get(next).map_or(bucket.elements, |p| p.offset);
    let Some(before) = next.checked_sub(1).map(|at| bucket.placements[at]) else {
        return next_begins;
    };
    let blocks = (wanted - before.offset).div_ceil(NORM_BLOCK);
    let above = blocks * NORM_BLOCK;
    let above = if above < before.elements { before.offset + above } else { next_begins };
    let last_block = before.elements.div_ceil(NORM_BLOCK);
    let below = before.offset + (blocks.min(last_block) - 1) * NORM_BLOCK;
    if wanted - below <= above - wanted { below } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buckets::Placement;
    use crate::fixture;
    use crate::inventory::Storage;
    use crate::train_plan::{MuonPlan, TrainPlan};

    fn bucket(sizes: &[usize]) -> Bucket {
        let mut bucket = Bucket {
            id: 0,
            group: Group::Dense,
            storage: Storage::Compute,
            optimizer: Optimizer::AdamW,
            placements: Vec::new(),
            elements: 0,
        };
        for (parameter, &elements) in sizes.iter().enumerate() {
            bucket.placements.push(Placement { parameter, offset: bucket.elements, elements });
            bucket.elements += elements.next_multiple_of(crate::buckets::ALIGN_ELEMENTS);
        }
        bucket
    }

    /// The cuts one by one, as [`flat`] does not list them.
    fn nearest_of_all(bucket: &Bucket, wanted: usize) -> usize {
        let blocks = bucket
            .placements
            .iter()
            .flat_map(|p| (p.offset..p.offset + p.elements).step_by(NORM_BLOCK));
        let cuts = blocks.chain([bucket.elements]);
        cuts.min_by_key(|cut| cut.abs_diff(wanted)).expect("a bucket has an end")
    }

    #[test]
    fn the_nearest_cut_is_the_nearest_of_all() {
        for sizes in [&[5][..], &[100_000], &[1, 2, 3], &[9000, 33, 64_000, 7], &[4096, 4097]] {
            let bucket = bucket(sizes);
            for wanted in (0..=bucket.elements).step_by(31) {
                assert_eq!(
                    nearest_cut(&bucket, wanted),
                    nearest_of_all(&bucket, wanted),
                    "{wanted}"
                );
            }
        }
    }

    #[test]
    fn shards_tile_the_bucket_and_cut_at_blocks() {
        for sizes in [&[5][..], &[100_000], &[1, 2, 3], &[9000, 33, 64_000, 7], &[4096, 4097]] {
            let bucket = bucket(sizes);
            for ranks in 1..9 {
                let shards = flat(&bucket, ranks);
                assert_eq!(shards.len(), ranks);
                assert_eq!((shards[0].start, shards[ranks - 1].end), (0, bucket.elements));
                for pair in shards.windows(2) {
                    assert_eq!(pair[0].end, pair[1].start);
                    let cut = pair[0].end;
                    let inside = bucket.placements.iter().any(|p| {
                        let range = p.offset..p.offset + p.elements;
                        range.contains(&cut) && (cut - p.offset) % NORM_BLOCK != 0
                    });
                    assert!(!inside, "{sizes:?} {ranks} {cut}");
                }
            }
        }
    }

    #[test]
    fn shards_of_a_large_bucket_are_even() {
        let shards = flat(&bucket(&[1_000_000, 2_000_000]), 4);
        assert!(shards.iter().all(|s| s.len().abs_diff(750_000) <= NORM_BLOCK), "{shards:?}");
    }

    fn muon_plan(bucket_bytes: usize) -> TrainPlan {
        let mut plan = fixture::plan();
        plan.optimizer.muon = Some(MuonPlan { momentum: 0.95 });
        (plan.parallel.zero, plan.parallel.bucket_bytes) = (1, bucket_bytes);
        plan
    }

    /// Buckets of one matrix, of a few, of all.
    const BUCKET_BYTES: [usize; 3] = [1, 100_000, 1 << 30];

    #[test]
    fn muon_shards_tile_their_buckets_and_cut_no_matrix() {
        for bucket_bytes in BUCKET_BYTES {
            let plan = muon_plan(bucket_bytes);
            let inventory = Inventory::of(&plan);
            let buckets = Buckets::new(&inventory, bucket_bytes, |_| true);
            for ranks in 1..9 {
                let all = shards(&inventory, &buckets, |_| ranks);
                for (bucket, shards) in buckets.buckets.iter().zip(&all) {
                    assert_eq!(shards.len(), ranks);
                    assert_eq!((shards[0].start, shards[ranks - 1].end), (0, bucket.elements));
                    assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
                    for p in
                        bucket.placements.iter().filter(|_| bucket.optimizer == Optimizer::Muon)
                    {
                        let whole = p.offset..p.offset + p.elements;
                        let owners = shards.iter().filter(|shard| {
                            !shard.is_empty()
                                && shard.start <= whole.start
                                && whole.end <= shard.end
                        });
                        assert_eq!(owners.count(), 1, "{bucket_bytes} {ranks} {whole:?}");
                    }
                }
            }
        }
    }
}
