use super::*;
use crate::fixture;
use crate::model_spec::{Attention, Gate, Moe};
use crate::train_plan::*;

/// Keys of the rules that the fixture breaks after `change`.
fn broken(change: impl FnOnce(&mut TrainPlan)) -> Vec<String> {
    let mut plan = fixture::plan();
    change(&mut plan);
    match validate(&plan) {
        Ok(()) => Vec::new(),
        Err(broken) => broken.iter().map(|rule| rule.key().to_string()).collect(),
    }
}

fn constant_batch(plan: &mut TrainPlan, sequences: usize) {
    plan.batch.global_batch = sequences;
    plan.batch.ramp_start = sequences;
}

fn moe(plan: &mut TrainPlan) -> &mut Moe {
    plan.model.moe.as_mut().unwrap()
}

#[test]
fn the_fixture_is_valid_and_trainable() {
    assert_eq!(broken(|_| {}), [""; 0]);
    assert_eq!(check_trainable(&fixture::plan()), Ok(()));
}

/// What breaks a plan.
type Change = fn(&mut TrainPlan);

/// A key, and a change that breaks the rule of that key alone.
const CHANGES: &[(&str, Change)] = &[
    ("schema", |p| p.schema = 99),
    ("name", |p| p.name = "a/b".to_string()),
    ("name", |p| p.name = String::new()),
    ("model.vocab_size", |p| p.model.vocab_size = 0),
    ("model.vocab_size", |p| p.model.vocab_size = 256),
    ("model.hidden", |p| p.model.hidden = 1 << 40),
    ("model.layers", |p| p.model.layers = 100_000),
    ("model.mtp_layers", |p| p.model.mtp_layers = 9),
    ("model.norm_eps", |p| p.model.norm_eps = 0.0),
    ("model.init_std", |p| p.model.init_std = f64::NAN),
    ("model.rope_theta", |p| p.model.rope.theta = 1.0),
    ("model.ffn_hidden", |p| p.model.ffn_hidden = 0),
    ("model.experts", |p| moe(p).experts = 1_000_000),
    ("model.experts", |p| {
        p.model.layers = 1_000;
        moe(p).experts = 256;
    }),
    ("model.hidden", |p| {
        p.model.hidden = 1 << 24;
        p.model.vocab_size = 1 << 24;
        p.model.ffn_hidden = 1 << 24;
    }),
    ("batch.sequence_length", |p| {
        p.batch.sequence_length = 1 << 24;
        p.model.attention = Attention::Gqa { heads: 1 << 10, kv_heads: 1, head_dim: 1 << 16 };
    }),
    ("model.experts_per_token", |p| moe(p).experts_per_token = 0),
    ("model.experts_per_token", |p| moe(p).experts_per_token = 5),
    ("model.shared_experts", |p| moe(p).shared_experts = 65),
    ("model.groups", |p| moe(p).groups = 3),
    ("model.groups", |p| moe(p).groups = 8),
    ("model.groups_per_token", |p| moe(p).groups_per_token = 5),
    ("model.first_dense_layers", |p| moe(p).first_dense_layers = 4),
    ("model.routed_scale", |p| moe(p).routed_scale = 0.0),
    ("model.bias_update_speed", |p| moe(p).bias_update_speed = -1.0),
    ("model.balance_loss", |p| moe(p).balance_loss = f64::INFINITY),
    ("data.validation_fraction", |p| {
        p.data.validation = ValidationSplit::Hash { fraction: 1.0 };
    }),
    ("data.max_bytes", |p| p.data.max_bytes = Some(0)),
    ("tokenizer.train_bytes", |p| {
        p.tokenizer = TokenizerPlan::Bpe { vocab_size: 257, train_bytes: 0 };
    }),
    ("batch.sequence_length", |p| p.batch.sequence_length = 2),
    ("batch.micro_batch", |p| p.batch.micro_batch = 0),
    ("batch.global_batch", |p| constant_batch(p, 9)),
    ("batch.ramp_start", |p| p.batch.ramp_start = 0),
    ("batch.leaves", |p| p.batch.leaves = 0),
    ("optimizer.beta1", |p| p.optimizer.beta1 = 1.0),
    ("optimizer.beta2", |p| p.optimizer.beta2 = -0.1),
    ("optimizer.eps", |p| p.optimizer.eps = 0.0),
    ("optimizer.weight_decay", |p| p.optimizer.weight_decay = -1.0),
    ("optimizer.clip_norm", |p| p.optimizer.clip_norm = f64::NAN),
    ("schedule.total_tokens", |p| p.schedule.total_tokens = u64::MAX),
    ("schedule.peak_lr", |p| p.schedule.peak_lr = 0.0),
    ("schedule.warmup_tokens", |p| p.schedule.warmup_tokens = 51_201),
    ("schedule.final_ratio", |p| p.schedule.decay = Decay::Cosine { final_ratio: 1.5 }),
    ("schedule.mtp_loss_weight", |p| p.schedule.mtp_loss_weight = -0.1),
    ("parallel.data", |p| p.parallel.data = 3),
    ("parallel.expert", |p| p.parallel.expert = 2),
    ("parallel.threads_per_rank", |p| p.parallel.threads_per_rank = 1_000_000),
    ("parallel.operation_timeout_s", |p| p.parallel.operation_timeout_s = u64::MAX),
    ("parallel.peer_timeout_ms", |p| p.parallel.peer_timeout_ms = u64::MAX),
    ("output.sample_tokens", |p| p.output.sample_tokens = usize::MAX),
    ("batch.global_batch", |p| {
        p.batch.micro_batch = 1;
        constant_batch(p, 1 << 24);
    }),
    ("batch.micro_batch", |p| {
        p.batch.sequence_length = 1 << 20;
        p.batch.micro_batch = 1 << 24;
        constant_batch(p, 1 << 24);
        p.batch.leaves = 1;
    }),
    ("parallel.zero", |p| p.parallel.zero = 2),
    ("parallel.bucket_bytes", |p| p.parallel.bucket_bytes = 0),
    ("checkpoint.keep", |p| p.checkpoint.keep = 0),
    ("output.log_every_steps", |p| p.output.log_every_steps = 0),
];

