//! Experts shared out over ranks (threads over comm's fake network) against all experts on one rank: outputs, gradients
//! of tokens and routing weights, weight gradients by source; bit for bit.

use super::*;
use crate::build::Rank;
use lampyris_comm::{Communicator, Options as CommOptions};
use lampyris_model::{MicroBatch, Weights, parameter_and_source};
use lampyris_plan::Inventory;
use lampyris_plan::model_spec::{Attention, Gate, ModelSpec, Moe, Rope};
use lampyris_plan::segments::Segment;
use lampyris_torch::{Sink, WeightGradient, dim};
use std::collections::BTreeMap;
use tch::{Device, Kind};

const EXPERTS: usize = 8;
const SLOTS: usize = 3;
const TOKENS: usize = 40;
const HIDDEN: i64 = 32;
const LAYER: usize = 0;

fn spec() -> ModelSpec {
    ModelSpec {
        vocab_size: 32,
        hidden: 32,
        layers: 1,
        ffn_hidden: 32,
        norm_eps: 1e-6,
        init_std: 0.02,
        tie_embeddings: false,
        max_positions: 64,
        attention: Attention::Mla {
            heads: 2,
            q_rank: None,
            kv_rank: 8,
            nope_dim: 4,
            rope_dim: 4,
            v_dim: 4,
        },
        rope: Rope { theta: 1e4, interleaved: true, yarn: None },
        moe: Some(Moe {
            experts: EXPERTS,
            experts_per_token: SLOTS,
            shared_experts: 0,
            expert_hidden: 16,
            first_dense_layers: 0,
            gate: Gate::SigmoidBias,
            groups: 2,
            groups_per_token: 2,
            routed_scale: 1.0,
            bias_update_speed: 0.0,
            balance_loss: 0.0,
        }),
        mtp_layers: 0,
    }
}

/// What the tokens of one rank choose.
#[derive(Debug, Clone, Copy)]
enum Choice {
    /// Anything.
    Spread,
    /// The first experts only: with 2 ranks all rows go to one of them, and most experts have none.
    First,
    /// As `Spread`, but this rank has a single token.
    OneToken,
}

