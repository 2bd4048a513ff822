//! Reading and writing `config.json`.

use super::{CASES, oracle};
use lampyris_checkpoint::hf::config::{self, Tokens};
use lampyris_plan::ModelSpec;
use lampyris_plan::model_spec::{Attention, Gate, Moe, Rope, Yarn};
use serde_json::{Value, json};
use std::path::Path;

fn config_of(case: &str) -> Value {
    let text = std::fs::read_to_string(oracle(case).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn parse(config: &Value) -> lampyris_checkpoint::Result<ModelSpec> {
    config::parse(&config.to_string(), Path::new("dir/config.json"))
}

/// `case` with some keys replaced; `null` removes one.
fn with(case: &str, changes: Value) -> Value {
    let mut config = config_of(case);
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    config
}

fn v3() -> ModelSpec {
    ModelSpec {
        vocab_size: 67,
        hidden: 32,
        layers: 3,
        ffn_hidden: 80,
        norm_eps: 1e-6,
        init_std: 0.05,
        tie_embeddings: false,
        max_positions: 512,
        attention: Attention::Mla {
            heads: 4,
            q_rank: Some(24),
            kv_rank: 16,
            nope_dim: 8,
            rope_dim: 8,
            v_dim: 12,
        },
        rope: Rope { theta: 10_000.0, interleaved: true, yarn: None },
        moe: Some(Moe {
            experts: 8,
            experts_per_token: 3,
            shared_experts: 1,
            expert_hidden: 16,
            first_dense_layers: 1,
            gate: Gate::SigmoidBias,
            groups: 4,
            groups_per_token: 2,
            routed_scale: 2.5,
            bias_update_speed: 0.0,
            balance_loss: 0.0,
        }),
        mtp_layers: 1,
    }
}

fn yarn() -> Yarn {
    Yarn {
        factor: 40.0,
        original_max_positions: 32,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: Some(1.0),
        mscale_all_dim: Some(1.0),
        attention_factor: None,
    }
}

#[test]
fn the_oracle_configurations_mean_what_their_tables_say() {
    assert_eq!(parse(&config_of("deepseek_v3")).unwrap(), v3());
    let mut no_rank = v3();
    let Attention::Mla { q_rank, .. } = &mut no_rank.attention else { unreachable!() };
    *q_rank = None;
    assert_eq!(parse(&config_of("deepseek_v3_noqlora")).unwrap(), no_rank);
    let mut with_yarn = v3();
    with_yarn.rope.yarn = Some(yarn());
    assert_eq!(parse(&config_of("deepseek_v3_yarn")).unwrap(), with_yarn);
    let llama = parse(&config_of("llama_gqa")).unwrap();
    assert_eq!(llama.attention, Attention::Gqa { heads: 4, kv_heads: 2, head_dim: 8 });
    assert_eq!((llama.ffn_hidden, llama.rope.interleaved, llama.moe), (88, false, None));
}

#[test]
fn rope_is_read_in_both_layouts() {
    let scaling = json!({ "type": "yarn", "factor": 40, "original_max_position_embeddings": 32,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1 });
    let older = json!({ "rope_parameters": null, "rope_theta": 10000, "rope_scaling": scaling });
    let expected = parse(&config_of("deepseek_v3_yarn")).unwrap();
    assert_eq!(parse(&with("deepseek_v3_yarn", older)).unwrap(), expected);

    let plain = json!({ "rope_parameters": null, "rope_theta": 500000.0 });
    let spec = parse(&with("llama_gqa", plain)).unwrap();
    assert_eq!(spec.rope, Rope { theta: 500_000.0, interleaved: false, yarn: None });
    let without_kind = json!({ "rope_parameters": { "rope_theta": 7, "rope_type": null } });
    assert_eq!(parse(&with("llama_gqa", without_kind)).unwrap().rope.theta, 7.0);
    let newer_kind_wins =
        json!({ "rope_parameters": { "rope_type": "default", "type": "linear" } });
    assert_eq!(parse(&with("llama_gqa", newer_kind_wins)).unwrap().rope.yarn, None);
}

#[test]
fn yarn_without_optional_keys_has_the_defaults_of_transformers() {
    let short = json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4 } });
    let expected = Yarn {
        factor: 4.0,
        original_max_positions: 512,
        mscale: None,
        mscale_all_dim: None,
        ..yarn()
    };
    assert_eq!(parse(&with("deepseek_v3", short)).unwrap().rope.yarn, Some(expected));
}

