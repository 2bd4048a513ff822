//! The mesh of ranks: which ranks hold the same parameters, and which share the experts of one copy of the network.
//!
//! Axis order is fixed: expert-data (outer), expert (inner). Ranks fill nodes in order, so the ranks of one expert axis
//! follow each other and usually share a node.

use crate::inventory::{Group, Kind, Parameter};
use crate::train_plan::ParallelPlan;
use std::ops::Range;

/// Sizes of the axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    /// Data-parallel ranks: all ranks of the job.
    pub data: usize,
    /// Ranks that share the experts of one copy; divides `data`.
    pub expert: usize,
}

impl Mesh {
    /// One rank that holds everything.
    pub const ONE: Mesh = Mesh { data: 1, expert: 1 };

    /// The mesh of a layout.
    pub fn new(parallel: &ParallelPlan) -> Mesh {
        Mesh { data: parallel.data, expert: parallel.expert }
    }

    /// Position of `rank` on the expert axis: which experts it owns.
    pub fn expert_index(&self, rank: usize) -> usize {
        rank % self.expert
    }

    /// The ranks that exchange rows with `rank`, in order of their expert index; `rank` among them.
    pub fn expert_group(&self, rank: usize) -> Vec<usize> {
        let first = rank - self.expert_index(rank);
        (first..first + self.expert).collect()
    }

    /// The ranks that hold the same parameters of this reduction group, in the order in which their gradients are added.
    pub fn replicas(&self, group: Group, rank: usize) -> Vec<usize> {
        match group {
            Group::Dense => (0..self.data).collect(),
            Group::Expert => (self.expert_index(rank)..self.data).step_by(self.expert).collect(),
        }
    }

    /// Sets of gradient accumulators that a rank keeps for this reduction group: one per rank whose tokens contribute.
    pub fn sources(&self, group: Group) -> usize {
        match group {
            Group::Dense => 1,
            Group::Expert => self.expert,
        }
    }

    /// The experts of expert index `index`, of `experts` in all.
    pub fn experts_of(&self, index: usize, experts: usize) -> Range<usize> {
        let each = experts / self.expert;
        index * each..(index + 1) * each
    }

    /// Whether the ranks of expert index `index` hold a parameter of a network with `experts` experts in a layer.
    pub fn holds(&self, index: usize, experts: usize, parameter: &Parameter) -> bool {
        match parameter.kind {
            Kind::Expert { expert } => self.experts_of(index, experts).contains(&expert),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expert_groups_are_consecutive_and_replicas_cross_them() {
        let mesh = Mesh { data: 8, expert: 4 };
        assert_eq!(mesh.expert_group(6), [4, 5, 6, 7]);
        assert_eq!(mesh.expert_index(6), 2);
        assert_eq!(mesh.replicas(Group::Expert, 6), [2, 6]);
        assert_eq!(mesh.replicas(Group::Dense, 6), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(mesh.experts_of(2, 16), 8..12);
        assert_eq!((mesh.sources(Group::Dense), mesh.sources(Group::Expert)), (1, 4));
    }
}
