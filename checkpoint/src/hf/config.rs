//! `config.json` to [`ModelSpec`]; the way back is in `config_out.rs`.
//!
//! Taken is what `transformers` 4 and 5 and DeepSeek's own releases write: RoPE as `rope_parameters` (newer) or as
//! `rope_theta` with `rope_scaling` (older), absent gate keys of DeepSeek-V3, unknown keys. Refused is
//! what would be computed differently.
//!
//! A configuration says nothing about training, so `bias_update_speed` and `balance_loss` are 0 after reading: the
//! recipe sets them.

pub use super::config_out::{Tokens, write, write_generation};
use super::keys::Keys;
use crate::error::{Error, Result};
use lampyris_plan::model_spec::{Attention, Gate, ModelSpec, Moe, Rope, Yarn};
use serde_json::Value;
use std::path::Path;

/// The supported classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `LlamaForCausalLM`: dense, grouped-query attention, half-split RoPE pairs.
    Llama,
    /// `DeepseekV3ForCausalLM`: MLA, experts behind a sigmoid gate with biases, interleaved RoPE pairs.
    DeepseekV3,
}

impl Class {
    const ALL: [Class; 2] = [Class::Llama, Class::DeepseekV3];

    /// Entry of `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Class::Llama => "LlamaForCausalLM",
            Class::DeepseekV3 => "DeepseekV3ForCausalLM",
        }
    }

    /// Value of `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Class::Llama => "llama",
            Class::DeepseekV3 => "deepseek_v3",
        }
    }

    /// The class that can express `spec`, or why none can.
    pub fn of(spec: &ModelSpec) -> Result<Class> {
        let no = |reason: &str| Err(Error::NotExportable { reason: reason.to_string() });
        match (&spec.attention, &spec.moe) {
            (Attention::Gqa { .. }, Some(_)) => no(
                "no Hugging Face class has experts behind plain attention; use MLA (DeepseekV3ForCausalLM) or a dense model",
            ),
            (Attention::Gqa { .. }, None) if spec.rope.interleaved => {
                no("LlamaForCausalLM has half-split RoPE pairs; set rope.interleaved = false")
            }
            (Attention::Gqa { .. }, None) if spec.mtp_layers > 0 => {
                no("LlamaForCausalLM has no MTP layers")
            }
            (Attention::Gqa { .. }, None) => Ok(Class::Llama),
            (Attention::Mla { .. }, _) if !spec.rope.interleaved => {
                no("DeepseekV3ForCausalLM has interleaved RoPE pairs; set rope.interleaved = true")
            }
            (Attention::Mla { .. }, Some(moe)) if moe.gate != Gate::SigmoidBias => no(
                "DeepseekV3ForCausalLM has a sigmoid gate with biases; other gates have no class here",
            ),
            (Attention::Mla { .. }, Some(moe)) if moe.shared_experts == 0 => {
                no("DeepseekV3ForCausalLM has at least one shared expert")
            }
            (Attention::Mla { .. }, None) if spec.mtp_layers > 0 => {
                no("the MTP layer of DeepseekV3ForCausalLM has experts; this model has none")
            }
            (Attention::Mla { .. }, _) => Ok(Class::DeepseekV3),
        }
    }
}

/// Parses the text of a `config.json`; `file` is named in errors.
pub fn parse(text: &str, file: &Path) -> Result<ModelSpec> {
    let value: Value = serde_json::from_str(text)
        .map_err(|e| Error::malformed(file, format!("not a JSON file: {e}")))?;
    let Value::Object(map) = &value else {
        return Err(Error::malformed(file, "not a JSON object"));
    };
    let keys = Keys::new(file, map);
    let class = class(&keys)?;
    refuse_what_differs(&keys)?;
    let hidden = keys.size("hidden_size")?;
    let max_positions = keys.size("max_position_embeddings")?;
    let attention = match class {
        Class::Llama => gqa(&keys, hidden)?,
        Class::DeepseekV3 => mla(&keys)?,
    };
    let (moe, mtp_layers) = match class {
        Class::Llama => (None, 0),
        Class::DeepseekV3 => (Some(experts(&keys)?), mtp_layers(&keys)?),
    };
    Ok(ModelSpec {
        vocab_size: keys.size("vocab_size")?,
        hidden,
        layers: keys.size("num_hidden_layers")?,
        ffn_hidden: keys.size("intermediate_size")?,
        norm_eps: keys.float("rms_norm_eps")?.unwrap_or(1e-6),
        init_std: keys.float("initializer_range")?.unwrap_or(0.02),
        tie_embeddings: keys.flag("tie_word_embeddings", false)?,
        max_positions,
        attention,
        rope: rope(&keys, class == Class::DeepseekV3, max_positions)?,
        moe,
        mtp_layers,
    })
}

