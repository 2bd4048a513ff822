//! Bytes that a rank sends in one step, by kind of communication. Inside a node they go through shared memory, between
//! nodes over the network; a group of ranks that lies in one node sends nothing over the network.

use crate::inventory::{Group, Inventory, Storage};
use crate::mesh::Mesh;
use crate::train_plan::{Compute, Sharding, TrainPlan};
use serde::Serialize;

/// Bytes by their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Sent {
    /// Inside the node, through shared memory.
    pub shared_memory: u64,
    /// To other nodes.
    pub network: u64,
}

impl Sent {
    /// Both ways.
    pub fn total(&self) -> u64 {
        self.shared_memory + self.network
    }

    fn times(self, n: u64) -> Sent {
        Sent { shared_memory: n * self.shared_memory, network: n * self.network }
    }

    fn add(&mut self, other: Sent) {
        self.shared_memory += other.shared_memory;
        self.network += other.network;
    }
}

/// Bytes that one rank sends in a full-size step; of Muon's matrices, which lie unevenly, as if they lay evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// Rows to experts of other ranks, forward and backward, with their routing weights; experts equally loaded. Rows of
    /// a token that go to the same other node count each, though they travel once: an upper bound.
    pub dispatch: Sent,
    /// Rows home from experts of other ranks, forward and backward.
    pub combine: Sent,
    /// Gradients.
    pub reduce: Sent,
    /// Updated weights (ZeRO-1).
    pub gather: Sent,
}

/// Bytes that one rank sends for one transfer of each kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfers {
    mesh: Mesh,
    per_node: usize,
    copied: bool,
    compute_bytes: u64,
    sharding: Sharding,
}

impl Transfers {
    /// Of `plan` on this many nodes, which divide its ranks.
    pub(crate) fn new(plan: &TrainPlan, nodes: usize) -> Transfers {
        let mesh = Mesh::new(&plan.parallel);
        Transfers {
            mesh,
            per_node: (mesh.data / nodes.max(1)).max(1),
            copied: plan.compute == Compute::Bf16,
            compute_bytes: plan.compute.bytes() as u64,
            sharding: plan.parallel.sharding(),
        }
    }

    /// `chosen` rows of `width` elements to experts that are equally loaded, or home; with a weight or its gradient of
    /// four bytes each if `weighted`.
    pub(crate) fn rows(&self, chosen: u64, width: usize, weighted: bool) -> Sent {
        let spread = Spread::new(&self.mesh.expert_group(0), self.per_node);
        let row = width as u64 * self.compute_bytes + if weighted { 4 } else { 0 };
        spread.to_others(chosen).times(row)
    }

    /// The gradients of so many elements.
    pub(crate) fn reduce(&self, group: Group, elements: u64) -> Sent {
        let spread = Spread::new(&self.mesh.replicas(group, 0), self.per_node);
        let scattered = spread.half_ring(4 * elements);
        scattered.times(match self.sharding {
            Sharding::Replicated => 2,
            Sharding::Optimizer => 1,
        })
    }

    /// This many updated elements of this storage; none are sent where every rank updates all of them.
    pub(crate) fn gather(&self, group: Group, storage: Storage, elements: u64) -> Sent {
        let spread = Spread::new(&self.mesh.replicas(group, 0), self.per_node);
        let bytes = if self.copied && storage == Storage::Compute { 2 } else { 4 };
        match self.sharding {
            Sharding::Replicated => Sent::default(),
            Sharding::Optimizer => spread.half_ring(bytes * elements),
        }
    }
}

/// How the members of a group lie: so many on each of so many nodes.
#[derive(Debug, Clone, Copy)]
struct Spread {
    on_node: u64,
    nodes: u64,
}

impl Spread {
    /// Of `ranks`, where `per_node` consecutive ranks share a node.
    fn new(ranks: &[usize], per_node: usize) -> Spread {
        let mut nodes: Vec<usize> = ranks.iter().map(|rank| rank / per_node).collect();
        nodes.dedup();
        Spread { on_node: (ranks.len() / nodes.len()) as u64, nodes: nodes.len() as u64 }
    }

    /// One member's part of scattering sums of `bytes`, or of gathering their results: in a node of r every member takes
    /// its r-th part from the r - 1 others; that part goes round the m nodes, an m-th at a time. Together that is what a
    /// ring of all members sends, (rm - 1) / rm of the bytes.
    fn half_ring(self, bytes: u64) -> Sent {
        let Spread { on_node, nodes } = self;
        Sent {
            shared_memory: bytes * (on_node - 1) / on_node,
            network: bytes * (nodes - 1) / (nodes * on_node),
        }
    }

    /// Of `bytes` that go to members in equal parts, those to others than the sender.
    fn to_others(self, bytes: u64) -> Sent {
        let Spread { on_node, nodes } = self;
        let members = on_node * nodes;
        Sent {
            shared_memory: bytes * (on_node - 1) / members,
            network: bytes * (members - on_node) / members,
        }
    }
}

