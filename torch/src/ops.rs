//! Operations with custom backward passes, and fused kernels without autograd. Weights come as `(tensor, parameter id)`:
//! they take no part in autograd, their gradients arrive in the [`Sink`] under that id.

use crate::{Result, Sink, ffi};
use tch::Tensor;

/// A weight and the id under which its gradient arrives.
pub type Weight<'a> = (&'a Tensor, usize);

/// Sizes of a packed MLA block (DeepSeek-V2, section 2.1).
#[derive(Debug, Clone, Copy)]
pub struct Mla {
    /// Positions S of a sequence.
    pub sequence: usize,
    /// Heads h.
    pub heads: usize,
    /// Head part without position, d_n.
    pub nope: usize,
    /// Head part with RoPE, d_r.
    pub rope: usize,
    /// Value head size d_v.
    pub value: usize,
}

/// Sizes of a packed GQA block.
#[derive(Debug, Clone, Copy)]
pub struct Gqa {
    /// Positions S of a sequence.
    pub sequence: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// RoPE pairs (0,1), (2,3), ... instead of (i, i + head_dim/2).
    pub interleaved: bool,
}

/// AdamW of one step; corrections are `1 / (1 - beta^t)`.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// First-moment decay.
    pub beta1: f64,
    /// Second-moment decay.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Optimizer step t, 1-based.
    pub step: u64,
    /// Factor on the gradient (clipping).
    pub grad_scale: f64,
}

/// RMSNorm of the last dimension with fp32 weight: x `[.., size]` of either compute type, result like x.
pub fn rms_norm(x: &Tensor, weight: Weight<'_>, eps: f64, sink: &Sink) -> Result<Tensor> {
    ffi::rms_norm(x, weight.0, eps, &sink.0, weight.1)
}

/// `linear(rms_norm(x), weight)`; keeps only x for the backward pass. weight `[out, in]`.
pub fn norm_linear(
    x: &Tensor,
    norm: Weight<'_>,
    eps: f64,
    weight: Weight<'_>,
    sink: &Sink,
) -> Result<Tensor> {
    ffi::norm_linear(x, norm, eps, weight, &sink.0)
}

/// `x weightᵀ`: x `[.., in]`, weight `[out, in]`.
pub fn linear(x: &Tensor, weight: Weight<'_>, sink: &Sink) -> Result<Tensor> {
    ffi::linear(x, weight, &sink.0)
}

/// One linear layer per group of rows: group g holds rows `offsets[g]..offsets[g + 1]` of x `[rows, in]`.
pub fn grouped_linear(
    x: &Tensor,
    weights: &[Weight<'_>],
    offsets: &[i64],
    sink: &Sink,
) -> Result<Tensor> {
    ffi::grouped_linear(x, weights, offsets, &sink.0)
}

/// `silu(gate) * up * weight[row]`: gate_up `[rows, 2 * width]` as `[gate | up]`, weight fp32 `[rows]`.
pub fn swiglu(gate_up: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    ffi::swiglu(gate_up, weight)
}

/// Rows `ids` of weight `[V, hidden]`. `anchor` is any tensor that requires a gradient: it makes autograd visit this
/// operation although neither ids nor weight take part. It must be, or lead to, one of the inputs that
/// [`crate::grad`] is asked for: backward walks nothing else.
pub fn embedding(weight: Weight<'_>, ids: &Tensor, anchor: &Tensor, sink: &Sink) -> Result<Tensor> {
    ffi::embedding(weight, ids, anchor, &sink.0)
}

/// Causal attention that keeps its probabilities: q `[n, g * S, d]`, k `[n, S, d]`, v `[n, S, d_v]`, result
/// `[n, g * S, d_v]`; row r of a block stands at position `r % S`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    ffi::attention(q, k, v, scale)
}

/// MLA heads with RoPE: q_raw `[T, h * (d_n + d_r)]`, kv `[T, h * (d_n + d_v)]`, k_rope `[T, d_r]`, cos and sin fp32
/// `[>= S, d_r / 2]` -> q, k `[B * h, S, d_n + d_r]`, v `[B * h, S, d_v]`.
pub fn mla_pack(
    q_raw: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    angles: (&Tensor, &Tensor),
    sizes: Mla,
) -> Result<[Tensor; 3]> {
    let dim = crate::dim;
    let shape = ffi::MlaShape {
        sequence: dim(sizes.sequence),
        heads: dim(sizes.heads),
        nope: dim(sizes.nope),
        rope: dim(sizes.rope),
        value: dim(sizes.value),
    };
    ffi::mla_pack(q_raw, kv, k_rope, angles, shape)
}

/// GQA heads with RoPE: qkv `[T, (heads + 2 * kv_heads) * head_dim]` -> q `[B * heads, S, head_dim]`, k and v
/// `[B * kv_heads, S, head_dim]`.
pub fn gqa_pack(qkv: &Tensor, angles: (&Tensor, &Tensor), sizes: Gqa) -> Result<[Tensor; 3]> {
    let dim = crate::dim;
    let shape = ffi::GqaShape {
        sequence: dim(sizes.sequence),
        heads: dim(sizes.heads),
        kv_heads: dim(sizes.kv_heads),
        head_dim: dim(sizes.head_dim),
        interleaved: sizes.interleaved,
    };
    ffi::gqa_pack(qkv, angles, shape)
}

/// `out[r] = x[source[r]]`, zeros where `source[r] < 0`. No autograd.
pub fn gather_rows(x: &Tensor, source: &Tensor) -> Result<Tensor> {
    ffi::gather_rows(x, source)
}

/// `out[t]` = sum of `rows[position[t, k]]` over the slots k in order: partial sums inside a run of equal `group[t, k]`,
/// then the partial sums from left to right, in fp32, rounded once. position and group i64 `[tokens, slots]`, groups
/// rising along a row. No autograd.
pub fn sum_rows(rows: &Tensor, position: &Tensor, group: &Tensor) -> Result<Tensor> {
    ffi::sum_rows(rows, position, group)
}

/// Cross entropy per row, fp32 `[rows]`; logits `[rows, V]` become the gradient of `scale * sum(losses)` in place. Rows
/// with a negative target count nothing. No autograd.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, scale: f64) -> Result<Tensor> {
    ffi::cross_entropy(logits, targets, scale)
}

/// One AdamW pass over flat fp32 arrays, in place; `copy` receives the weights in bf16.
#[allow(clippy::cast_possible_truncation, reason = "the kernel computes in fp32")]
pub fn adamw(
    state: [&Tensor; 3],
    gradient: &Tensor,
    copy: Option<&Tensor>,
    args: &AdamW,
) -> Result<()> {
    let correction = |beta: f64| 1.0 / (1.0 - beta.powf(args.step as f64));
    let args = ffi::AdamW {
        lr: args.lr as f32,
        beta1: args.beta1 as f32,
        beta2: args.beta2 as f32,
        eps: args.eps as f32,
        weight_decay: args.weight_decay as f32,
        correction1: correction(args.beta1) as f32,
        correction2: correction(args.beta2) as f32,
        grad_scale: args.grad_scale as f32,
    };
    ffi::adamw(state, gradient, copy, &args)
}

/// Sum of squares in fp64 over fixed blocks: the same bits for any number of threads.
pub fn square_sum(x: &Tensor) -> Result<f64> {
    ffi::square_sum(x)
}