#[test]
fn a_rule_per_key() {
    for (i, (key, change)) in CHANGES.iter().enumerate() {
        assert_eq!(broken(change), [*key], "case {i}");
    }
}

#[test]
fn momentum_decays() {
    let muon = |momentum| broken(|p| p.optimizer.muon = Some(MuonPlan { momentum }));
    assert_eq!(muon(0.0), [""; 0]);
    assert_eq!(muon(1.0), ["optimizer.momentum"]);
}

#[test]
fn attention_rules() {
    let gqa = |heads, kv_heads, head_dim| {
        broken(|p| p.model.attention = Attention::Gqa { heads, kv_heads, head_dim })
    };
    assert_eq!(gqa(4, 2, 16), [""; 0]);
    assert_eq!(gqa(4, 3, 16), ["model.kv_heads"]);
    assert_eq!(gqa(4, 4, 15), ["model.head_dim"]);
    assert_eq!(gqa(0, 1, 16), ["model.heads"]);
    let mla = |q_rank, rope_dim| {
        let (heads, kv_rank, nope_dim, v_dim) = (4, 32, 16, 16);
        let attention = Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim };
        broken(|p| p.model.attention = attention)
    };
    assert_eq!(mla(None, 8), [""; 0]);
    assert_eq!(mla(None, 7), ["model.rope_dim"]);
    assert_eq!(mla(Some(0), 8), ["model.q_rank"]);
}