#[test]
fn keys_that_may_be_absent_or_explicit() {
    let explicit = json!({ "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
        "attention_bias": false, "rope_interleave": true, "norm_topk_prob": true });
    assert_eq!(parse(&with("deepseek_v3", explicit)).unwrap(), v3());
    let absent = json!({ "scoring_func": null, "topk_method": null, "moe_layer_freq": null,
        "rope_interleave": null, "norm_topk_prob": null, "attention_bias": null, "hidden_act": null,
        "num_key_value_heads": null, "rms_norm_eps": null, "rope_parameters": null });
    assert_eq!(parse(&with("deepseek_v3", absent)).unwrap(), v3());
    let one_name = json!({ "architectures": null });
    assert_eq!(parse(&with("deepseek_v3", one_name)).unwrap(), v3());
    let other_name = json!({ "model_type": null });
    assert_eq!(parse(&with("deepseek_v3", other_name)).unwrap(), v3());
    let tied = json!({ "tie_word_embeddings": true });
    assert!(parse(&with("llama_gqa", tied)).unwrap().tie_embeddings);
    let no_mtp = json!({ "num_nextn_predict_layers": null });
    assert_eq!(parse(&with("deepseek_v3", no_mtp)).unwrap().mtp_layers, 0);
    let whole_floats = json!({ "hidden_size": 32.0, "routed_scaling_factor": 2 });
    assert_eq!(parse(&with("deepseek_v3", whole_floats)).unwrap().moe.unwrap().routed_scale, 2.0);
}

#[test]
fn head_dim_counts_for_llama_only() {
    let odd = json!({ "head_dim": 999 });
    assert_eq!(parse(&with("deepseek_v3", odd)).unwrap(), v3());
    let gqa = |changes| match parse(&with("llama_gqa", changes)).unwrap().attention {
        Attention::Gqa { heads, kv_heads, head_dim } => (heads, kv_heads, head_dim),
        Attention::Mla { .. } => unreachable!(),
    };
    assert_eq!(gqa(json!({ "head_dim": 16 })), (4, 2, 16));
    assert_eq!(gqa(json!({ "head_dim": null })), (4, 2, 8));
    assert_eq!(gqa(json!({ "num_key_value_heads": null })), (4, 4, 8));
}

#[test]
fn what_would_be_computed_differently_is_refused_by_key_and_value() {
    let rope = |kind: Value| json!({ "rope_parameters": kind });
    let older = |kind: &str| json!({ "rope_parameters": null, "rope_scaling": { "type": kind } });
    let cases = [
        ("llama_gqa", json!({ "attention_bias": true }), "attention_bias", "true"),
        ("deepseek_v3", json!({ "attention_bias": true }), "attention_bias", "true"),
        ("llama_gqa", json!({ "mlp_bias": true }), "mlp_bias", "true"),
        ("llama_gqa", json!({ "hidden_act": "gelu" }), "hidden_act", "\"gelu\""),
        (
            "llama_gqa",
            rope(json!({ "rope_type": "llama3" })),
            "rope_parameters.rope_type",
            "llama3",
        ),
        ("deepseek_v3", rope(json!({ "type": "linear" })), "rope_parameters.type", "\"linear\""),
        ("deepseek_v3", older("dynamic"), "rope_scaling.type", "\"dynamic\""),
        ("deepseek_v3", json!({ "rope_interleave": false }), "rope_interleave", "false"),
        ("deepseek_v3", json!({ "moe_layer_freq": 2 }), "moe_layer_freq", "2"),
        ("deepseek_v3", json!({ "scoring_func": "softmax" }), "scoring_func", "\"softmax\""),
        ("deepseek_v3", json!({ "topk_method": "greedy" }), "topk_method", "\"greedy\""),
        ("deepseek_v3", json!({ "norm_topk_prob": false }), "norm_topk_prob", "false"),
        ("deepseek_v3", json!({ "num_nextn_predict_layers": 2 }), "num_nextn_predict_layers", "2"),
        ("deepseek_v3", json!({ "quantization_config": {} }), "quantization_config", "{}"),
        ("deepseek_v3", json!({ "index_topk": 12 }), "index_topk", "12"),
        ("deepseek_v3", json!({ "n_group": 3 }), "n_group", "3"),
        ("deepseek_v3", json!({ "n_group": 8 }), "n_group", "8"),
        ("deepseek_v3", json!({ "num_experts_per_tok": 5 }), "num_experts_per_tok", "5"),
        ("deepseek_v3", json!({ "q_lora_rank": 0 }), "q_lora_rank", "0"),
        ("deepseek_v3", json!({ "hidden_size": "32" }), "hidden_size", "\"32\""),
        ("deepseek_v3", json!({ "hidden_size": 32.5 }), "hidden_size", "32.5"),
        ("deepseek_v3", json!({ "model_type": "deepseek_v2" }), "model_type", "\"deepseek_v2\""),
        ("llama_gqa", json!({ "architectures": ["GPT2LMHeadModel"] }), "architectures", "GPT2"),
        ("llama_gqa", json!({ "model_type": "deepseek_v3" }), "architectures", "Llama"),
    ];
    for (case, changes, key, value) in cases {
        let message = parse(&with(case, changes.clone())).expect_err(&changes.to_string());
        let message = message.to_string();
        let start = format!("dir/config.json: `{key}` = ");
        assert!(message.starts_with(&start), "{changes}: {message}");
        assert!(message.contains(value), "{changes}: {message}");
    }
}

