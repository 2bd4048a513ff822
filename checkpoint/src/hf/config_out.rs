//! [`ModelSpec`] to `config.json`. The older RoPE keys are written (`rope_theta`, `rope_scaling`), which every reader
//! knows, and all gate keys: vLLM and SGLang create the selection bias only where `topk_method` is `noaux_tc`.

use super::config::Class;
use crate::error::Result;
use lampyris_plan::model_spec::{Attention, Gate, ModelSpec, Moe, Yarn};
use serde_json::{Value, json};

/// What a configuration says beside the sizes.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    /// Token that begins a document.
    pub bos: Option<u32>,
    /// Token that ends a document.
    pub eos: Option<u32>,
}

/// The `config.json` of `spec`, whose tensors are stored as `torch_dtype` (`float32`, `bfloat16`). MTP layers of `spec`
/// are declared, so pass a spec without them when their tensors are not written.
///
/// # Errors
/// [`Error::NotExportable`] where no supported class computes this model.
pub fn write(spec: &ModelSpec, torch_dtype: &str, tokens: &Tokens) -> Result<Value> {
    let class = Class::of(spec)?;
    let mut config = json!({
        "architectures": [class.architecture()],
        "model_type": class.model_type(),
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn_hidden,
        "num_hidden_layers": spec.layers,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_positions,
        "initializer_range": spec.init_std,
        "rms_norm_eps": spec.norm_eps,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
        "tie_word_embeddings": spec.tie_embeddings,
        "attention_bias": false,
        "rope_theta": spec.rope.theta,
        "rope_scaling": spec.rope.yarn.as_ref().map(write_yarn),
        "torch_dtype": torch_dtype,
    });
    let extra = match &spec.attention {
        Attention::Gqa { heads, kv_heads, head_dim } => json!({
            "mlp_bias": false,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
        }),
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => json!({
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "q_lora_rank": q_rank,
            "kv_lora_rank": kv_rank,
            "qk_nope_head_dim": nope_dim,
            "qk_rope_head_dim": rope_dim,
            "v_head_dim": v_dim,
        }),
    };
    append(&mut config, extra);
    if class == Class::DeepseekV3 {
        append(&mut config, write_experts(spec));
    }
    Ok(config)
}

/// The `generation_config.json` of a model with these `tokens`, none without an end of document. An empty prompt begins
/// as training text does, behind the end of a document, and rows that have ended are filled up with it.
pub fn write_generation(tokens: &Tokens) -> Option<Value> {
    let eos = tokens.eos?;
    let bos = tokens.bos.unwrap_or(eos);
    Some(json!({ "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos }))
}

/// The keys of the expert layers; a model without experts declares every layer dense, and its expert sizes are those of
/// the smallest legal gate, which no layer has.
fn write_experts(spec: &ModelSpec) -> Value {
    let unused = Moe {
        experts: 2,
        experts_per_token: 1,
        shared_experts: 1,
        expert_hidden: spec.ffn_hidden,
        first_dense_layers: spec.layers,
        gate: Gate::SigmoidBias,
        groups: 1,
        groups_per_token: 1,
        routed_scale: 1.0,
        bias_update_speed: 0.0,
        balance_loss: 0.0,
    };
    let moe = spec.moe.as_ref().unwrap_or(&unused);
    json!({
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.expert_hidden,
        "first_k_dense_replace": moe.first_dense_layers,
        "moe_layer_freq": 1,
        "n_group": moe.groups,
        "topk_group": moe.groups_per_token,
        "routed_scaling_factor": moe.routed_scale,
        "norm_topk_prob": true,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": spec.mtp_layers,
    })
}

fn write_yarn(yarn: &Yarn) -> Value {
    let mut object = json!({
        "type": "yarn",
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_max_positions,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
    });
    let optional = [
        ("mscale", yarn.mscale),
        ("mscale_all_dim", yarn.mscale_all_dim),
        ("attention_factor", yarn.attention_factor),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            object[key] = json!(value);
        }
    }
    object
}

fn append(object: &mut Value, extra: Value) {
    match (object, extra) {
        (Value::Object(map), Value::Object(extra)) => map.extend(extra),
        _ => unreachable!("both are written as objects above"),
    }
}
