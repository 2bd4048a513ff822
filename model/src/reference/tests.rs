//! The segments, run in the order of the graph, against the fp64 twin.

use super::driver::{self, Driver};
use super::twin::{self, Choices, Twin};
use super::*;
use crate::{MicroBatch, Network};
use lampyris_plan::Inventory;
use lampyris_plan::model_spec::Yarn;
use lampyris_plan::segments::Slot;
use std::collections::BTreeMap;
use tch::{Device, Kind};

/// Largest relative difference between fp32 segments and fp64, per tensor.
const FP32: f64 = 1e-5;
/// The same in bf16: 8 bits, some fifty roundings in a row. The worst are gradients of a few elements that nearly cancel.
const BF16: f64 = 0.2;

const LENGTH: usize = 9;
/// Ends a document; a target beyond it does not count at depths above 0.
const END: i64 = 0;

/// A spec with everything that a run needs.
struct Setting {
    spec: ModelSpec,
    weights: BTreeMap<String, Tensor>,
    biases: Vec<Vec<f32>>,
    windows: Vec<Vec<i64>>,
    loss_scales: Vec<f64>,
    balance_scale: f64,
}

impl Setting {
    fn new(spec: ModelSpec, seed: u64) -> Setting {
        // Tensors of a few rows: a second thread only costs.
        tch::set_num_threads(1);
        let mut random = Random::new(seed);
        let depths = 1 + spec.mtp_layers;
        let row = |random: &mut Random| {
            (0..LENGTH + depths).map(|_| random.below(spec.vocab_size) as i64).collect()
        };
        let mut windows: Vec<Vec<i64>> = (0..3).map(|_| row(&mut random)).collect();
        windows[1][4] = END;
        let tokens = (windows.len() * LENGTH) as f64;
        // L = L_main + lambda / D * sum of L_k, lambda 0.3 (formulas 24 and 25).
        let mtp = 0.3 / spec.mtp_layers.max(1) as f64;
        let weigh = |k| if k == 0 { 1.0 } else { mtp };
        Setting {
            weights: random_weights(&Inventory::new(&spec), seed),
            biases: random_biases(&spec, seed + 1),
            loss_scales: (0..depths).map(|k| weigh(k) / tokens).collect(),
            balance_scale: 1.0 / windows.len() as f64,
            windows,
            spec,
        }
    }

    /// Whether the target at depth k of position i counts: no end of document between them.
    fn valid(&self, k: usize, sequence: usize, i: usize) -> bool {
        !self.windows[sequence][i + 1..i + 1 + k].contains(&END)
    }

    fn batch(&self) -> MicroBatch {
        let valid = |k: usize, i: usize| self.valid(k, i / LENGTH, i % LENGTH);
        let flat = self.windows.concat();
        MicroBatch::new(&flat, LENGTH, self.loss_scales.len(), valid, Device::Cpu)
    }

    fn driver(&self, compute: Kind, pad: usize) -> Driver {
        let inventory = Inventory::new(&self.spec).into();
        let network = Network::new(&self.spec, inventory, LENGTH + 4, Device::Cpu).unwrap();
        Driver::new(network, &self.weights, self.biases.clone(), compute, pad)
    }

    fn run(&self, compute: Kind, pad: usize) -> driver::Outcome {
        let driver = self.driver(compute, pad);
        driver.run(&self.batch(), &self.loss_scales, self.balance_scale)
    }

