//! A small valid plan for unit tests: DeepSeek-V3 in miniature, 8 sequences of 64 tokens a step.

use crate::model_spec::{Attention, Gate, ModelSpec, Moe, Rope};
use crate::train_plan::*;

pub(crate) fn plan() -> TrainPlan {
    TrainPlan {
        schema: SCHEMA,
        name: "fixture".to_string(),
        seed: 1,
        compute: Compute::Bf16,
        device: Device::Cpu,
        model: model(),
        data: DataPlan {
            sources: vec![Source::Text { path: "/text/*.txt".to_string() }],
            obtain: String::new(),
            max_bytes: None,
            validation: ValidationSplit::Tail { fraction: 0.1 },
            cache_dir: "/cache".into(),
        },
        tokenizer: TokenizerPlan::Byte,
        batch: BatchPlan {
            sequence_length: 64,
            micro_batch: 2,
            global_batch: 8,
            ramp_start: 8,
            ramp_tokens: 0,
            leaves: 4,
            reduction: Reduction::Canonical,
        },
        optimizer: optimizer(),
        schedule: SchedulePlan {
            total_tokens: 51_200,
            peak_lr: 1e-3,
            warmup_tokens: 5_120,
            decay: Decay::Cosine { final_ratio: 0.1 },
            mtp_loss_weight: 0.3,
            mtp_loss_steps: Vec::new(),
            bias_update_until_tokens: None,
        },
        parallel: ParallelPlan {
            data: 1,
            expert: 1,
            zero: 0,
            threads_per_rank: 0,
            bucket_bytes: 1 << 20,
            overlap: false,
            operation_timeout_s: 600,
            peer_timeout_ms: 5_000,
        },
        checkpoint: CheckpointPlan {
            every_steps: 0,
            every_s: 300,
            keep: 2,
            keep_every_steps: 0,
            keep_best: false,
            replica_every_steps: 0,
            while_saving: WhileSaving::ByPeriod,
            at_end: true,
        },
        eval: EvalPlan { every_steps: 0, tokens: 0, final_tokens: 0, compare_compressors: false },
        output: OutputPlan {
            runs_dir: "/runs".into(),
            log_every_steps: 1,
            tensorboard: true,
            sample_prompt: String::new(),
            sample_tokens: 16,
        },
    }
}

fn optimizer() -> OptimizerPlan {
    OptimizerPlan {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip_norm: 1.0,
        nan_guard: true,
        muon: None,
    }
}

fn model() -> ModelSpec {
    ModelSpec {
        vocab_size: 257,
        hidden: 64,
        layers: 3,
        ffn_hidden: 160,
        norm_eps: 1e-6,
        init_std: 0.02,
        tie_embeddings: false,
        max_positions: 64,
        attention: Attention::Mla {
            heads: 4,
            q_rank: Some(24),
            kv_rank: 32,
            nope_dim: 16,
            rope_dim: 8,
            v_dim: 16,
        },
        rope: Rope { theta: 10_000.0, interleaved: true, yarn: None },
        moe: Some(Moe {
            experts: 8,
            experts_per_token: 2,
            shared_experts: 1,
            expert_hidden: 32,
            first_dense_layers: 1,
            gate: Gate::SigmoidBias,
            groups: 4,
            groups_per_token: 2,
            routed_scale: 2.5,
            bias_update_speed: 0.001,
            balance_loss: 1e-4,
        }),
        mtp_layers: 1,
    }
}
