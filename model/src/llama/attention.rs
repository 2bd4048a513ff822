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
        // Flash attention wants values as wide as keys; the added columns are zeros and are cut off again.
        let v = if d_v < d { v.constant_pad_nd([0, d - d_v]) } else { v.shallow_clone() };
        let four = |x: &Tensor| {
            let x = x.view([b, blocks / b, 1, s, d]);
            x.expand([b, blocks / b, b * h / blocks, s, d], false).reshape([b, h, s, d])
        };
        Tensor::f_scaled_dot_product_attention::<&Tensor>(
            &q.view([b, h, s, d]),
            &four(k),
            &four(&v),
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
