//! Bytes that a rank sends in one step, by kind of communication. Inside a node they go through shared memory, between
//! nodes over the network; a group of ranks that lies in one node sends nothing over the network.

use crate::inventory::{Group, Inventory, Storage};
use crate::mesh::Mesh;
use crate::train_plan::{Compute, TrainPlan};
use serde::Serialize;

/// Bytes that one rank sends in a full-size step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// Rows to experts of other ranks, forward and backward, with their routing weights; experts equally loaded.
    pub dispatch: u64,
    /// Rows home from experts of other ranks, forward and backward.
    pub combine: u64,
    /// Gradients.
    pub reduce: u64,
    /// Updated weights (ZeRO-1).
    pub gather: u64,
}

impl Traffic {
    /// The traffic of each rank of `plan`.
    pub fn of(plan: &TrainPlan, inventory: &Inventory) -> Traffic {
        let mesh = Mesh::new(&plan.parallel);
        let mut traffic = rows(plan, mesh);
        for parameter in &inventory.parameters {
            let ranks = mesh.replicas(parameter.group, 0).len() as u64;
            let here = match parameter.group {
                Group::Dense => parameter.elements() as u64,
                Group::Expert => parameter.elements() as u64 / mesh.expert as u64,
            };
            // A ring of n ranks sends (n - 1) / n of the bytes to scatter sums, and as much to gather results.
            let ring = |bytes: u64| bytes * (ranks - 1) / ranks;
            let copied = plan.compute == Compute::Bf16 && parameter.storage == Storage::Compute;
            let weight_bytes = if copied { 2 } else { 4 };
            if plan.parallel.zero == 0 {
                traffic.reduce += 2 * ring(4 * here);
            } else {
                traffic.reduce += ring(4 * here);
                traffic.gather += ring(weight_bytes * here);
            }
        }
        traffic
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.dispatch + self.combine + self.reduce + self.gather
    }
}

/// Every chosen row travels with probability (n - 1) / n: there and home in the forward pass, and its gradients back and
/// forth in the backward pass. Its routing weight goes with it and the weight's gradient comes home.
fn rows(plan: &TrainPlan, mesh: Mesh) -> Traffic {
    let Some(moe) = &plan.model.moe else { return Traffic::default() };
    let layers = (0..plan.model.all_layers()).filter(|l| plan.model.is_moe_layer(*l)).count();
    let tokens = plan.step_tokens() / mesh.data as u64;
    let chosen = tokens * (moe.experts_per_token * layers) as u64;
    let rows = chosen * (mesh.expert as u64 - 1) / mesh.expert as u64;
    let row = (plan.model.hidden * plan.compute.bytes()) as u64;
    Traffic { dispatch: rows * (2 * row + 8), combine: rows * 2 * row, ..Traffic::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn one_rank_sends_nothing() {
        let plan = fixture::plan();
        assert_eq!(Traffic::of(&plan, &Inventory::new(&plan.model)), Traffic::default());
    }

    #[test]
    fn zero_1_sends_what_an_all_reduce_does_with_fewer_bytes_of_weights() {
        let mut plan = fixture::plan();
        let inventory = Inventory::new(&plan.model);
        (plan.parallel.data, plan.compute) = (4, Compute::Fp32);
        let whole = Traffic::of(&plan, &inventory);
        let bytes: u64 = inventory.parameters.iter().map(|p| 4 * p.elements() as u64).sum();
        // 2 (n - 1) / n, rounded down for each parameter.
        assert!((bytes * 3 / 2 - whole.total()) < 2 * inventory.parameters.len() as u64);
        plan.parallel.zero = 1;
        assert_eq!(Traffic::of(&plan, &inventory).total(), whole.total());
        plan.compute = Compute::Bf16;
        assert!(Traffic::of(&plan, &inventory).gather < whole.total() / 2);
    }

    #[test]
    fn experts_of_one_copy_reduce_less_and_exchange_rows() {
        let mut plan = fixture::plan();
        let inventory = Inventory::new(&plan.model);
        plan.parallel.data = 4;
        let without = Traffic::of(&plan, &inventory);
        plan.parallel.expert = 2;
        let with = Traffic::of(&plan, &inventory);
        assert_eq!(without.dispatch, 0);
        assert!(with.reduce < without.reduce && with.dispatch > with.combine);
        let moe = plan.model.moe.as_ref().expect("the fixture has experts");
        let layers = (0..plan.model.all_layers()).filter(|l| plan.model.is_moe_layer(*l)).count();
        let rows = plan.step_tokens() / 4 * (moe.experts_per_token * layers) as u64 / 2;
        assert_eq!(with.combine, rows * 2 * (plan.model.hidden * plan.compute.bytes()) as u64);
    }
}
