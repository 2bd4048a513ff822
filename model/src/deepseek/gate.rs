//! The gate of DeepSeek-V3 (section 2.1.2, formulas 12-16 and 17-20): sigmoid scores, selection by score plus bias
//! inside the best groups, normalised weights, sequence-wise balance loss. All in fp32.

use crate::Result;
use crate::network::Context;
use lampyris_plan::model_spec::Moe;
use lampyris_torch::{dim, ops};
use tch::{Kind, Tensor};

/// What the gate decides for a micro-batch of T tokens.
#[derive(Debug)]
pub(crate) struct Gating {
    /// Routing weights, fp32 `[T, K]`; differentiable.
    pub(crate) weights: Tensor,
    /// Selected experts, i64 `[T, K]`, best first.
    pub(crate) experts: Vec<i64>,
    /// Sum over sequences of the balance loss, alpha included; differentiable scalar.
    pub(crate) balance: Option<Tensor>,
}

/// normed `[T, d]` -> gating of decoder layer `layer`; its bias `[E]` takes part in the selection only.
pub(crate) fn forward(
    ctx: &Context<'_>,
    moe: &Moe,
    layer: usize,
    router: usize,
    normed: &Tensor,
) -> Result<Gating> {
    let logits = ops::linear(&normed.to_kind(Kind::Float), ctx.weights.get(router), ctx.sink)?;
    let scores = logits.sigmoid();
    let host = Vec::<f32>::try_from(scores.detach().to_device(tch::Device::Cpu).flatten(0, -1))?;
    let experts = match ctx.batch.choices.get(&layer) {
        Some(given) => given.clone(),
        None => select(&host, &ctx.biases[layer], moe),
    };
    let shape = [dim(ctx.batch.tokens()), dim(moe.experts_per_token)];
    let index = Tensor::from_slice(&experts).view(shape).to_device(normed.device());
    let picked = scores.gather(1, &index, false);
    let sum = picked.sum_dim_intlist([1i64].as_slice(), true, Kind::Float) + 1e-20;
    let weights = picked / sum * moe.routed_scale;
    let balance = (moe.balance_loss > 0.0).then(|| balance_loss(ctx, moe, &scores, &index));
    Ok(Gating { weights, experts, balance })
}

/// Experts per token by `score + bias`: the best `groups_per_token` groups by the sum of their two best, then the best
/// `experts_per_token` experts inside them; ties go to the lower index. scores `[T, E]` -> `[T, K]`.
pub fn select(scores: &[f32], bias: &[f32], moe: &Moe) -> Vec<i64> {
    let size = moe.experts / moe.groups;
    let mut out = Vec::with_capacity(scores.len() / moe.experts * moe.experts_per_token);
    let mut biased = vec![0f32; moe.experts];
    let mut group_scores = vec![0f32; moe.groups];
    for row in scores.chunks_exact(moe.experts) {
        for ((b, score), bias) in biased.iter_mut().zip(row).zip(bias) {
            *b = score + bias;
        }
        for (group, score) in group_scores.iter_mut().enumerate() {
            *score = top_two(&biased[group * size..(group + 1) * size]);
        }
        let mut candidates = biased.clone();
        for _ in 0..moe.groups - moe.groups_per_token {
            let worst = worst(&group_scores);
            group_scores[worst] = f32::INFINITY;
            candidates[worst * size..(worst + 1) * size].fill(f32::NEG_INFINITY);
        }
        for _ in 0..moe.experts_per_token {
            let best = best(&candidates);
            candidates[best] = f32::NEG_INFINITY;
            out.push(dim(best));
        }
    }
    out
}

/// Sum of the two largest values.
fn top_two(values: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &value in values {
        if value > first {
            (first, second) = (value, first);
        } else if value > second {
            second = value;
        }
    }
    first + second
}

/// First index of the largest value. Nothing is larger than NaN, and NaN is larger than nothing: whatever a broken router
/// gives, the index exists.
fn best(values: &[f32]) -> usize {
    let mut at = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[at] {
            at = i;
        }
    }
    at
}

