//! The least time of a step on a machine that is not at hand: the critical path of the step program, with segments that
//! compute at a given speed and transfers that take their bytes' time on a given link. Norms, softmax, activations, the
//! optimizer, copies and latencies are left out, and shared memory is free: a real step takes longer.

use crate::flops::SegmentFlops;
use crate::program::{Act, Task, Transfer};
use crate::segments::{Exchange, Segment};
use crate::share::Shares;
use crate::timeline::{self, Bound, Cost};
use crate::traffic::{Sent, Transfers};
use crate::train_plan::TrainPlan;
use serde::Serialize;

/// How fast a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speeds {
    /// Of matrix products on one rank, FLOP/s.
    pub flops_per_s: f64,
    /// Of one node's link in each direction, bytes/s. Its ranks share it.
    pub link_bytes_per_s: f64,
}

/// The critical path of a full-size step of `plan`, which `validate` accepts, on this many nodes, which divide its ranks.
pub fn step(plan: &TrainPlan, nodes: usize, speeds: Speeds) -> Bound {
    let share = Shares::of(plan).rank(0);
    let transfers = Transfers::new(plan, nodes);
    let tokens = (plan.batch.micro_batch * plan.batch.sequence_length) as u64;
    let chosen = plan.model.moe.as_ref().map_or(0, |moe| tokens * moe.experts_per_token as u64);
    let flops = |segment| SegmentFlops::per_token(&plan.model, segment, plan.batch.sequence_length);
    let per_rank = speeds.link_bytes_per_s / (share.mesh().data / nodes) as f64;
    let computes = |flops: u64| Cost {
        compute_s: (flops * tokens) as f64 / speeds.flops_per_s,
        transfer_s: 0.0,
    };
    let moves = |sent: Sent| Cost { compute_s: 0.0, transfer_s: sent.network as f64 / per_rank };
    timeline::bound(share.program(), |act| match act {
        // Loss and both gradients of the head are made at once.
        Act::Run(Task::Loss { depth, .. }) => computes(3 * flops(Segment::Head(depth)).weights),
        Act::Run(Task::Forward { segment, .. }) => {
            computes(flops(segment).weights + flops(segment).core)
        }
        Act::Run(Task::Backward { segment, .. }) => {
            computes(flops(segment).weights + 2 * flops(segment).core)
        }
        Act::Run(Task::Weight { segment, .. }) => computes(flops(segment).weights),
        Act::Start(Transfer::Rows { exchange, .. }) => {
            let weighted = matches!(exchange, Exchange::Dispatch(_));
            moves(transfers.rows(chosen, plan.model.hidden, weighted))
        }
        Act::Start(Transfer::Reduce { bucket }) => {
            let bucket = &share.buckets().buckets[bucket];
            moves(transfers.reduce(bucket.group, bucket.elements as u64))
        }
        Act::Start(Transfer::Gather { bucket }) => {
            let bucket = &share.buckets().buckets[bucket];
            moves(transfers.gather(bucket.group, bucket.storage, bucket.elements as u64))
        }
        Act::Run(_) => Cost::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::flops::ForwardFlops;
    use crate::inventory::Inventory;
    use crate::traffic::Traffic;

    /// The fixture on 4 ranks of 2 nodes, experts shared out over all.
    fn plan() -> TrainPlan {
        let mut plan = fixture::plan();
        (plan.parallel.data, plan.parallel.expert, plan.parallel.zero) = (4, 4, 1);
        plan
    }

    #[test]
    fn computation_is_that_of_the_step_and_transfers_are_its_traffic() {
        let plan = plan();
        let speeds = Speeds { flops_per_s: 1e9, link_bytes_per_s: 1e6 };
        let found = step(&plan, 2, speeds);
        let flops = ForwardFlops::per_token(&plan.model, plan.batch.sequence_length);
        let wanted = (3 * flops.with_mtp() * plan.step_tokens() / 4) as f64 / 1e9;
        assert!((found.compute_s / wanted - 1.0).abs() < 1e-9, "{found:?} {wanted}");
        let traffic = Traffic::of(&plan, &Inventory::new(&plan.model), 2).total().network;
        let wanted = traffic as f64 / 0.5e6;
        // Buckets have gaps between their parameters.
        assert!((found.transfer_s / wanted - 1.0).abs() < 0.02, "{found:?} {wanted}");
        assert!(found.step_s > found.compute_s.max(found.transfer_s / 2.0));
    }

    #[test]
    fn a_faster_link_or_overlap_shortens_a_step_and_one_node_has_no_link() {
        let (mut plan, flops_per_s) = (plan(), 1e9);
        let at = |plan: &TrainPlan, nodes, link_bytes_per_s| {
            step(plan, nodes, Speeds { flops_per_s, link_bytes_per_s })
        };
        let slow = at(&plan, 2, 1e6);
        let fast = at(&plan, 2, 1e8);
        assert!(fast.step_s < slow.step_s && fast.compute_s == slow.compute_s);
        plan.parallel.overlap = !plan.parallel.overlap;
        let other = at(&plan, 2, 1e6);
        let (with, without) = if plan.parallel.overlap { (other, slow) } else { (slow, other) };
        assert!(with.step_s < without.step_s, "{with:?} {without:?}");
        let one = at(&plan, 1, 1e6);
        assert!(one.transfer_s == 0.0 && (one.step_s / one.compute_s - 1.0).abs() < 1e-9);
    }
}