#[test]
fn softmax_gates_have_no_biases() {
    let keys = broken(|p| moe(p).gate = Gate::SoftmaxGroupLimited);
    assert_eq!(keys, ["model.bias_update_speed"]);
    let keys = broken(|p| {
        moe(p).gate = Gate::SoftmaxGreedy;
        moe(p).bias_update_speed = 0.0;
    });
    assert_eq!(keys, ["model.groups"]);
}

#[test]
fn canonical_batches_fill_every_leaf() {
    let keys = broken(|p| constant_batch(p, 12)); // 6 micro-batches, 4 leaves
    assert_eq!(keys, ["batch.global_batch"]);
    let keys = broken(|p| {
        p.batch.ramp_start = 6;
        p.batch.ramp_tokens = 1_024;
    });
    assert_eq!(keys, ["batch.ramp_start"]);
    assert_eq!(broken(|p| p.batch.leaves = 3), ["batch.leaves", "batch.global_batch"]);
    let fast = broken(|p| {
        p.batch.reduction = Reduction::Fast;
        p.parallel.data = 3;
        constant_batch(p, 12);
    });
    assert_eq!(fast, [""; 0]);
}

#[test]
fn lists_of_the_schedule_rise() {
    let segments = |ends: &[u64]| {
        let piece = |&until_tokens| Segment { until_tokens, shape: Shape::Constant, lr: 1e-3 };
        let segments = ends.iter().map(piece).collect();
        broken(|p| p.schedule.decay = Decay::Segments { segments })
    };
    assert_eq!(segments(&[20_000, 51_200]), [""; 0]);
    assert_eq!(segments(&[]), ["schedule.segments"]);
    assert_eq!(segments(&[5_120, 51_200]), ["schedule.segments[0].until_tokens"]); // the warm-up's end
    assert_eq!(segments(&[20_000]), ["schedule.segments[0].until_tokens"]);
    let milestones = |fractions: &[f64]| {
        let step = |&fraction| Milestone { fraction, ratio: 0.3 };
        let milestones = fractions.iter().map(step).collect();
        broken(|p| p.schedule.decay = Decay::MultiStep { milestones })
    };
    assert_eq!(milestones(&[0.8, 0.9]), [""; 0]);
    assert_eq!(milestones(&[0.9, 0.8]), ["schedule.milestones[1].fraction"]);
}

/// The suggested value of a relation satisfies it.
#[test]
fn fixes_work() {
    let rule =
        |value, of| Invalid::NotMultiple { key: String::new(), value, of_key: "x".to_string(), of };
    assert_eq!(rule(10, 4).fix(), "use 8 or 12");
    assert_eq!(rule(3, 4).fix(), "use 4");
    let rule =
        |value, of| Invalid::NotDivisor { key: String::new(), value, of_key: "x".to_string(), of };
    assert_eq!(rule(5, 16).fix(), "use 4 or 8");
    assert_eq!(rule(17, 16).fix(), "use 16");
    let rule = |value| Invalid::NotPowerOfTwo { key: String::new(), value };
    assert_eq!(rule(6).fix(), "use 4 or 8");
}

#[test]
fn what_is_not_trainable_is_named() {
    type Change = fn(&mut TrainPlan);
    let cases: &[(&str, Change)] = &[
        ("model.mtp_layers", |p| p.model.mtp_layers = 2),
        ("model.gate", |p| moe(p).gate = Gate::SoftmaxGreedy),
        ("model.experts", |p| {
            p.model.attention = Attention::Gqa { heads: 4, kv_heads: 4, head_dim: 16 };
            p.model.mtp_layers = 0;
        }),
        ("parallel.data", |p| {
            p.parallel.data = 2;
            p.device = Device::Cuda;
        }),
        ("data.sources", |p| p.data.sources.clear()),
    ];
    for (key, change) in cases {
        let mut plan = fixture::plan();
        change(&mut plan);
        assert_eq!(check_trainable(&plan).unwrap_err().key, *key);
    }
    let mut dense = fixture::plan();
    dense.model.moe = None;
    assert_eq!(check_trainable(&dense), Ok(()));
}
