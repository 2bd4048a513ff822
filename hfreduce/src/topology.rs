//! Who reduces what: the ranks as a grid of nodes times local ranks, and a bucket as one shard per rank.
//!
//! Local rank `i` of every node sums the shards `(0, i), (1, i), ...` of its node's buckets and exchanges them with the
//! local ranks `i` of the other nodes: no leader, and every core and every network card does an equal part.

use crate::error::{Error, Result};
use crate::kernels::{Level, MAX_TREE, Order};
use crate::options::Options;
use lampyris_comm::{Communicator, Group, Kind, Node, Rank};
use std::ops::Range;

/// The ranks of a reducer and how they add, seen by one of them.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) grid: Grid,
    /// The ranks of this node.
    pub(crate) local: Group,
    /// The ranks of this rank's column: one per node.
    pub(crate) cross: Group,
    /// In which order the local ranks' elements are added.
    pub(crate) order: Order,
    /// The instructions that this processor adds with.
    pub(crate) level: Level,
}

impl Topology {
    /// The topology of these ranks. Collective over them.
    ///
    /// # Errors
    /// When the ranks do not form a grid, or canonical order is asked for other than a power of two.
    pub(crate) fn new(comm: &Communicator, members: &[Rank], options: &Options) -> Result<Self> {
        let all = comm.group(members)?;
        let grid = Grid::of(&all.nodes(), all.member())?;
        let powers = grid.nodes.is_power_of_two() && grid.locals.is_power_of_two();
        if options.canonical && (!powers || grid.locals > MAX_TREE) {
            return Err(Error::Invalid(format!(
                "canonical reduction over {} nodes of {} ranks: both must be powers of two (at most {MAX_TREE} ranks \
                 per node); choose reduction = \"fast\"",
                grid.nodes, grid.locals
            )));
        }
        let timeout = options.timeout.unwrap_or(comm.options().operation_timeout);
        let local = comm.group(&grid.neighbours(members))?.with_timeout(timeout);
        let cross = comm.group(&grid.counterparts(members))?.with_timeout(timeout);
        let mut cross = cross.with_canonical(options.canonical);
        if let Some(algorithm) = options.algorithm {
            cross = cross.with_algorithm(Kind::AllReduce, algorithm);
        }
        let order = if options.canonical { Order::Tree } else { Order::Fold };
        assert_eq!((local.len(), local.member()), (grid.locals, grid.local), "the local ranks");
        assert_eq!((cross.len(), cross.member()), (grid.nodes, grid.node), "one rank per node");
        Ok(Self { grid, local, cross, order, level: Level::detect() })
    }

    /// Number of ranks.
    pub(crate) fn members(&self) -> usize {
        self.grid.nodes * self.grid.locals
    }
}

/// The grid of one reduction group, seen by one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Number of nodes.
    pub(crate) nodes: usize,
    /// Ranks per node.
    pub(crate) locals: usize,
    /// This rank's node.
    pub(crate) node: usize,
    /// This rank's index on it.
    pub(crate) local: usize,
}

impl Grid {
    /// The grid of members in order, each with its node; `me` is this rank's index.
    ///
    /// # Errors
    /// When nodes do not hold equal numbers of consecutive members.
    pub(crate) fn of(nodes: &[Node], me: usize) -> Result<Self> {
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

    /// The members on this rank's node, this rank included.
    pub(crate) fn neighbours(&self, members: &[Rank]) -> Vec<Rank> {
        members[self.node * self.locals..][..self.locals].to_vec()
    }

    /// The members with this rank's local index, one per node, this rank included.
    pub(crate) fn counterparts(&self, members: &[Rank]) -> Vec<Rank> {
        (0..self.nodes).map(|node| members[node * self.locals + self.local]).collect()
    }

    /// The shards that local rank `local` works on, one per node.
    pub(crate) fn column(&self, shards: &[Range<usize>], local: usize) -> Vec<Range<usize>> {
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
