//! Who reduces what: ranks as a grid of nodes times local ranks, and a bucket as one shard per rank.
//!
//! Local rank `i` of every node sums the shards `(0, i), (1, i), ...` of its node's buckets and exchanges them with the
//! local ranks `i` of the other nodes: no leader, and every core and every NIC does an equal part. Pure.

use crate::error::{Error, Result};
use lampyris_comm::{Node, Rank};
use std::ops::Range;

/// The grid of one reduction group, seen by one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Number of nodes.
    pub nodes: usize,
    /// Ranks per node.
    pub locals: usize,
    /// This rank's node.
    pub node: usize,
    /// This rank's index on it.
    pub local: usize,
}

impl Grid {
    /// The grid of members in order, each with its node; `me` is this rank's index.
    ///
    /// # Errors
    /// When nodes do not hold equal numbers of consecutive members.
    pub fn of(nodes: &[Node], me: usize) -> Result<Self> {
        let locals = nodes.iter().take_while(|node| **node == nodes[0]).count();
        let mut seen = Vec::new();
        for block in nodes.chunks(locals) {
            let whole = block.len() == locals && block.iter().all(|node| *node == block[0]);
            if !whole || seen.contains(&block[0]) {
                let list = nodes.iter().map(|node| node.0).collect::<Vec<_>>();
                return Err(Error::Layout(format!("the members' nodes are {list:?}")));
            }
            seen.push(block[0]);
        }
        Ok(Self { nodes: seen.len(), locals, node: me / locals, local: me % locals })
    }

    /// The members on this rank's node.
    pub fn neighbours(&self, members: &[Rank]) -> Vec<Rank> {
        members[self.node * self.locals..][..self.locals].to_vec()
    }

    /// This rank's counterparts, one per node.
    pub fn counterparts(&self, members: &[Rank]) -> Vec<Rank> {
        (0..self.nodes).map(|node| members[node * self.locals + self.local]).collect()
    }

    /// The shards that local rank `local` works on, one per node.
    pub fn column(&self, shards: &[Range<usize>], local: usize) -> Vec<Range<usize>> {
        (0..self.nodes).map(|node| shards[node * self.locals + local].clone()).collect()
    }
}

/// Refuses shards that overlap, leave the bucket, or are not one per rank.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn check_shards(shards: &[Range<usize>], members: usize, elements: usize) -> Result<()> {
    if shards.len() != members {
        return Err(Error::Invalid(format!("{} shards for {members} ranks", shards.len())));
    }
    let mut sorted: Vec<&Range<usize>> = shards.iter().filter(|s| !s.is_empty()).collect();
    sorted.sort_by_key(|shard| shard.start);
    let overlap = sorted.windows(2).any(|pair| pair[0].end > pair[1].start);
    let outside = sorted.last().is_some_and(|last| last.end > elements);
    if overlap || outside {
        return Err(Error::Invalid(format!("shards overlap or end after {elements} elements")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_rectangular() {
        let node = |numbers: &[u32]| numbers.iter().map(|n| Node(*n)).collect::<Vec<_>>();
        let grid = Grid::of(&node(&[4, 4, 7, 7, 1, 1]), 3).expect("rectangular");
        assert_eq!(grid, Grid { nodes: 3, locals: 2, node: 1, local: 1 });
        let ranks: Vec<Rank> = (10..16).map(Rank).collect();
        assert_eq!(grid.neighbours(&ranks), [Rank(12), Rank(13)]);
        assert_eq!(grid.counterparts(&ranks), [Rank(11), Rank(13), Rank(15)]);
        for bad in [&[0, 0, 1][..], &[0, 1, 0], &[0, 1, 1]] {
            assert!(Grid::of(&node(bad), 0).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn overlapping_shards_are_refused() {
        check_shards(&[0..3, 3..5], 2, 5).expect("cut in two");
        check_shards(&[5..5, 0..5], 2, 5).expect("an empty one");
        for bad in [[0..3, 2..5], [0..3, 3..6]] {
            assert!(check_shards(&bad, 2, 5).is_err());
        }
        assert!(check_shards(&[0..5, 5..5], 3, 5).is_err(), "two shards for three ranks");
    }
}
