use super::*;
use crate::fixture;
use crate::model_spec::{Attention, Moe};
use crate::train_plan::MuonPlan;

fn muon_plan(bucket_bytes: usize) -> TrainPlan {
    let mut plan = fixture::plan();
    plan.optimizer.muon = Some(MuonPlan { momentum: 0.95 });
    (plan.parallel.zero, plan.parallel.bucket_bytes) = (1, bucket_bytes);
    plan
}

/// No rank has more than an equal part and one matrix, however the matrices lie in buckets.
#[test]
fn muon_owners_are_balanced_over_all_buckets() {
    for bucket_bytes in [1, 100_000, 1 << 30] {
        for (data, expert) in [(2, 1), (4, 1), (8, 1), (4, 2), (8, 4)] {
            let mut plan = muon_plan(bucket_bytes);
            (plan.parallel.data, plan.parallel.expert) = (data, expert);
            let inventory = Inventory::of(&plan);
            let muon = |group| {
                let of_group =
                    move |p: &&crate::Parameter| p.group == group && p.optimizer == Optimizer::Muon;
                inventory.parameters.iter().filter(of_group).map(newton_schulz)
            };
            let (dense, experts) = (muon(Group::Dense), muon(Group::Expert));
            let equal = (dense.clone().sum::<u64>() + experts.clone().sum::<u64>()) / data as u64;
            let largest = dense.max().unwrap() + experts.max().unwrap();
            let shares = Shares::of(&plan);
            let work: Vec<MuonWork> = (0..data).map(|rank| shares.rank(rank).muon_work()).collect();
            let most = work.iter().map(|w| w.flops).max().unwrap();
            assert!(most <= equal + largest, "{bucket_bytes} {data} {expert}: {work:?}");
            let elements: u64 = work.iter().map(|w| w.elements).sum();
            let all = inventory.parameters.iter().filter(|p| p.optimizer == Optimizer::Muon);
            assert_eq!(elements, all.map(|p| p.elements() as u64).sum::<u64>());
        }
    }
}

/// The shares of all ranks together are the network: each element of a parameter is updated by one of its replicas, and
/// counted in the norm at one place.
#[test]
fn ranks_share_out_every_element() {
    for (data, expert) in [(1, 1), (2, 1), (4, 2), (4, 4)] {
        for muon in [false, true] {
            let mut plan = if muon { muon_plan(100_000) } else { fixture::plan() };
            (plan.parallel.data, plan.parallel.expert, plan.parallel.zero) = (data, expert, 1);
            (plan.batch.leaves, plan.batch.global_batch) = (4, 16);
            let shares = Shares::of(&plan);
            let mut owned = vec![0; shares.inventory().parameters.len()];
            for rank in 0..data {
                let share = shares.rank(rank);
                let (replicas, replica) = share.replica(Group::Dense);
                assert_eq!((replicas, replica), (data, rank));
                for bucket in &share.buckets().buckets {
                    let part = share.owned(bucket.id);
                    let runs = share.decay_runs(bucket.id);
                    let in_runs: usize = runs.iter().map(|(run, _)| run.len()).sum();
                    assert_eq!(in_runs, part.len());
                    for p in &bucket.placements {
                        let whole = p.offset..p.offset + p.elements;
                        owned[p.parameter] += intersection(&whole, &part).len();
                    }
                }
            }
            for (parameter, owned) in shares.inventory().parameters.iter().zip(owned) {
                assert_eq!(owned, parameter.elements(), "{}", parameter.name);
            }
        }
    }
}

/// What ranks of one expert index compute for themselves is what is computed once for all of them.
#[test]
fn every_expert_index_has_the_same_shards() {
    let mut plan = muon_plan(100_000);
    (plan.parallel.data, plan.parallel.expert, plan.batch.leaves) = (8, 4, 8);
    let shares = Shares::of(&plan);
    for rank in 0..4 {
        let share = shares.rank(rank);
        let replicas = |group| share.replica(group).0;
        let own = shards(share.inventory(), share.buckets(), replicas);
        for (bucket, own) in own.iter().enumerate() {
            assert_eq!(own, share.shards(bucket), "rank {rank} bucket {bucket}");
        }
    }
}

#[test]
fn a_replicated_optimizer_updates_everything_on_every_rank() {
    let mut plan = fixture::plan();
    (plan.parallel.data, plan.batch.leaves) = (4, 4);
    let shares = Shares::of(&plan);
    for rank in 0..4 {
        let share = shares.rank(rank);
        for bucket in &share.buckets().buckets {
            assert_eq!(share.owned(bucket.id), 0..bucket.elements);
        }
        assert!(share.uses().iter().all(|used| used.reduced && !used.gathered));
    }
}

/// DeepSeek-V3's sizes (2412.19437, section 4.2).
fn v3(plan: &mut TrainPlan) {
    let model = &mut plan.model;
    (model.vocab_size, model.hidden, model.layers, model.ffn_hidden) = (129_280, 7168, 61, 18_432);
    model.attention = Attention::Mla {
        heads: 128,
        q_rank: Some(1536),
        kv_rank: 512,
        nope_dim: 128,
        rope_dim: 64,
        v_dim: 128,
    };
    let moe = model.moe.as_mut().expect("experts");
    *moe = Moe {
        experts: 256,
        experts_per_token: 8,
        expert_hidden: 2048,
        first_dense_layers: 3,
        groups: 8,
        groups_per_token: 4,
        ..moe.clone()
    };
    plan.parallel.bucket_bytes = 256 << 20;
}

/// All ranks of a large job, on a small machine.
#[test]
fn the_shares_of_2048_ranks_of_v3_take_seconds() {
    let mut plan = fixture::plan();
    v3(&mut plan);
    (plan.parallel.data, plan.parallel.expert, plan.parallel.zero) = (2048, 64, 1);
    plan.parallel.overlap = true;
    (plan.batch.leaves, plan.batch.micro_batch, plan.batch.global_batch) = (2048, 1, 4 * 2048);
    let shares = Shares::of(&plan);
    let mut owned = 0u64;
    let mut held = 0u64;
    for rank in 0..2048 {
        let share = shares.rank(rank);
        for bucket in &share.buckets().buckets {
            held += bucket.elements as u64;
            owned += share.owned(bucket.id).len() as u64;
        }
        assert!(share.program().instructions.len() > 4000);
        assert!(!share.norm().is_empty());
    }
    let (main, mtp) = shares.inventory().count(&plan.model);
    // Gaps between parameters aside, every element has one owner.
    let all = main + mtp;
    assert!(owned >= all && owned - all < all / 1000, "{owned} {all}");
    assert!(held / 2048 < all / 10, "a rank holds {} of {all}", held / 2048);
}
