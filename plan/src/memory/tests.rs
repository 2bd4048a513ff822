use super::*;
use crate::fixture;
use crate::train_plan::MuonPlan;

fn memory(plan: &TrainPlan, reduction: Reduction) -> RankMemory {
    RankMemory::of(plan, &Shares::of(plan), reduction)
}

fn elements(plan: &TrainPlan, keep: impl Fn(&crate::Parameter) -> bool) -> u64 {
    let inventory = Inventory::new(&plan.model);
    inventory.parameters.iter().filter(|p| keep(p)).map(|p| p.elements() as u64).sum()
}

#[test]
fn one_rank_holds_everything() {
    let plan = fixture::plan();
    let all = elements(&plan, |_| true);
    let copied = elements(&plan, |p| p.storage == Storage::Compute);
    let found = memory(&plan, Reduction::Canonical);
    assert_eq!(found.master_weights, 4 * all);
    assert_eq!(found.compute_weights, 2 * copied);
    assert_eq!(found.optimizer, 8 * all);
    assert_eq!(found.snapshot, 12 * all);
    assert_eq!(found.gradients, 3 * 4 * all); // log2(4 leaves) + 1
    assert_eq!(memory(&plan, Reduction::Fast).gradients, 4 * all);
    assert_eq!(checkpoint_bytes(&Inventory::new(&plan.model)), 12 * all + 4 * 3 * 8);
}

#[test]
fn fp32_has_no_second_copy() {
    let plan = TrainPlan { compute: Compute::Fp32, ..fixture::plan() };
    let found = memory(&plan, Reduction::Canonical);
    assert_eq!(found.compute_weights, 0);
    assert_eq!(found.master_weights, 4 * elements(&plan, |_| true));
}

#[test]
fn four_ranks_share_experts_and_optimizer() {
    let mut plan = fixture::plan();
    plan.parallel.data = 4;
    plan.parallel.expert = 2;
    plan.parallel.zero = 1;
    let dense = elements(&plan, |p| p.group == Group::Dense);
    let experts = elements(&plan, |p| p.group == Group::Expert);
    let found = memory(&plan, Reduction::Canonical);
    // One leaf per rank: one accumulator; expert gradients once for each of 2 source ranks.
    assert_eq!(found.gradients, 4 * dense + 2 * 4 * (experts / 2));
    assert_eq!(memory(&plan, Reduction::Fast).gradients, 4 * dense + 4 * (experts / 2));
    // Dense shards over 4 ranks, experts over the 2 that hold the same experts.
    assert_eq!(found.optimizer, 8 * (dense / 4) + 8 * (experts / 4));
    assert_eq!(found.snapshot, 12 * (dense / 4) + 12 * (experts / 4));
}

/// One moment of Muon's matrices in place of two, and those of one rank at least as many as an equal part.
#[test]
fn muon_keeps_one_moment() {
    let mut plan = fixture::plan();
    let adamw = memory(&plan, Reduction::Canonical);
    plan.optimizer.muon = Some(MuonPlan { momentum: 0.95 });
    let inventory = Inventory::of(&plan);
    let of = |plan: &TrainPlan| RankMemory::of(plan, &Shares::of(plan), Reduction::Canonical);
    let muon = inventory.parameters.iter().filter(|p| p.optimizer == Optimizer::Muon);
    let matrices: u64 = muon.map(|p| p.elements() as u64).sum();
    assert!(matrices > elements(&plan, |_| true) / 2);
    let alone = of(&plan);
    assert_eq!(alone.optimizer, adamw.optimizer - 4 * matrices);
    assert_eq!(alone.snapshot, adamw.snapshot - 4 * matrices);
    assert_eq!((alone.master_weights, alone.gradients), (adamw.master_weights, adamw.gradients));
    let checkpoint = |inventory| checkpoint_bytes(inventory);
    assert_eq!(checkpoint(&inventory), checkpoint(&Inventory::new(&plan.model)) - 4 * matrices);
    (plan.parallel.data, plan.parallel.expert) = (4, 2);
    let whole = of(&plan).optimizer;
    plan.parallel.zero = 1;
    let sharded = of(&plan).optimizer;
    assert!(sharded >= whole / 4 && sharded < whole / 2, "{sharded} of {whole}");
}

#[test]
fn activations_grow_with_the_micro_batch() {
    let mut plan = fixture::plan();
    let one = memory(&plan, Reduction::Canonical).activations;
    plan.batch.micro_batch *= 3;
    plan.batch.global_batch *= 3;
    assert_eq!(memory(&plan, Reduction::Canonical).activations, 3 * one);
    plan.compute = Compute::Fp32;
    assert!(memory(&plan, Reduction::Canonical).activations > 5 * one);
}