/// Values in [-1, 1) that depend on the seed alone.
fn values(seed: u64, shape: &[i64], kind: Kind) -> Tensor {
    let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
    let draw = |i: usize| 2.0 * crate::sampling::uniform(seed, i as u64) - 1.0;
    let values: Vec<f64> = (0..count).map(draw).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

fn tokens(choice: Choice, rank: usize) -> usize {
    if matches!(choice, Choice::OneToken) && rank == 1 { 1 } else { TOKENS }
}

/// Distinct experts for each token: steps of 3 among 8 (any), of 1 among the first 3.
fn chosen(choice: Choice, rank: usize) -> Vec<i64> {
    let (among, step) = if matches!(choice, Choice::First) { (SLOTS, 1) } else { (EXPERTS, 3) };
    let of_token = |token: usize| {
        let first = (crate::sampling::uniform(rank as u64, token as u64) * among as f64) as usize;
        (0..SLOTS).map(move |slot| dim((first + step * slot) % among))
    };
    (0..tokens(choice, rank)).flat_map(of_token).collect()
}

/// What one micro-batch gives, as bytes that `==` compares bit by bit.
#[derive(Debug, PartialEq)]
struct Outcome {
    routed: Tensor,
    token_gradient: Tensor,
    weight_gradient: Tensor,
}

/// Weight gradient by (parameter, source).
type Experts = BTreeMap<(usize, usize), Tensor>;

/// Dispatch, experts, combine, forward and backward, of the micro-batch of `rank`.
fn run(choice: Choice, rank: usize, kind: Kind, lane: &mut dyn Lane) -> (Outcome, Experts) {
    let _no_grad = tch::no_grad_guard();
    let compute = if kind == Kind::Float { Compute::Fp32 } else { Compute::Bf16 };
    let Rank { network, state, ranks, .. } =
        Rank::alone(&spec(), 64, compute, Device::Cpu).unwrap();
    let weights = weights(&network.inventory, kind);
    let mut sink = Sink::new();
    let t = dim(tokens(choice, rank));
    let seed = 100 * rank as u64;
    let mut micros = [Micro::new(&network.graph)];
    let micro = &mut micros[0];
    let wide = Kind::Float;
    micro.write(
        Operation::Segment(Segment::Attention(LAYER)),
        vec![
            values(seed, &[t, HIDDEN], kind),
            values(seed + 1, &[t, HIDDEN], kind),
            values(seed + 2, &[t, dim(SLOTS)], wide),
        ],
    );
    micro.choose(LAYER, chosen(choice, rank));
    let mut transfer = |micros: &mut [Micro], exchange, pass| {
        let transfer = Transfer::Rows { micro: 0, exchange, pass };
        let mut on = Values { micros, state: &state, network: &network, ranks: &ranks };
        lane.start(transfer, &mut on).unwrap();
        lane.wait(transfer, &mut on, &mut Clock::default()).unwrap();
    };

    transfer(&mut micros, Exchange::Dispatch(LAYER), Pass::Forward);
    let micro = &mut micros[0];
    let segment = Segment::Experts(LAYER);
    let batch = MicroBatch::new(&[0, 1, 2], 2, 1, |_, _| true, Device::Cpu);
    let leaves = micro.leaves(Operation::Segment(segment));
    let mut ctx = network.context(&weights, &[], &batch, &sink);
    ctx.blocks = micro.route(LAYER).and_then(|route| route.blocks.as_ref());
    let out = tch::with_grad(|| network.forward(segment, &ctx, &leaves)).unwrap().slots;
    assert!(micro.record(segment, leaves, out).is_none());
    transfer(&mut micros, Exchange::Combine(LAYER), Pass::Forward);
    let micro = &mut micros[0];
    let merge = Segment::Merge(LAYER);
    let routed = micro.read(Operation::Segment(merge)).pop().unwrap();

    let gradient = values(seed + 3, &[t, HIDDEN], kind);
    micro.contribute(Operation::Segment(merge), vec![None, Some(gradient)]);
    transfer(&mut micros, Exchange::Combine(LAYER), Pass::Backward);
    let micro = &mut micros[0];
    let tape = micro.take_tape(segment);
    let (slot, output) = tape.outputs.into_iter().next().unwrap();
    let inputs: Vec<&Tensor> = tape.leaves.iter().collect();
    let rows = micro.gradient(slot).expect("combine gives it");
    let found = lampyris_torch::grad(&[output], &[rows], &inputs).unwrap();
    micro.contribute(Operation::Segment(segment), found);
    transfer(&mut micros, Exchange::Dispatch(LAYER), Pass::Backward);
    let micro = &mut micros[0];
    let outcome = Outcome {
        routed,
        token_gradient: micro.gradient(Slot::Normed(LAYER)).unwrap(),
        weight_gradient: micro.gradient(Slot::RouteWeights(LAYER)).unwrap(),
    };
    let parameters = network.inventory.parameters.len();
    let mut gradients = Experts::new();
    for entry in sink.drain() {
        let WeightGradient::Matmul { parameter, x, dy } = entry else { panic!("{entry:?}") };
        let at = parameter_and_source(parameter, parameters);
        assert!(gradients.insert(at, dy.tr().matmul(&x)).is_none(), "one product per {at:?}");
    }
    (outcome, gradients)
}

fn weights(inventory: &Inventory, kind: Kind) -> Weights {
    let view = |p: &lampyris_plan::Parameter| {
        let shape: Vec<i64> = p.shape.iter().map(|&size| dim(size)).collect();
        values(p.id as u64 + 7000, &shape, kind)
    };
    Weights { views: inventory.parameters.iter().map(view).collect() }
}

/// The same with all experts on one rank.
fn alone(choice: Choice, rank: usize, kind: Kind) -> (Outcome, Experts) {
    let compute = if kind == Kind::Float { Compute::Fp32 } else { Compute::Bf16 };
    run(choice, rank, kind, &mut LocalRows::new(row_padding(compute)))
}

/// The same on `ranks` ranks that share the experts.
fn shared(choice: Choice, ranks: usize, kind: Kind, seed: u64) -> Vec<(Outcome, Experts)> {
    let (world, _net) = Communicator::fakes(ranks, ranks, seed, &CommOptions::default()).unwrap();
    let compute = if kind == Kind::Float { Compute::Fp32 } else { Compute::Bf16 };
    let one = |(rank, comm): (usize, Communicator)| {
        std::thread::spawn(move || {
            let mut lane = ExpertRows::new(&comm.world(), EXPERTS, compute, true).unwrap();
            run(choice, rank, kind, &mut lane)
        })
    };
    let threads: Vec<_> = world.into_iter().enumerate().map(one).collect();
    threads.into_iter().map(|thread| thread.join().expect("the rank's checks hold")).collect()
}

#[test]
fn shared_experts_have_the_bits_of_one_rank() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for choice in [Choice::Spread, Choice::First, Choice::OneToken] {
            let alone: Vec<_> = (0..4).map(|rank| alone(choice, rank, kind)).collect();
            for ranks in [2, 4] {
                let found = shared(choice, ranks, kind, ranks as u64);
                let mut products = 0;
                for (rank, (outcome, gradients)) in found.iter().enumerate() {
                    assert_eq!(*outcome, alone[rank].0, "{kind:?} {choice:?} {ranks} {rank}");
                    for ((parameter, source), gradient) in gradients {
                        let want = &alone[*source].1[&(*parameter, 0)];
                        assert_eq!(gradient, want, "{kind:?} {choice:?} {ranks} {parameter}");
                    }
                    products += gradients.len();
                }
                let want: usize = alone[..ranks].iter().map(|one| one.1.len()).sum();
                assert_eq!(products, want, "one product per (expert, source) with rows");
            }
        }
    }
}