#[test]
fn other_deepseek_generations_are_refused() {
    for name in ["deepseek_v2", "deepseek_v32_dense", "deepseek_v32_sparse"] {
        let path = format!("{}/testdata/refused/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let message = config::parse(&text, Path::new("config.json")).unwrap_err().to_string();
        let kind = name.trim_end_matches("_dense").trim_end_matches("_sparse");
        assert!(message.contains(&format!("`model_type` = \"{kind}\"")), "{message}");
    }
}

#[test]
fn missing_sizes_are_named() {
    for key in ["vocab_size", "n_routed_experts", "routed_scaling_factor", "kv_lora_rank"] {
        let mut config = config_of("deepseek_v3");
        config[key] = Value::Null;
        let message = parse(&config).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}` is missing")), "{message}");
    }
}

#[test]
fn what_is_written_reads_back() {
    let mut specs: Vec<ModelSpec> = CASES.iter().map(|c| parse(&config_of(c)).unwrap()).collect();
    let mut tied = specs[0].clone();
    tied.tie_embeddings = true;
    specs.push(tied);
    for spec in specs {
        let written = config::write(&spec, "float32", &Tokens::default()).unwrap();
        assert_eq!(parse(&written).unwrap(), spec);
    }
}

#[test]
fn all_keys_that_serving_engines_look_for_are_written() {
    let tokens = Tokens { bos: None, eos: Some(5) };
    let config = config::write(&v3(), "bfloat16", &tokens).unwrap();
    let expected = json!({ "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "num_key_value_heads": 4, "moe_layer_freq": 1, "norm_topk_prob": true, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "hidden_act": "silu", "tie_word_embeddings": false,
        "attention_bias": false, "rope_theta": 10000.0, "rope_scaling": null, "torch_dtype": "bfloat16",
        "num_nextn_predict_layers": 1, "bos_token_id": null, "eos_token_id": 5 });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(config.get(key), Some(value), "{key}");
    }
}

#[test]
fn models_without_a_class_are_not_written() {
    let reason = |change: fn(&mut ModelSpec)| {
        let mut spec = v3();
        change(&mut spec);
        config::write(&spec, "float32", &Tokens::default()).unwrap_err().to_string()
    };
    let softmax = reason(|s| s.moe.as_mut().unwrap().gate = Gate::SoftmaxGreedy);
    assert!(softmax.contains("sigmoid gate"), "{softmax}");
    let split = reason(|s| s.rope.interleaved = false);
    assert!(split.contains("interleaved"), "{split}");
    let plain = reason(|s| s.attention = Attention::Gqa { heads: 4, kv_heads: 4, head_dim: 8 });
    assert!(plain.contains("experts behind plain attention"), "{plain}");
}

#[test]
fn a_dense_mla_model_is_written_with_every_layer_dense() {
    let spec = ModelSpec { moe: None, mtp_layers: 0, ..v3() };
    let written = config::write(&spec, "float32", &Tokens::default()).unwrap();
    let read = parse(&written).unwrap();
    assert_eq!(read.moe.as_ref().unwrap().first_dense_layers, spec.layers);
    let names = |spec: &ModelSpec| {
        lampyris_plan::Inventory::new(spec)
            .parameters
            .into_iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&read), names(&spec));
}