    fn twin<'a>(
        &'a self,
        weights: &'a BTreeMap<String, Tensor>,
        fixed: Option<&'a Choices>,
    ) -> twin::Outcome {
        let twin = Twin { spec: &self.spec, weights, biases: &self.biases, fixed };
        twin.run(&self.windows, LENGTH, &|k, sequence, i| self.valid(k, sequence, i))
    }

    /// The whole training loss.
    fn loss(&self, found: &twin::Outcome) -> Tensor {
        let start = &found.balance_sum * self.balance_scale;
        let parts = found.loss_sums.iter().zip(&self.loss_scales);
        parts.fold(start, |sum, (loss, scale)| sum + loss * *scale)
    }

    /// Loss parts and gradients by Hugging Face name, from torch's autograd over the twin.
    fn twin_gradients(&self, fixed: Option<&Choices>) -> (twin::Outcome, BTreeMap<String, Tensor>) {
        let leaf = |(name, w): (&String, &Tensor)| (name.clone(), w.copy().set_requires_grad(true));
        let leaves: BTreeMap<String, Tensor> = self.weights.iter().map(leaf).collect();
        let found = self.twin(&leaves, fixed);
        let loss = self.loss(&found);
        let inputs: Vec<&Tensor> = leaves.values().collect();
        let gradients = lampyris_torch::grad(&[loss], &[Tensor::from(1.0)], &inputs).unwrap();
        let zeros =
            |gradient: Option<Tensor>, w: &Tensor| gradient.unwrap_or_else(|| w.zeros_like());
        let named = leaves.iter().zip(gradients).map(|((name, w), g)| (name.clone(), zeros(g, w)));
        (found, named.collect())
    }

    /// Compares losses and every gradient.
    fn compare(&self, name: &str, compute: Kind, bound: f64) {
        let got = self.run(compute, if compute == Kind::Float { 4 } else { 64 });
        let rounded = (compute != Kind::Float).then(|| self.choices_of(&got));
        let (want, gradients) = self.twin_gradients(rounded.as_ref());
        assert_eq!(self.choices_of(&got), want.choices, "{name}: experts");
        let near = |what: String, got: f64, want: f64| {
            let error = (got - want).abs() / want.abs().max(1e-9);
            assert!(error <= bound, "{name} {what}: {got} {want}");
        };
        for (k, &sum) in got.loss_sums.iter().enumerate() {
            near(format!("loss {k}"), sum, want.loss_sums[k].double_value(&[]));
        }
        near("balance".to_string(), got.balance_sum, want.balance_sum.double_value(&[]));
        for (hf_name, got) in self.by_hf_name(&got.gradients) {
            let error = distance(&got, &gradients[&hf_name]);
            assert!(error <= bound, "{name} gradient of {hf_name}: {error:e}");
        }
    }

    fn choices_of(&self, found: &driver::Outcome) -> Choices {
        let k = self.spec.moe.as_ref().map_or(1, |moe| moe.experts_per_token);
        let mut out = Choices::new();
        for (&layer, experts) in &found.choices {
            for (sequence, chosen) in experts.chunks_exact(LENGTH * k).enumerate() {
                let chosen = chosen.iter().map(|&e| usize::try_from(e).unwrap()).collect();
                out.insert((sequence, layer), chosen);
            }
        }
        out
    }

    fn by_hf_name(&self, gradients: &[Tensor]) -> Vec<(String, Tensor)> {
        let inventory = lampyris_plan::Inventory::new(&self.spec);
        let split = |p: &lampyris_plan::Parameter| {
            let of = |part: &lampyris_plan::inventory::Part| {
                let (first, rows) = (part.first_row as i64, part.rows as i64);
                (part.hf_name.clone(), gradients[p.id].narrow(0, first, rows))
            };
            p.parts.iter().map(of).collect::<Vec<_>>()
        };
        inventory.parameters.iter().flat_map(split).collect()
    }
}

fn yarn() -> Yarn {
    Yarn {
        factor: 4.0,
        original_max_positions: 32,
        beta_fast: 8.0,
        beta_slow: 1.0,
        mscale: Some(0.7),
        mscale_all_dim: Some(1.3),
        attention_factor: None,
    }
}