/// The class named by `architectures` and `model_type`; where both stand they must agree.
fn class(keys: &Keys<'_>) -> Result<Class> {
    let known = "the supported classes are LlamaForCausalLM (llama) and DeepseekV3ForCausalLM (deepseek_v3)";
    let by_type = match keys.text("model_type")? {
        None => None,
        Some(name) => Some(
            Class::ALL
                .into_iter()
                .find(|class| class.model_type() == name)
                .ok_or_else(|| keys.refuse("model_type", known))?,
        ),
    };
    let by_name = match keys.get("architectures") {
        None => None,
        Some(list) => {
            let found = list.as_array().and_then(|list| match list.as_slice() {
                [Value::String(name)] => {
                    Class::ALL.into_iter().find(|class| class.architecture() == name)
                }
                _ => None,
            });
            Some(found.ok_or_else(|| keys.refuse("architectures", known))?)
        }
    };
    match (by_type, by_name) {
        (Some(a), Some(b)) if a != b => {
            Err(keys.refuse("architectures", "it names another class than model_type"))
        }
        (a, b) => keys.required("model_type", "\"llama\" or \"deepseek_v3\"", a.or(b)),
    }
}

/// Keys whose other values would change what the network computes.
fn refuse_what_differs(keys: &Keys<'_>) -> Result<()> {
    keys.only_flag("attention_bias", false, "linear layers have no biases here")?;
    keys.only_flag("mlp_bias", false, "linear layers have no biases here")?;
    keys.only_text("hidden_act", "silu")?;
    if keys.get("quantization_config").is_some() {
        return Err(keys.refuse("quantization_config", "convert the weights to bf16 or fp32 first"));
    }
    if let Some(key) = keys.names().find(|key| key.starts_with("index_") && keys.get(key).is_some())
    {
        return Err(keys.refuse(key, "sparse attention (DeepSeek-V3.2) is not computed"));
    }
    Ok(())
}

fn gqa(keys: &Keys<'_>, hidden: usize) -> Result<Attention> {
    let heads = keys.size("num_attention_heads")?;
    let kv_heads = keys.count("num_key_value_heads")?.unwrap_or(heads);
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(keys.refuse("num_key_value_heads", "it must divide num_attention_heads"));
    }
    let head_dim = match keys.count("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(keys.refuse("hidden_size", "num_attention_heads does not divide it")),
    };
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(keys.refuse("head_dim", "RoPE needs a positive even head size"));
    }
    Ok(Attention::Gqa { heads, kv_heads, head_dim })
}

/// `head_dim` is not read: in DeepSeek configurations it repeats `qk_rope_head_dim`.
fn mla(keys: &Keys<'_>) -> Result<Attention> {
    keys.only_flag("rope_interleave", true, "DeepSeek weights have interleaved RoPE pairs")?;
    let heads = keys.size("num_attention_heads")?;
    if keys.count("num_key_value_heads")?.is_some_and(|kv_heads| kv_heads != heads) {
        return Err(keys.refuse(
            "num_key_value_heads",
            "MLA has as many key/value heads as query heads (num_attention_heads)",
        ));
    }
    let rope_dim = keys.size("qk_rope_head_dim")?;
    if rope_dim % 2 != 0 {
        return Err(keys.refuse("qk_rope_head_dim", "RoPE needs an even size"));
    }
    let q_rank = keys.count("q_lora_rank")?;
    if q_rank == Some(0) {
        return Err(keys.refuse("q_lora_rank", "it must be positive, or null for none"));
    }
    Ok(Attention::Mla {
        heads,
        q_rank,
        kv_rank: keys.size("kv_lora_rank")?,
        nope_dim: keys.size("qk_nope_head_dim")?,
        rope_dim,
        v_dim: keys.size("v_head_dim")?,
    })
}