impl Traffic {
    /// The traffic of each rank of `plan` on this many nodes, which divide its ranks.
    pub fn of(plan: &TrainPlan, inventory: &Inventory, nodes: usize) -> Traffic {
        let transfers = Transfers::new(plan, nodes);
        let mut traffic = rows(plan, &transfers);
        for parameter in &inventory.parameters {
            let here = match parameter.group {
                Group::Dense => parameter.elements() as u64,
                Group::Expert => parameter.elements() as u64 / transfers.mesh.expert as u64,
            };
            traffic.reduce.add(transfers.reduce(parameter.group, here));
            traffic.gather.add(transfers.gather(parameter.group, parameter.storage, here));
        }
        traffic
    }

    /// All kinds together.
    pub fn total(&self) -> Sent {
        let mut sum = Sent::default();
        for kind in [self.dispatch, self.combine, self.reduce, self.gather] {
            sum.add(kind);
        }
        sum
    }
}

/// A chosen row goes to every rank that shares the experts with the same probability: there and home in the forward pass,
/// and its gradients back and forth in the backward pass. Its routing weight goes with it and the weight's gradient comes
/// home.
fn rows(plan: &TrainPlan, transfers: &Transfers) -> Traffic {
    let Some(moe) = &plan.model.moe else { return Traffic::default() };
    let layers = (0..plan.model.all_layers()).filter(|l| plan.model.is_moe_layer(*l)).count();
    let tokens = plan.step_tokens() / transfers.mesh.data as u64;
    let chosen = tokens * (moe.experts_per_token * layers) as u64;
    let there_and_back = |weighted| transfers.rows(chosen, plan.model.hidden, weighted).times(2);
    Traffic { dispatch: there_and_back(true), combine: there_and_back(false), ..Traffic::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn one_rank_sends_nothing() {
        let plan = fixture::plan();
        assert_eq!(Traffic::of(&plan, &Inventory::new(&plan.model), 1), Traffic::default());
    }

    #[test]
    fn zero_1_sends_what_an_all_reduce_does_with_fewer_bytes_of_weights() {
        let mut plan = fixture::plan();
        let inventory = Inventory::new(&plan.model);
        (plan.parallel.data, plan.compute) = (4, Compute::Fp32);
        let whole = Traffic::of(&plan, &inventory, 1);
        let bytes: u64 = inventory.parameters.iter().map(|p| 4 * p.elements() as u64).sum();
        // 2 (n - 1) / n, rounded down for each parameter.
        assert!((bytes * 3 / 2 - whole.total().total()) < 2 * inventory.parameters.len() as u64);
        plan.parallel.zero = 1;
        assert_eq!(Traffic::of(&plan, &inventory, 1).total(), whole.total());
        plan.compute = Compute::Bf16;
        assert!(Traffic::of(&plan, &inventory, 1).gather.total() < whole.total().total() / 2);
    }

    #[test]
    fn experts_of_one_copy_reduce_less_and_exchange_rows() {
        let mut plan = fixture::plan();
        let inventory = Inventory::new(&plan.model);
        plan.parallel.data = 4;
        let without = Traffic::of(&plan, &inventory, 1);
        plan.parallel.expert = 2;
        let with = Traffic::of(&plan, &inventory, 1);
        assert_eq!(without.dispatch, Sent::default());
        assert!(with.reduce.total() < without.reduce.total());
        assert!(with.dispatch.total() > with.combine.total());
        let moe = plan.model.moe.as_ref().expect("the fixture has experts");
        let layers = (0..plan.model.all_layers()).filter(|l| plan.model.is_moe_layer(*l)).count();
        let rows = plan.step_tokens() / 4 * (moe.experts_per_token * layers) as u64 / 2;
        assert_eq!(
            with.combine.total(),
            rows * 2 * (plan.model.hidden * plan.compute.bytes()) as u64
        );
    }
    /// Ranks of 2 nodes: experts are shared inside a node, expert gradients go between nodes only.
    #[test]
    fn groups_use_the_network_between_nodes_alone() {
        let mut plan = fixture::plan();
        let inventory = Inventory::new(&plan.model);
        (plan.parallel.data, plan.parallel.expert, plan.parallel.zero) = (4, 2, 0);
        let one = Traffic::of(&plan, &inventory, 1);
        let two = Traffic::of(&plan, &inventory, 2);
        assert_eq!(one.total().network, 0);
        assert_eq!((two.dispatch, two.combine), (one.dispatch, one.combine), "rows stay inside");
        let difference = one.reduce.total().abs_diff(two.reduce.total());
        assert!(difference <= 4 * inventory.parameters.len() as u64, "the sum does not change");
        let bytes = |group| -> u64 {
            let of = inventory.parameters.iter().filter(|p| p.group == group);
            of.map(|p| 4 * p.elements() as u64).sum()
        };
        // Dense: half in the node, a quarter between nodes, there and back. Experts: half of them here, half of that sent.
        let (dense, expert) = (bytes(Group::Dense), bytes(Group::Expert));
        assert!(two.reduce.shared_memory.abs_diff(dense) <= 4 * inventory.parameters.len() as u64);
        let network = dense / 2 + expert / 2;
        assert!(two.reduce.network.abs_diff(network) <= 4 * inventory.parameters.len() as u64);
        // Every rank on its own node: nothing is left of shared memory.
        let four = Traffic::of(&plan, &inventory, 4);
        assert_eq!(four.total().shared_memory, 0);
        assert_eq!(four.combine.network, one.combine.shared_memory);
    }
}
