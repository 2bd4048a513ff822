//! Multi-head latent attention in its training form (DeepSeek-V2, section 2.1; formulas 9-19). The low-rank norms use
//! epsilon 1e-6 whatever the block norms use, as the released code does.

use crate::Result;
use crate::llama::attention::core;
use crate::network::Context;
use crate::weights::LayerIds;
use lampyris_torch::{dim, ops};
use tch::Tensor;

const LOW_RANK_EPS: f64 = 1e-6;

/// Sizes of an MLA block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) heads: usize,
    pub(crate) q_rank: Option<usize>,
    pub(crate) kv_rank: usize,
    pub(crate) nope: usize,
    pub(crate) rope: usize,
    pub(crate) value: usize,
    /// Scale of the softmax, YaRN's factor included.
    pub(crate) scale: f64,
}

/// hidden `[T, d]` -> attention output `[T, d]`, norm in front included.
pub(crate) fn forward(
    ctx: &Context<'_>,
    ids: &LayerIds,
    sizes: Sizes,
    eps: f64,
    hidden: &Tensor,
) -> Result<Tensor> {
    let at = &ids.attention;
    let weight = |id: Option<usize>| ctx.weights.get(id.expect("an MLA layer has this weight"));
    let norm = ctx.weights.get(ids.input_norm);
    // One product for both projections: [c_q or q | c_kv | k_rope].
    let down = ops::norm_linear(hidden, norm, eps, weight(at.q_kv_a), ctx.sink)?;
    let q_width = sizes.q_rank.unwrap_or(sizes.heads * (sizes.nope + sizes.rope));
    let (q_width, kv_rank, rope) = (dim(q_width), dim(sizes.kv_rank), dim(sizes.rope));
    // Split in one call: its backward pass is one concatenation.
    let [q, c_kv, k_rope] =
        <[Tensor; 3]>::try_from(down.split_with_sizes([q_width, kv_rank, rope], 1))
            .expect("three sizes give three parts");
    let q = match sizes.q_rank {
        Some(_) => {
            let norm = weight(at.q_a_norm);
            ops::norm_linear(&q, norm, LOW_RANK_EPS, weight(at.q_b), ctx.sink)?
        }
        None => q,
    };
    let kv_norm = weight(at.kv_a_norm);
    let kv = ops::norm_linear(&c_kv, kv_norm, LOW_RANK_EPS, weight(at.kv_b), ctx.sink)?;
    let packing = ops::Mla {
        sequence: ctx.batch.length,
        heads: sizes.heads,
        nope: sizes.nope,
        rope: sizes.rope,
        value: sizes.value,
    };
    let [q, k, v] = ops::mla_pack(&q, &kv, &k_rope, ctx.angles, packing)?;
    let out = core(ctx, [&q, &k, &v], sizes.heads, sizes.scale)?;
    Ok(ops::linear(&out, ctx.weights.get(at.o), ctx.sink)?)
}