/// The order in which ranks meet and rows arrive is the seed's; nothing else is.
#[test]
fn timing_changes_nothing() {
    let first = shared(Choice::Spread, 4, Kind::BFloat16, 1);
    for seed in 2..6 {
        assert_eq!(shared(Choice::Spread, 4, Kind::BFloat16, seed), first, "seed {seed}");
    }
}

/// In fast mode an expert's rows form one block.
#[test]
fn fast_mode_has_one_product_per_expert() {
    let (world, _net) = Communicator::fakes(2, 2, 3, &CommOptions::default()).unwrap();
    let one = |(rank, comm): (usize, Communicator)| {
        std::thread::spawn(move || {
            let mut lane = ExpertRows::new(&comm.world(), EXPERTS, Compute::Fp32, false).unwrap();
            run(Choice::Spread, rank, Kind::Float, &mut lane)
        })
    };
    let threads: Vec<_> = world.into_iter().enumerate().map(one).collect();
    let found: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let alone: Vec<_> = (0..2).map(|rank| alone(Choice::Spread, rank, Kind::Float)).collect();
    for (rank, (outcome, gradients)) in found.iter().enumerate() {
        assert_eq!(*outcome, alone[rank].0);
        for ((parameter, source), gradient) in gradients {
            assert_eq!(*source, 0);
            let parts = alone.iter().filter_map(|one| one.1.get(&(*parameter, 0)));
            let want = parts.map(Tensor::shallow_clone).reduce(|sum, part| sum + part).unwrap();
            let distance = (gradient - &want).abs().max().double_value(&[]);
            assert!(distance <= 1e-4 * want.abs().max().double_value(&[]), "{parameter}");
        }
    }
}