/// Sizes that between them take every branch of the network.
fn specs() -> Vec<(&'static str, ModelSpec)> {
    let moe = |change: &dyn Fn(&mut Moe)| {
        let mut spec = deepseek();
        change(spec.moe.as_mut().unwrap());
        spec
    };
    let no_q_rank = |mut spec: ModelSpec| {
        if let Attention::Mla { q_rank, .. } = &mut spec.attention {
            *q_rank = None;
        }
        spec
    };
    let plain = |moe: &mut Moe| {
        (moe.groups, moe.groups_per_token, moe.experts_per_token) = (1, 1, 1);
        (moe.shared_experts, moe.balance_loss, moe.first_dense_layers) = (0, 0.0, 0);
    };
    let two_shared = |moe: &mut Moe| {
        (moe.groups, moe.groups_per_token, moe.experts_per_token) = (2, 1, 4);
        (moe.shared_experts, moe.first_dense_layers) = (2, 0);
    };
    let every_expert = |moe: &mut Moe| {
        (moe.groups_per_token, moe.experts_per_token, moe.shared_experts) = (4, 8, 0);
    };
    let rope = |yarn: Option<Yarn>, interleaved| Rope { theta: 50.0, interleaved, yarn };
    let wide_values = Attention::Mla {
        heads: 3,
        q_rank: Some(5),
        kv_rank: 9,
        nope_dim: 2,
        rope_dim: 6,
        v_dim: 11,
    };
    vec![
        ("deepseek", deepseek()),
        ("one expert of one group", ModelSpec { mtp_layers: 0, ..no_q_rank(moe(&plain)) }),
        ("two shared experts", no_q_rank(moe(&two_shared))),
        ("every expert", moe(&every_expert)),
        ("two MTP layers", ModelSpec { mtp_layers: 2, ..deepseek() }),
        ("tied head", ModelSpec { tie_embeddings: true, ..deepseek() }),
        ("yarn", ModelSpec { rope: rope(Some(yarn()), true), ..deepseek() }),
        ("wide values", ModelSpec { attention: wide_values, ..deepseek() }),
        ("dense with MTP", ModelSpec { moe: None, ..deepseek() }),
        ("llama", llama()),
        (
            "llama, interleaved, tied",
            ModelSpec { rope: rope(None, true), tie_embeddings: true, ..llama() },
        ),
        ("llama with yarn", ModelSpec { rope: rope(Some(yarn()), false), ..llama() }),
    ]
}

#[test]
fn losses_and_gradients_equal_the_twin() {
    for (i, (name, spec)) in specs().into_iter().enumerate() {
        Setting::new(spec, 100 + i as u64).compare(name, Kind::Float, FP32);
    }
}

#[test]
fn bf16_stays_near_the_twin() {
    for (i, (name, spec)) in specs().into_iter().enumerate() {
        Setting::new(spec, 200 + i as u64).compare(name, Kind::BFloat16, BF16);
    }
}

/// Central differences of the fp64 loss, at the largest and at a random element of every tensor.
#[test]
fn gradients_equal_finite_differences() {
    let step = 1e-5;
    let three =
        [("deepseek", deepseek()), ("two MTP layers", specs()[4].1.clone()), ("llama", llama())];
    for (name, spec) in three {
        let setting = Setting::new(spec, 300);
        let mut random = Random::new(301);
        let (found, exact) = setting.twin_gradients(None);
        let got = setting.run(Kind::Float, 4);
        let loss_at = |tensor: &str, element: i64, delta: f64| {
            let mut moved: BTreeMap<String, Tensor> =
                setting.weights.iter().map(|(n, w)| (n.clone(), w.shallow_clone())).collect();
            let weight = moved[tensor].copy();
            let mut value = weight.view(-1).get(element);
            value += delta;
            moved.insert(tensor.to_string(), weight);
            // The choice of experts is a constant of the gradient.
            setting.loss(&setting.twin(&moved, Some(&found.choices))).double_value(&[])
        };
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for (tensor, got) in setting.by_hf_name(&got.gradients) {
            // One per layer and kind, but two experts.
            let expert = tensor.contains("experts.") && !tensor.contains("shared");
            let kind = if expert {
                tensor.replace(|c: char| c.is_ascii_digit(), "")
            } else {
                tensor.clone()
            };
            let seen = kinds.entry(kind).or_default();
            *seen += 1;
            if *seen > 2 {
                continue;
            }
            let exact = exact[&tensor].reshape(-1);
            let top = exact.abs().max().double_value(&[]);
            let largest = exact.abs().argmax(None, false).int64_value(&[]);
            for element in [largest, random.below(exact.numel()) as i64] {
                let [above, below] = [step, -step].map(|delta| loss_at(&tensor, element, delta));
                let slope = (above - below) / (2.0 * step);
                let near = |what: &str, value: f64, bound: f64| {
                    let error = (value - slope).abs();
                    let bound = bound * top + 1e-9;
                    assert!(error <= bound, "{name} {tensor} {element} {what}: {value} {slope}");
                };
                near("fp64", exact.double_value(&[element]), 1e-6);
                near("fp32", got.reshape(-1).double_value(&[element]), FP32);
            }
        }
        assert!(kinds.len() >= 20);
    }
}