/// Last index of the smallest value: of equal groups the first is kept.
fn worst(values: &[f32]) -> usize {
    let mut at = 0;
    for (i, &value) in values.iter().enumerate() {
        if value <= values[at] {
            at = i;
        }
    }
    at
}

/// alpha * sum over sequences of sum_i f_i P_i, with f_i = E / (K S) * #{t selects i} (selected indices, no gradient)
/// and P_i = mean_t s_i / sum_j s_j.
fn balance_loss(ctx: &Context<'_>, moe: &Moe, scores: &Tensor, index: &Tensor) -> Tensor {
    let (b, s) = (dim(ctx.batch.sequences), dim(ctx.batch.length));
    let (e, k) = (dim(moe.experts), dim(moe.experts_per_token));
    let options = (Kind::Float, scores.device());
    let picked = Tensor::zeros([b * s, e], options).scatter_value(1, index, 1.0);
    let sum = |x: &Tensor| x.view([b, s, e]).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let f = sum(&picked) * (e as f64 / (k * s) as f64);
    let share = scores / scores.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    let p = sum(&share) / s as f64;
    (f * p).sum(Kind::Float) * moe.balance_loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, deepseek, gate::choose};

    fn gates() -> Vec<Moe> {
        let base = deepseek().moe.unwrap();
        [
            (8, 1, 1, 1),
            (8, 1, 1, 3),
            (8, 4, 2, 3),
            (8, 2, 1, 4),
            (12, 3, 3, 12),
            (16, 4, 2, 4),
            (6, 3, 1, 2),
        ]
        .map(|(experts, groups, groups_per_token, experts_per_token)| Moe {
            experts,
            groups,
            groups_per_token,
            experts_per_token,
            ..base.clone()
        })
        .into()
    }

    /// Scores of a few levels only tie all the time; fine ones never do.
    #[test]
    fn selection_equals_counting_with_ties_and_without() {
        let mut random = Random::new(1);
        for moe in gates() {
            for levels in [2, 4, 1 << 20] {
                let mut value = || random.below(levels) as f32 / levels as f32;
                let scores: Vec<f32> = (0..300 * moe.experts).map(|_| value()).collect();
                let bias: Vec<f32> = (0..moe.experts).map(|_| value() - 0.5).collect();
                let wide =
                    |values: &[f32]| -> Vec<f64> { values.iter().map(|&x| f64::from(x)).collect() };
                let want: Vec<i64> = scores
                    .chunks_exact(moe.experts)
                    .flat_map(|row| choose(&wide(row), &wide(&bias), &moe))
                    .map(dim)
                    .collect();
                let got = select(&scores, &bias, &moe);
                let differ = got.iter().zip(&want).position(|(got, want)| got != want);
                assert_eq!((got.len(), differ), (want.len(), None), "{moe:?} {levels}");
            }
        }
    }

    #[test]
    fn the_bias_moves_the_choice_and_nothing_else_does() {
        let moe = Moe { groups: 1, groups_per_token: 1, experts_per_token: 2, ..gates().remove(0) };
        let scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
        assert_eq!(select(&scores, &[0.0; 8], &moe), [7, 6]);
        assert_eq!(select(&scores, &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0], &moe), [0, 6]);
    }

    #[test]
    fn a_broken_router_still_names_experts_that_exist() {
        let mut random = Random::new(2);
        for moe in gates() {
            for broken in 0..=moe.experts {
                let mut scores: Vec<f32> =
                    (0..20 * moe.experts).map(|_| random.normal() as f32).collect();
                for row in scores.chunks_exact_mut(moe.experts) {
                    row[moe.experts - broken..].fill(f32::NAN);
                }
                let found = select(&scores, &vec![0.0; moe.experts], &moe);
                assert_eq!(found.len(), 20 * moe.experts_per_token);
                assert!(found.iter().all(|&e| (0..dim(moe.experts)).contains(&e)));
            }
        }
    }
}