fn experts(keys: &Keys<'_>) -> Result<Moe> {
    keys.only_text("scoring_func", "sigmoid")?;
    keys.only_text("topk_method", "noaux_tc")?;
    keys.only_flag("norm_topk_prob", true, "routing weights are normalised here")?;
    if keys.count("moe_layer_freq")?.is_some_and(|every| every != 1) {
        return Err(keys.refuse("moe_layer_freq", "every layer after the dense ones has experts"));
    }
    let moe = Moe {
        experts: keys.size("n_routed_experts")?,
        experts_per_token: keys.size("num_experts_per_tok")?,
        shared_experts: keys.size("n_shared_experts")?,
        expert_hidden: keys.size("moe_intermediate_size")?,
        first_dense_layers: keys.required(
            "first_k_dense_replace",
            "the number of dense layers",
            keys.count("first_k_dense_replace")?,
        )?,
        gate: Gate::SigmoidBias,
        groups: keys.size("n_group")?,
        groups_per_token: keys.size("topk_group")?,
        routed_scale: keys.required(
            "routed_scaling_factor",
            "a number",
            keys.float("routed_scaling_factor")?,
        )?,
        bias_update_speed: 0.0,
        balance_loss: 0.0,
    };
    // A group's score is the sum of its two best experts.
    if !moe.experts.is_multiple_of(moe.groups) || moe.experts / moe.groups < 2 {
        let reason = format!("{} experts must form equal groups of two or more", moe.experts);
        return Err(keys.refuse("n_group", &reason));
    }
    if moe.groups_per_token > moe.groups {
        return Err(keys.refuse("topk_group", "it is larger than n_group"));
    }
    if moe.experts_per_token > moe.experts / moe.groups * moe.groups_per_token {
        return Err(keys.refuse("num_experts_per_tok", "the kept groups hold fewer experts"));
    }
    Ok(moe)
}

fn mtp_layers(keys: &Keys<'_>) -> Result<usize> {
    match keys.count("num_nextn_predict_layers")?.unwrap_or(0) {
        layers @ (0 | 1) => Ok(layers),
        _ => Err(keys.refuse("num_nextn_predict_layers", "at most one MTP layer is")),
    }
}

/// RoPE in its two layouts: one object `rope_parameters`, or `rope_theta` beside `rope_scaling`.
fn rope(keys: &Keys<'_>, interleaved: bool, max_positions: usize) -> Result<Rope> {
    let scaling = match keys.object("rope_parameters", "rope_parameters.")? {
        Some(object) => Some(object),
        None => keys.object("rope_scaling", "rope_scaling.")?,
    };
    let theta = match scaling.map(|s| s.float("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => keys.float("rope_theta")?.unwrap_or(10_000.0),
    };
    let plain = Rope { theta, interleaved, yarn: None };
    let Some(scaling) = scaling else { return Ok(plain) };
    if scaling.float("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(scaling.refuse("partial_rotary_factor", "RoPE turns whole heads here"));
    }
    let key = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    match scaling.text(key)?.unwrap_or("default") {
        "default" => Ok(plain),
        "yarn" => Ok(Rope { yarn: Some(yarn(&scaling, max_positions)?), ..plain }),
        _ => Err(scaling.refuse(key, "only \"default\" and \"yarn\" are")),
    }
}

fn yarn(keys: &Keys<'_>, max_positions: usize) -> Result<Yarn> {
    keys.only_flag("truncate", true, "the ramp's ends are rounded to whole dimensions")?;
    Ok(Yarn {
        factor: keys.required("factor", "a number", keys.float("factor")?)?,
        original_max_positions: keys
            .count("original_max_position_embeddings")?
            .unwrap_or(max_positions),
        beta_fast: keys.float("beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.float("beta_slow")?.unwrap_or(1.0),
        mscale: keys.float("mscale")?,
        mscale_all_dim: keys.float("mscale_all_dim")?,
        attention_factor: keys.float("attention_factor")?,
    })
}
