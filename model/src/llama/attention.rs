//! Grouped-query attention (2305.13245) and the attention core that MLA shares.

use crate::Result;
use crate::network::Context;
use crate::weights::LayerIds;
use lampyris_torch::{dim, ops};
use tch::Tensor;

/// From this many positions on the probabilities are not kept: ATen's flash attention recomputes them. Below, batched
/// matrix products are faster on a CPU.
const FLASH_FROM: usize = 1024;

/// Head counts of a GQA block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) interleaved: bool,
}

/// hidden `[T, d]` -> attention output `[T, d]`, norm in front included.
pub(crate) fn forward(
    ctx: &Context<'_>,
    ids: &LayerIds,
    sizes: Heads,
    eps: f64,
    hidden: &Tensor,
) -> Result<Tensor> {
    let norm = ctx.weights.get(ids.input_norm);
    let weight = ctx.weights.get(ids.attention.qkv.expect("a GQA layer has qkv"));
    let qkv = ops::norm_linear(hidden, norm, eps, weight, ctx.sink)?;
    let length = ctx.batch.length;
    let gqa = ops::Gqa {
        sequence: length,
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
        interleaved: sizes.interleaved,
    };
    let [q, k, v] = ops::gqa_pack(&qkv, ctx.angles, gqa)?;
    let scale = (sizes.head_dim as f64).powf(-0.5);
    let out = core(ctx, [&q, &k, &v], sizes.heads, scale)?;
    Ok(ops::linear(&out, ctx.weights.get(ids.attention.o), ctx.sink)?)
}

/// Causal attention: q `[B * heads, S, d]`, k and v `[B * kv_heads, S, ..]` -> `[T, heads * d_v]`.
pub(crate) fn core(
    ctx: &Context<'_>,
    qkv: [&Tensor; 3],
    heads: usize,
    scale: f64,
) -> Result<Tensor> {
    let [q, k, v] = qkv;
    let (sequences, length) = (ctx.batch.sequences, ctx.batch.length);
    let (b, s, h) = (dim(sequences), dim(length), dim(heads));
    let (d, d_v, blocks) = (q.size()[2], v.size()[2], k.size()[0]);
    let out = if length < FLASH_FROM {
        let q = q.view([blocks, b * h / blocks * s, d]);
        ops::attention(&q, k, v, scale)?.view([b, h, s, d_v])
    } else {
        // Flash attention wants values as wide as keys: the added columns are zeros and are cut off again.
        let wide = d.max(d_v);
        let pad = |x: &Tensor| match wide - x.size()[2] {
            0 => x.shallow_clone(),
            missing => x.constant_pad_nd([0, missing]),
        };
        let four = |x: &Tensor| {
            let x = pad(x).view([b, blocks / b, 1, s, wide]);
            x.expand([b, blocks / b, b * h / blocks, s, wide], false).reshape([b, h, s, wide])
        };
        Tensor::f_scaled_dot_product_attention::<&Tensor>(
            &pad(q).view([b, h, s, wide]),
            &four(k),
            &four(v),
            None,
            0.0,
            true,
            Some(scale),
            false,
        )?
        .narrow(3, 0, d_v)
    };
    Ok(out.transpose(1, 2).reshape([b * s, h * d_v]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, distance, llama};
    use crate::{MicroBatch, Network, Weights};
    use lampyris_torch::{Sink, grad};
    use tch::{Device, Kind};

    /// softmax(q kᵀ scale) v under the causal mask, fp64; q `[B * h, S, d]`, k and v `[B * h_kv, S, ..]`.
    fn masked_softmax(qkv: &[Tensor], group: i64, scale: f64) -> Tensor {
        let shared = |x: &Tensor| x.repeat_interleave_self_int(group, 0, None);
        let scores = qkv[0].matmul(&shared(&qkv[1]).transpose(1, 2)) * scale;
        let future = scores.ones_like().triu(1).to_kind(Kind::Bool);
        scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, None).matmul(&shared(&qkv[2]))
    }

    /// Both sides of [`FLASH_FROM`], shared and own key heads, values narrower and wider than keys.
    #[test]
    fn short_and_long_sequences_equal_masked_softmax() {
        let inventory = lampyris_plan::Inventory::new(&llama()).into();
        let network = Network::new(&llama(), inventory, 1, Device::Cpu).unwrap();
        let (weights, sink) = (Weights { views: Vec::new() }, Sink::new());
        for (length, heads, kv_heads, d, d_v) in [
            (FLASH_FROM - 1, 4, 2, 8, 8),
            (FLASH_FROM, 4, 2, 8, 8),
            (FLASH_FROM, 2, 2, 12, 8),
            (FLASH_FROM + 30, 2, 1, 8, 12),
        ] {
            let sequences = 2;
            let windows = vec![0; sequences * length];
            let batch = MicroBatch::new(&windows, length, 0, |_, _| true, Device::Cpu);
            let ctx = network.context(&weights, &[], &batch, &sink);
            let mut random = Random::new(length as u64);
            let (s, scale) = (dim(length), (d as f64).powf(-0.5));
            let start = [(heads, d), (kv_heads, d), (kv_heads, d_v)]
                .map(|(h, width)| random.tensor(&[dim(sequences * h), s, width]));
            let leaves = |kind: Kind| {
                let leaf = |x: &Tensor| x.to_kind(kind).copy().set_requires_grad(true);
                start.iter().map(leaf).collect::<Vec<Tensor>>()
            };
            let exact_leaves = leaves(Kind::Double);
            let want = masked_softmax(&exact_leaves, dim(heads / kv_heads), scale);
            let by_token = |x: &Tensor| {
                let x = x.view([dim(sequences), dim(heads), s, d_v]).transpose(1, 2);
                x.reshape([dim(sequences) * s, dim(heads) * d_v])
            };
            let want = by_token(&want);
            let weigh = random.tensor(&want.size());
            let gradients = |out: &Tensor, leaves: &[Tensor]| {
                let leaves: Vec<&Tensor> = leaves.iter().collect();
                grad(&[out.shallow_clone()], &[weigh.to_kind(out.kind())], &leaves).unwrap()
            };
            let exact = gradients(&want, &exact_leaves);
            for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 0.03)] {
                let leaves = leaves(kind);
                let out = core(&ctx, [&leaves[0], &leaves[1], &leaves[2]], heads, scale).unwrap();
                let found = gradients(&out, &leaves);
                assert!(distance(&out.detach(), &want.detach()) < bound, "{length} {kind:?}");
                for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                    let error = distance(found.as_ref().unwrap(), exact.as_ref().unwrap());
                    assert!(error < bound, "{length} {kind:?} gradient {i}: {error:e}");
                }
            }
        }
    }
}
