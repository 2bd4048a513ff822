use super::*;
use crate::ranks::Ranks;
use lampyris_plan::TrainPlan;
use lampyris_plan::buckets::Buckets;
use tch::Device;

/// A small network with four leaves on one rank.
fn share() -> Share {
    let path = format!("{}/../recipes/debug_llama.toml", env!("CARGO_MANIFEST_DIR"));
    let here = std::env::temp_dir();
    let defaults = lampyris_recipes::Defaults {
        runs_dir: here.clone(),
        cache_dir: here.clone(),
        current_dir: here,
    };
    let sets = ["batch.leaves=4", "batch.micro_batch=2", "batch.global_batch=8"].map(String::from);
    let plan: TrainPlan = lampyris_recipes::load(std::path::Path::new(&path), &sets, &defaults)
        .expect("a recipe of the repository");
    Share::of(&plan, 0)
}

fn gradients(share: &Share) -> Gradients {
    let ranks = Ranks::alone();
    Gradients::new(share, Memory { device: Device::Cpu, ranks: &ranks }).expect("memory")
}

/// The first norm, and its bucket.
fn norm(share: &Share) -> (ParameterId, usize) {
    let inventory = share.inventory();
    let norm = inventory.parameters.iter().find(|p| p.shape.len() == 1).expect("a norm");
    let buckets: &Buckets = share.buckets();
    (norm.id, buckets.place(norm.id).0)
}

fn give(share: &Share, parameter: ParameterId, value: f64) -> WeightGradient {
    let shape = &share.inventory().parameters[parameter].shape;
    let shape: Vec<i64> = shape.iter().map(|&size| lampyris_torch::dim(size)).collect();
    let gradient = Tensor::full(shape.as_slice(), value, (Kind::Float, Device::Cpu));
    WeightGradient::Direct { parameter, gradient }
}

fn sum(gradients: &Gradients, parameter: ParameterId) -> f64 {
    gradients.of(parameter).expect("held").flatten(0, -1).double_value(&[0])
}

/// (1e8 + 1) + (-1e8 + 1) loses both ones, 1e8 + (1 + -1e8) + 1 does not: the tree decides.
#[test]
fn leaves_are_summed_as_a_tree() {
    let _no_grad = tch::no_grad_guard();
    let share = share();
    let mut gradients = gradients(&share);
    let (parameter, bucket) = norm(&share);
    for _step in 0..2 {
        for (leaf, value) in [1e8, 1.0, -1e8, 1.0].into_iter().enumerate() {
            gradients.add(&give(&share, parameter, value), leaf).expect("added");
            gradients.fold(bucket, leaf).expect("folded");
        }
        assert_eq!(sum(&gradients, parameter), 0.0);
    }
}

/// A leaf is summed from left to right; what the step before left is not in it.
#[test]
fn the_first_contribution_of_a_leaf_takes_the_place_of_an_earlier_one() {
    let _no_grad = tch::no_grad_guard();
    let share = share();
    let mut gradients = gradients(&share);
    let (parameter, bucket) = norm(&share);
    for step in 1..4 {
        for leaf in 0..4 {
            let value = f64::from(step);
            gradients.add(&give(&share, parameter, value), leaf).expect("added");
            gradients.add(&give(&share, parameter, value), leaf).expect("added");
            gradients.fold(bucket, leaf).expect("folded");
        }
        assert_eq!(sum(&gradients, parameter), f64::from(8 * step));
    }
}

#[test]
fn a_leaf_without_contributions_is_zero() {
    let _no_grad = tch::no_grad_guard();
    let share = share();
    let mut gradients = gradients(&share);
    let (parameter, bucket) = norm(&share);
    for step in 0..2 {
        for leaf in 0..4 {
            if step == 0 || leaf == 3 {
                gradients.add(&give(&share, parameter, 5.0), leaf).expect("added");
            }
            gradients.fold(bucket, leaf).expect("folded");
        }
    }
    assert_eq!(sum(&gradients, parameter), 5.0);
}

/// Leaves 1 and 2 use one accumulator.
#[test]
#[should_panic(expected = "leaf 1 is not folded")]
fn two_leaves_do_not_mix_in_an_accumulator() {
    let _no_grad = tch::no_grad_guard();
    let share = share();
    let mut gradients = gradients(&share);
    let (parameter, _) = norm(&share);
    gradients.add(&give(&share, parameter, 1.0), 1).expect("added");
    let _panics = gradients.add(&give(&share, parameter, 1.0), 2);
}