/// Paper, section 2.2: a depth looks k tokens further ahead. Beyond an end of document there is nothing to look for.
#[test]
fn targets_of_the_next_document_count_at_no_depth_above_zero() {
    let setting = Setting::new(specs()[4].1.clone(), 400);
    let batch = setting.batch();
    for k in 0..3 {
        let targets = Vec::<i64>::try_from(&batch.targets[k]).unwrap();
        for (i, target) in targets.into_iter().enumerate() {
            let window = &setting.windows[i / LENGTH];
            let at = i % LENGTH;
            let crosses = (at + 1..=at + k).any(|between| window[between] == END);
            assert_eq!(target, if crosses { -1 } else { window[at + k + 1] }, "{k} {i}");
        }
        assert_eq!(batch.targets[k].lt(0).any().int64_value(&[]), i64::from(k > 0));
    }
    // Not counting one more target takes away exactly its loss.
    let all = setting.driver(Kind::Float, 4).run(&batch, &setting.loss_scales, 0.0);
    let (k, sequence, i) = (1, 0, 5);
    assert!(setting.valid(k, sequence, i));
    let valid = |depth: usize, flat: usize| {
        let (s, at) = (flat / LENGTH, flat % LENGTH);
        setting.valid(depth, s, at) && (depth, s, at) != (k, sequence, i)
    };
    let flat = setting.windows.concat();
    let fewer = MicroBatch::new(&flat, LENGTH, 3, valid, Device::Cpu);
    let fewer = setting.driver(Kind::Float, 4).run(&fewer, &setting.loss_scales, 0.0);
    let twin = setting.twin(&setting.weights, None);
    let log_p = twin.states[k][sequence]
        .matmul(&setting.weights["lm_head.weight"].tr())
        .log_softmax(-1, None);
    let alone = -log_p.double_value(&[i as i64, setting.windows[sequence][i + k + 1]]);
    assert!((all.loss_sums[k] - fewer.loss_sums[k] - alone).abs() < 1e-5);
    assert_eq!(all.loss_sums[0].to_bits(), fewer.loss_sums[0].to_bits());
}

#[test]
fn an_expert_without_rows_gets_a_gradient_of_zeros() {
    let mut setting = Setting::new(deepseek(), 500);
    for bias in setting.biases.iter_mut().filter(|b| !b.is_empty()) {
        bias[3] = -10.0;
    }
    let got = setting.run(Kind::Float, 4);
    let inventory = setting.driver(Kind::Float, 4).network.inventory;
    for (&layer, routing) in &got.routings {
        assert_eq!(routing.counts[3], 0);
        assert!(routing.counts.iter().filter(|&&count| count > 0).count() > 3);
        for (expert, &count) in routing.counts.iter().enumerate() {
            for part in ["gate_up", "down"] {
                let name = format!("layers.{layer}.experts.{expert}.{part}");
                let gradient = &got.gradients[inventory.find(&name).unwrap().id];
                let nothing = gradient.count_nonzero(None::<i64>).int64_value(&[]) == 0;
                assert_eq!(nothing, count == 0, "{name}");
            }
        }
    }
    setting.compare("without expert 3", Kind::Float, FP32);
}

