//! The sizes of a network, in the papers' words. One struct describes every architecture: a decoder is an attention
//! kind plus a feed-forward kind per layer (`docs/architecture.md`, "Models").

use serde::{Deserialize, Serialize};

/// A decoder-only transformer: `layers` blocks of attention and feed-forward, pre-norm RMSNorm, SwiGLU, no biases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Vocabulary size V.
    pub vocab_size: usize,
    /// Hidden size d.
    pub hidden: usize,
    /// Number of decoder layers L, without MTP layers.
    pub layers: usize,
    /// Dense feed-forward width f.
    pub ffn_hidden: usize,
    /// Epsilon of the block norms and the final norm (the MLA low-rank norms always use 1e-6, as Hugging Face does).
    pub norm_eps: f64,
    /// Standard deviation of every initial weight matrix.
    pub init_std: f64,
    /// The output head is the embedding matrix.
    pub tie_embeddings: bool,
    /// Longest sequence the model is meant for (written to config.json; RoPE itself has no limit).
    pub max_positions: usize,
    /// Attention kind and sizes.
    pub attention: Attention,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Mixture of experts; none for a dense model.
    pub moe: Option<Moe>,
    /// Multi-token prediction depth D (DeepSeek-V3, section 2.2); 0 or 1.
    pub mtp_layers: usize,
}

/// Attention kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attention {
    /// Grouped-query attention (LLaMA); `kv_heads == heads` is plain multi-head attention.
    Gqa {
        /// Query heads.
        heads: usize,
        /// Key/value heads; divides `heads`.
        kv_heads: usize,
        /// Size of one head.
        head_dim: usize,
    },
    /// Multi-head latent attention (DeepSeek-V2, section 2.1).
    Mla {
        /// Heads h.
        heads: usize,
        /// Low rank of queries r_q; none projects queries directly.
        q_rank: Option<usize>,
        /// Low rank of keys and values r_kv.
        kv_rank: usize,
        /// Part of a query/key head without position, d_n.
        nope_dim: usize,
        /// Part of a query/key head with RoPE, d_r.
        rope_dim: usize,
        /// Size of a value head, d_v.
        v_dim: usize,
    },
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base theta.
    pub theta: f64,
    /// Pairs are (0,1), (2,3), ... (DeepSeek) instead of (i, i + dim/2) (LLaMA).
    pub interleaved: bool,
    /// YaRN context extension.
    pub yarn: Option<Yarn>,
}

/// YaRN (2309.00071) with the keys of Hugging Face configurations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Yarn {
    /// Extension factor s.
    pub factor: f64,
    /// Context length before the extension.
    pub original_max_positions: usize,
    /// beta (beta_fast), 32 by default.
    pub beta_fast: f64,
    /// alpha (beta_slow), 1 by default.
    pub beta_slow: f64,
    /// Scale of cos and sin relative to `mscale_all_dim`.
    pub mscale: Option<f64>,
    /// Scale of the softmax.
    pub mscale_all_dim: Option<f64>,
    /// Overrides the factor on cos and sin.
    pub attention_factor: Option<f64>,
}

/// Mixture-of-experts layers (DeepSeekMoE, 2401.06066; gate of DeepSeek-V3, section 2.1.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moe {
    /// Routed experts E.
    pub experts: usize,
    /// Routed experts per token K.
    pub experts_per_token: usize,
    /// Shared experts E_s (one feed-forward of width `E_s * expert_hidden`).
    pub shared_experts: usize,
    /// Width m of one expert.
    pub expert_hidden: usize,
    /// The first layers that stay dense.
    pub first_dense_layers: usize,
    /// Gate.
    pub gate: Gate,
    /// Routing groups G.
    pub groups: usize,
    /// Groups a token may use, M.
    pub groups_per_token: usize,
    /// Factor on the routing weights.
    pub routed_scale: f64,
    /// Speed gamma of the bias update; 0 leaves the biases fixed.
    pub bias_update_speed: f64,
    /// Weight alpha of the sequence-wise balance loss; 0 turns it off.
    pub balance_loss: f64,
}

/// How a gate turns logits into scores and selects experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// DeepSeek-V3: sigmoid scores, selection on score + bias, group score = sum of the top 2, weights normalised.
    SigmoidBias,
    /// DeepSeekMoE and V2-Lite: softmax scores, greedy top-K, weights not normalised.
    SoftmaxGreedy,
    /// DeepSeek-V2: softmax scores, group score = maximum, then top-K inside the kept groups.
    SoftmaxGroupLimited,
}

impl ModelSpec {
    /// Whether layer `layer` (0-based; MTP layers are `layers..layers + mtp_layers`) has routed experts.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| layer >= moe.first_dense_layers)
    }

    /// Width of the shared expert, 0 if there is none.
    pub fn shared_hidden(&self) -> usize {
        self.moe.as_ref().map_or(0, |moe| moe.shared_experts * moe.expert_hidden)
    }

    /// Decoder layers including the MTP layers.
    pub fn all_layers(&self) -> usize {
        self.layers + self.mtp_layers
    }
}
