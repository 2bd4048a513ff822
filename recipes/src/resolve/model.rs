//! The `[model]` section: what an architecture fixes, what it needs and what it has no use for.

use super::Only;
use crate::error::Problems;
use crate::recipe_file::{Architecture, Model, RecipeFile};
use lampyris_plan::ModelSpec;
use lampyris_plan::model_spec::{Attention, Gate, Moe, Rope, Yarn};
use lampyris_plan::train_plan::TokenizerPlan;

impl Architecture {
    fn named(self) -> &'static str {
        match self {
            Architecture::Llama => "architecture = \"llama\"",
            Architecture::DeepseekMoe => "architecture = \"deepseek_moe\"",
            Architecture::DeepseekV2 => "architecture = \"deepseek_v2\"",
            Architecture::DeepseekV3 => "architecture = \"deepseek_v3\"",
        }
    }

    /// Multi-head latent attention, with DeepSeek's interleaved RoPE pairs.
    fn latent(self) -> bool {
        matches!(self, Architecture::DeepseekV2 | Architecture::DeepseekV3)
    }
}

/// The sizes of the network of `recipe`.
pub(super) fn spec(
    recipe: &RecipeFile,
    tokenizer: Option<&TokenizerPlan>,
    problems: &mut Problems,
) -> Option<ModelSpec> {
    let model = &recipe.model;
    let mut only = Only { section: "model", problems };
    let attention = attention(model, &mut only);
    let moe = experts(model, &mut only);
    let all_moe = model.experts.is_some() && model.first_dense_layers == Some(0);
    let ffn_hidden = match model.ffn_hidden {
        None if all_moe => Some(0),
        given => only.needs("a dense layer", "ffn_hidden", given),
    };
    let vocab_size = match (model.vocab_size, tokenizer) {
        (None, Some(TokenizerPlan::Byte)) => Some(257),
        (None, Some(TokenizerPlan::Bpe { vocab_size, .. })) => Some(*vocab_size),
        (None, None) => None,
        (given, _) => {
            only.needs("this tokenizer, whose size is not known here,", "vocab_size", given)
        }
    };
    Some(ModelSpec {
        vocab_size: vocab_size?,
        hidden: model.hidden,
        layers: model.layers,
        ffn_hidden: ffn_hidden?,
        norm_eps: model.norm_eps,
        init_std: model.init_std,
        tie_embeddings: model.tie_embeddings,
        max_positions: model.max_positions.unwrap_or(recipe.batch.sequence_length),
        attention: attention?,
        rope: Rope {
            theta: model.rope_theta,
            interleaved: model.architecture.latent(),
            yarn: model.yarn.as_ref().map(|yarn| Yarn {
                factor: yarn.factor,
                original_max_positions: yarn.original_max_positions,
                beta_fast: yarn.beta_fast,
                beta_slow: yarn.beta_slow,
                mscale: yarn.mscale,
                mscale_all_dim: yarn.mscale_all_dim,
                attention_factor: yarn.attention_factor,
            }),
        },
        moe: moe?,
        mtp_layers: model.mtp_layers,
    })
}

fn attention(model: &Model, only: &mut Only<'_>) -> Option<Attention> {
    let named = model.architecture.named();
    let gqa = [("kv_heads", model.kv_heads.is_some()), ("head_dim", model.head_dim.is_some())];
    let mla = [
        ("q_rank", model.q_rank),
        ("kv_rank", model.kv_rank),
        ("nope_dim", model.nope_dim),
        ("rope_dim", model.rope_dim),
        ("v_dim", model.v_dim),
    ];
    if model.architecture.latent() {
        only.not(named, &gqa);
        let [q_rank, kv_rank, nope_dim, rope_dim, v_dim] =
            mla.map(|(key, value)| only.needs(named, key, value));
        let q_rank = q_rank.map(|rank| (rank > 0).then_some(rank))?;
        return Some(Attention::Mla {
            heads: model.heads,
            q_rank,
            kv_rank: kv_rank?,
            nope_dim: nope_dim?,
            rope_dim: rope_dim?,
            v_dim: v_dim?,
        });
    }
    only.not(named, &mla.map(|(key, value)| (key, value.is_some())));
    let head_dim = match model.head_dim {
        Some(size) => size,
        None if model.heads > 0 && model.hidden.is_multiple_of(model.heads) => {
            model.hidden / model.heads
        }
        None => {
            let (hidden, heads) = (model.hidden, model.heads);
            let message = format!("model.heads = {heads} does not divide model.hidden = {hidden}");
            only.problems.at_key(
                "model.heads",
                message,
                "change one of them, or give model.head_dim",
            );
            return None;
        }
    };
    let kv_heads = model.kv_heads.unwrap_or(model.heads);
    Some(Attention::Gqa { heads: model.heads, kv_heads, head_dim })
}

/// The outer `None` is a problem, the inner one a dense model.
fn experts(model: &Model, only: &mut Only<'_>) -> Option<Option<Moe>> {
    let needed = [
        ("experts_per_token", model.experts_per_token),
        ("shared_experts", model.shared_experts),
        ("expert_hidden", model.expert_hidden),
        ("first_dense_layers", model.first_dense_layers),
    ];
    let Some(experts) = model.experts else {
        let optional = [
            ("gate", model.gate.is_some()),
            ("groups", model.groups.is_some()),
            ("groups_per_token", model.groups_per_token.is_some()),
            ("routed_scale", model.routed_scale.is_some()),
            ("bias_update_speed", model.bias_update_speed.is_some()),
            ("balance_loss", model.balance_loss.is_some()),
        ];
        only.not("no model.experts", &needed.map(|(key, value)| (key, value.is_some())));
        only.not("no model.experts", &optional);
        return if model.architecture == Architecture::DeepseekMoe {
            only.needs(model.architecture.named(), "experts", None)
        } else {
            Some(None)
        };
    };
    if model.architecture == Architecture::Llama {
        only.not(model.architecture.named(), &[("experts", true)]);
        return None;
    }
    let [per_token, shared_experts, expert_hidden, first_dense_layers] =
        needed.map(|(key, value)| only.needs("a model with experts", key, value));
    let groups = model.groups.unwrap_or(1);
    let gate = model.gate.unwrap_or(match model.architecture {
        Architecture::DeepseekV3 => Gate::SigmoidBias,
        Architecture::DeepseekV2 if groups > 1 => Gate::SoftmaxGroupLimited,
        _ => Gate::SoftmaxGreedy,
    });
    let bias_speed = if gate == Gate::SigmoidBias { 0.001 } else { 0.0 };
    Some(Some(Moe {
        experts,
        experts_per_token: per_token?,
        shared_experts: shared_experts?,
        expert_hidden: expert_hidden?,
        first_dense_layers: first_dense_layers?,
        gate,
        groups,
        groups_per_token: model.groups_per_token.unwrap_or(groups),
        routed_scale: model.routed_scale.unwrap_or(1.0),
        bias_update_speed: model.bias_update_speed.unwrap_or(bias_speed),
        balance_loss: model.balance_loss.unwrap_or(1e-4),
    }))
}