#[test]
fn padding_changes_nothing() {
    for spec in [deepseek(), specs()[2].1.clone()] {
        let setting = Setting::new(spec, 600);
        let tight = setting.run(Kind::Float, 1);
        for pad in [2, 32, 64] {
            let padded = setting.run(Kind::Float, pad);
            assert_eq!(padded.choices, tight.choices);
            for (layer, routing) in &padded.routings {
                assert_eq!(routing.counts, tight.routings[layer].counts);
                assert!(routing.blocks().offsets.iter().all(|o| o % pad as i64 == 0));
            }
            for (id, gradient) in padded.gradients.iter().enumerate() {
                let error = distance(gradient, &tight.gradients[id]);
                assert!(error < 2e-6, "parameter {id}, padded to {pad}: {error:e}");
            }
        }
    }
}

/// Slots with a row per token.
fn by_token(found: &driver::Outcome) -> BTreeMap<Slot, Tensor> {
    let rows =
        |slot: &Slot| !matches!(slot, Slot::Rows(_) | Slot::RowWeights(_) | Slot::ExpertRows(_));
    let slots = found.values.iter().filter(|(slot, _)| rows(slot));
    slots.map(|(slot, value)| (*slot, value.shallow_clone())).collect()
}

/// A token's only expert has the whole weight, whatever the token.
fn always_one(spec: &ModelSpec, slot: Slot) -> bool {
    matches!(slot, Slot::RouteWeights(_))
        && spec.moe.as_ref().is_some_and(|moe| moe.experts_per_token == 1)
}

/// Other sequences of the micro-batch change where a token's rows stand among its experts, and not one bit of them.
#[test]
fn a_sequence_does_not_feel_its_neighbours() {
    for (name, spec) in specs() {
        for (compute, pad) in [(Kind::Float, 32), (Kind::BFloat16, 64)] {
            let mut setting = Setting::new(spec.clone(), 700);
            let before = by_token(&setting.run(compute, pad));
            let mut random = Random::new(701);
            for token in setting.windows[1..].iter_mut().flatten() {
                *token = random.below(spec.vocab_size) as i64;
            }
            let after = by_token(&setting.run(compute, pad));
            let first = |x: &Tensor| x.narrow(0, 0, LENGTH as i64);
            for (slot, before) in &before {
                assert!(first(before).equal(&first(&after[slot])), "{name} {compute:?} {slot:?}");
                let moved = !before.equal(&after[slot]) || always_one(&spec, *slot);
                assert!(moved, "{name} {compute:?} {slot:?}: the neighbours stayed");
            }
            setting.windows.truncate(1);
            let alone = by_token(&setting.run(compute, pad));
            for (slot, before) in before {
                let error = distance(&alone[&slot], &first(&before));
                let bound = if compute == Kind::Float { FP32 } else { BF16 };
                assert!(error < bound, "{name} {compute:?} {slot:?} alone: {error:e}");
            }
        }
    }
}

/// Position t of a sequence depends on no token behind t.
#[test]
fn a_token_does_not_see_the_future() {
    for (name, spec) in specs() {
        let mut setting = Setting::new(spec.clone(), 800);
        let before = by_token(&setting.run(Kind::Float, 32));
        let changed = 6;
        for window in &mut setting.windows {
            for token in &mut window[changed..] {
                *token = (*token + 1) % spec.vocab_size as i64;
            }
        }
        let after = by_token(&setting.run(Kind::Float, 32));
        for (slot, before) in before {
            // Depth k reads tokens up to k positions ahead of its own.
            let ahead = match slot {
                Slot::MtpOut(l) | Slot::MtpFinal(l) => l + 1 - spec.layers,
                Slot::Hidden(l)
                | Slot::Residual(l)
                | Slot::Normed(l)
                | Slot::RouteWeights(l)
                | Slot::Routed(l)
                | Slot::SharedOut(l) => (l + 1).saturating_sub(spec.layers),
                _ => 0,
            };
            let part = |x: &Tensor, first: usize, count: usize| {
                x.view([3, LENGTH as i64, -1]).narrow(1, first as i64, count as i64)
            };
            let past = changed - ahead;
            assert!(part(&before, 0, past).equal(&part(&after[&slot], 0, past)), "{name} {slot:?}");
            let moved = !part(&before, past, 1).equal(&part(&after[&slot], past, 1));
            assert!(moved || always_one(&spec, slot), "{name} {slot:?}: the present stayed");
        }
    }
}
