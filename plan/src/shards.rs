//! ZeRO-1 shards: which part of a bucket each of its ranks updates (1910.02054, section 5.1).
//!
//! Shards are cut where blocks of the gradient norm end, so that every block is squared and summed by one rank, and the
//! norm has the same bits for any number of ranks.

use crate::buckets::Bucket;
use std::ops::Range;

/// Elements of one block of the squared norm, counted from the beginning of each parameter.
pub const NORM_BLOCK: usize = 4096;

/// One contiguous shard per rank of the bucket's group, as even as the blocks allow; together they are the bucket.
pub fn shards(bucket: &Bucket, ranks: usize) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    for placement in &bucket.placements {
        cuts.extend((placement.offset..placement.offset + placement.elements).step_by(NORM_BLOCK));
    }
    cuts.push(bucket.elements);
    let nearest = |wanted: usize| {
        let above = cuts.partition_point(|&cut| cut < wanted);
        let candidates = [above.saturating_sub(1), above.min(cuts.len() - 1)];
        candidates.map(|at| cuts[at]).into_iter().min_by_key(|cut| cut.abs_diff(wanted))
    };
    let bounds: Vec<usize> = (0..=ranks)
        .map(|rank| match rank {
            0 => 0,
            _ if rank == ranks => bucket.elements,
            _ => nearest(bucket.elements * rank / ranks).unwrap_or(0),
        })
        .collect();
    bounds.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buckets::Placement;
    use crate::inventory::{Group, Storage};

    fn bucket(sizes: &[usize]) -> Bucket {
        let mut bucket = Bucket {
            id: 0,
            group: Group::Dense,
            storage: Storage::Compute,
            placements: Vec::new(),
            elements: 0,
        };
        for (parameter, &elements) in sizes.iter().enumerate() {
            bucket.placements.push(Placement { parameter, offset: bucket.elements, elements });
            bucket.elements += elements.next_multiple_of(crate::buckets::ALIGN_ELEMENTS);
        }
        bucket
    }

    #[test]
    fn shards_tile_the_bucket_and_cut_at_blocks() {
        for sizes in [&[5][..], &[100_000], &[1, 2, 3], &[9000, 33, 64_000, 7], &[4096, 4097]] {
            let bucket = bucket(sizes);
            for ranks in 1..9 {
                let shards = shards(&bucket, ranks);
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
        let shards = shards(&bucket(&[1_000_000, 2_000_000]), 4);
        assert!(shards.iter().all(|s| s.len().abs_diff(750_000) <= NORM_BLOCK), "{shards:?}");
    }
}
