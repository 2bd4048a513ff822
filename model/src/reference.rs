//! Slow twins in fp64, written from the formulas, and tests that compare the segments with them: losses, gradients, and
//! finite differences of the whole loss.

mod driver;
pub(crate) mod gate;
pub(crate) mod rotary;
mod tests;
mod twin;

use lampyris_plan::Inventory;
use lampyris_plan::model_spec::{Attention, Gate, ModelSpec, Moe, Rope};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// A reproducible stream of numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number in `[0, end)`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// About normal, standard deviation 1, exact in fp32.
    pub(crate) fn normal(&mut self) -> f64 {
        let mut uniform = || self.next() as f64 / u64::MAX as f64 - 0.5;
        f64::from(((uniform() + uniform() + uniform()) * 2.0) as f32)
    }

    /// fp64 tensor of such numbers.
    pub(crate) fn tensor(&mut self, shape: &[i64]) -> Tensor {
        let count: i64 = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|_| self.normal()).collect();
        Tensor::from_slice(&values).view(shape)
    }
}

/// Values below this are rounding: gradients that are zero on paper (the router's, if a token has one expert).
const NOTHING: f64 = 1e-3;

/// max|a - b| / max|b|, where max|b| counts as no less than [`NOTHING`].
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let top = b.abs().max().double_value(&[]).max(NOTHING);
    (a - b).abs().max().double_value(&[]) / top
}

/// Weights of a network by Hugging Face name, fp64, exact in fp32: matrices of about unit gain, norms around one.
pub(crate) fn random_weights(inventory: &Inventory, seed: u64) -> BTreeMap<String, Tensor> {
    let mut random = Random::new(seed);
    let mut out = BTreeMap::new();
    for parameter in &inventory.parameters {
        let tail = parameter.shape[1..].iter().map(|&n| lampyris_torch::dim(n));
        for part in &parameter.parts {
            let shape: Vec<i64> =
                std::iter::once(lampyris_torch::dim(part.rows)).chain(tail.clone()).collect();
            let values = random.tensor(&shape);
            let values = match shape.get(1) {
                Some(&columns) => values * (1.0 / columns as f64).sqrt(),
                None => values * 0.2 + 1.0,
            };
            let exact = values.to_kind(Kind::BFloat16).to_kind(Kind::Double);
            out.insert(part.hf_name.clone(), exact);
        }
    }
    out
}

/// Selection biases by decoder layer, large enough to change the choice.
pub(crate) fn random_biases(spec: &ModelSpec, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed);
    let experts = spec.moe.as_ref().map_or(0, |moe| moe.experts);
    let of = |layer| if spec.is_moe_layer(layer) { experts } else { 0 };
    (0..spec.all_layers())
        .map(|layer| (0..of(layer)).map(|_| random.normal() as f32 * 0.1).collect())
        .collect()
}

/// DeepSeek-V3 in miniature: one dense and one MoE layer, one MTP layer.
pub(crate) fn deepseek() -> ModelSpec {
    ModelSpec {
        vocab_size: 19,
        hidden: 16,
        layers: 2,
        ffn_hidden: 20,
        norm_eps: 1e-5,
        init_std: 0.02,
        tie_embeddings: false,
        max_positions: 64,
        attention: Attention::Mla {
            heads: 2,
            q_rank: Some(7),
            kv_rank: 10,
            nope_dim: 4,
            rope_dim: 4,
            v_dim: 6,
        },
        rope: Rope { theta: 100.0, interleaved: true, yarn: None },
        moe: Some(Moe {
            experts: 8,
            experts_per_token: 3,
            shared_experts: 1,
            expert_hidden: 10,
            first_dense_layers: 1,
            gate: Gate::SigmoidBias,
            groups: 4,
            groups_per_token: 2,
            routed_scale: 2.5,
            bias_update_speed: 0.001,
            balance_loss: 0.3,
        }),
        mtp_layers: 1,
    }
}

/// LLaMA in miniature: two layers, grouped-query attention.
pub(crate) fn llama() -> ModelSpec {
    ModelSpec {
        attention: Attention::Gqa { heads: 4, kv_heads: 2, head_dim: 6 },
        rope: Rope { theta: 100.0, interleaved: false, yarn: None },
        moe: None,
        mtp_layers: 0,
        ..deepseek()
    }
}
