//! Floating-point operations per token, multiply-add = 2, as DeepSeek counts them: matrix products and attention core,
//! causal attention at S/2 (V3's 250 GFLOP per trained token). Norms, RoPE, softmax, SwiGLU and routing are left out:
//! below 1 % at any published size.
//!
//! Training is three times forward; recomputation is not counted, so a utilisation made from it is MFU, not HFU.

use crate::inventory::Parameter;
use crate::model_spec::{Attention, ModelSpec};
use crate::segments::Segment;
use serde::Serialize;

/// Operations of one token's forward pass in sequences of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ForwardFlops {
    /// Matrix products of attention.
    pub attention_linears: u64,
    /// Scores and weighted values.
    pub attention_core: u64,
    /// Dense and shared feed-forwards.
    pub feed_forward: u64,
    /// Routed experts that the token uses.
    pub experts: u64,
    /// Gates.
    pub router: u64,
    /// Output head.
    pub head: u64,
    /// All of the MTP layers, their use of the head included.
    pub mtp: u64,
}

/// Operations of one token in the forward pass of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmentFlops {
    /// Products with weights: as many again for the gradient of the input, and for that of the weights.
    pub weights: u64,
    /// Scores and weighted values of attention: twice as many in the backward pass.
    pub core: u64,
}

impl SegmentFlops {
    /// One token in sequences of `sequence_length`.
    pub fn per_token(spec: &ModelSpec, segment: Segment, sequence_length: usize) -> SegmentFlops {
        let (hidden, vocab) = (spec.hidden as u64, spec.vocab_size as u64);
        let mut layer = ForwardFlops::default();
        if let Segment::Attention(l)
        | Segment::FeedForward(l)
        | Segment::Shared(l)
        | Segment::Experts(l) = segment
        {
            layer.add_layer(spec, l, sequence_length as u64);
        }
        let weights = match segment {
            Segment::Attention(_) => layer.attention_linears + layer.router,
            Segment::FeedForward(_) | Segment::Shared(_) => layer.feed_forward,
            Segment::Experts(_) => layer.experts,
            Segment::MtpInput(_) => 4 * hidden * hidden,
            Segment::Head(_) => 2 * hidden * vocab,
            Segment::Embed | Segment::Merge(_) | Segment::FinalNorm | Segment::MtpNorm(_) => 0,
        };
        let is_attention = matches!(segment, Segment::Attention(_));
        SegmentFlops { weights, core: if is_attention { layer.attention_core } else { 0 } }
    }
}

impl ForwardFlops {
    /// One token in sequences of `sequence_length`.
    pub fn per_token(spec: &ModelSpec, sequence_length: usize) -> ForwardFlops {
        let s = sequence_length as u64;
        let (hidden, vocab) = (spec.hidden as u64, spec.vocab_size as u64);
        let mut flops = ForwardFlops { head: 2 * hidden * vocab, ..ForwardFlops::default() };
        for layer in 0..spec.layers {
            flops.add_layer(spec, layer, s);
        }
        for layer in spec.layers..spec.all_layers() {
            let mut depth = ForwardFlops::default();
            depth.add_layer(spec, layer, s);
            // Projection of [embedding; hidden] and the shared head.
            flops.mtp += depth.main() + 4 * hidden * hidden + 2 * hidden * vocab;
        }
        flops
    }

    /// The main model, without MTP layers.
    pub fn main(&self) -> u64 {
        self.attention_linears
            + self.attention_core
            + self.feed_forward
            + self.experts
            + self.router
            + self.head
    }

    /// The main model and the MTP layers: what a training step computes.
    pub fn with_mtp(&self) -> u64 {
        self.main() + self.mtp
    }

    fn add_layer(&mut self, spec: &ModelSpec, layer: usize, s: u64) {
        let hidden = spec.hidden as u64;
        self.attention_linears += 2 * attention_weights(spec);
        // 2 per multiply-add, S/2 positions on average.
        self.attention_core += attention_width(&spec.attention) * s;
        match &spec.moe {
            Some(moe) if spec.is_moe_layer(layer) => {
                let expert = 6 * hidden * moe.expert_hidden as u64;
                self.feed_forward += expert * moe.shared_experts as u64;
                self.experts += expert * moe.experts_per_token as u64;
                self.router += 2 * hidden * moe.experts as u64;
            }
            _ => self.feed_forward += 6 * hidden * spec.ffn_hidden as u64,
        }
    }
}

/// Iterations of Newton-Schulz in one Muon update (2502.16982, section 2.1).
pub const NEWTON_SCHULZ_ITERATIONS: usize = 5;

/// Operations of one Muon update of `parameter` `[out, in]`: of each part, with m and n its shorter and longer side, a
/// Gram matrix, its square, and the product with the part, 4 m^2 n + 2 m^3 an iteration.
pub fn newton_schulz(parameter: &Parameter) -> u64 {
    let columns = parameter.row_elements() as u64;
    let part = |rows: u64| {
        let (m, n) = (rows.min(columns), rows.max(columns));
        NEWTON_SCHULZ_ITERATIONS as u64 * (4 * m * m * n + 2 * m * m * m)
    };
    parameter.parts.iter().map(|p| part(p.rows as u64)).sum()
}

/// Elements of the matrices of one attention layer.
fn attention_weights(spec: &ModelSpec) -> u64 {
    let d = spec.hidden as u64;
    match spec.attention {
        Attention::Gqa { heads, kv_heads, head_dim } => {
            let (heads, kv_heads, head_dim) = (heads as u64, kv_heads as u64, head_dim as u64);
            d * (heads + 2 * kv_heads) * head_dim + heads * head_dim * d
        }
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
            let h = heads as u64;
            let (rank, nope, rope, v) =
                (kv_rank as u64, nope_dim as u64, rope_dim as u64, v_dim as u64);
            let q = h * (nope + rope);
            let queries = q_rank.map_or(d * q, |r| d * r as u64 + r as u64 * q);
            queries + d * (rank + rope) + rank * h * (nope + v) + h * v * d
        }
    }
}

/// Width of scores plus width of weighted values, over all heads.
fn attention_width(attention: &Attention) -> u64 {
    match *attention {
        Attention::Gqa { heads, head_dim, .. } => 2 * (heads * head_dim) as u64,
        Attention::Mla { heads, nope_dim, rope_dim, v_dim, .. } => {
            (heads * (nope_dim + rope_dim + v_dim)) as u64
        }
    }
}

#[cfg(test)]
mod tests;
