use super::*;
use crate::fixture;
use crate::model_spec::Yarn;
use crate::train_plan::*;

/// Plans that together have every key: all kinds of every enum, all options set.
fn plans_with_every_key() -> Vec<TrainPlan> {
    let mut full = fixture::plan();
    full.model.rope.yarn = Some(Yarn {
        factor: 40.0,
        original_max_positions: 32,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: Some(1.0),
        mscale_all_dim: Some(1.0),
        attention_factor: Some(1.0),
    });
    full.data.sources = vec![
        Source::Jsonl { path: "/a".to_string(), field: "text".to_string() },
        Source::CargoSources { manifest: "/Cargo.toml".to_string() },
    ];
    full.data.max_bytes = Some(1);
    full.optimizer.muon = Some(MuonPlan { momentum: 0.95 });
    full.schedule.mtp_loss_steps = vec![MtpLossStep { from_tokens: 1, weight: 0.1 }];
    full.schedule.bias_update_until_tokens = Some(1);
    let mut plans = vec![full.clone()];
    let wsd = Decay::Wsd { decay_fraction: 0.2, final_ratio: 0.1 };
    let steps = Decay::MultiStep { milestones: vec![Milestone { fraction: 0.8, ratio: 0.3 }] };
    let piece = Segment { until_tokens: 1, shape: Shape::Linear, lr: 0.1 };
    for decay in [wsd, steps, Decay::Segments { segments: vec![piece] }] {
        let mut plan = full.clone();
        plan.schedule.decay = decay;
        plans.push(plan);
    }
    let bpe = TokenizerPlan::Bpe { vocab_size: 300, train_bytes: 1 };
    let file = TokenizerPlan::File { path: "/t".into(), end_of_document: "<e>".to_string() };
    for tokenizer in [bpe, file] {
        plans.push(TrainPlan { tokenizer, ..full.clone() });
    }
    let mut gqa = full;
    gqa.model.attention = crate::model_spec::Attention::Gqa { heads: 4, kv_heads: 2, head_dim: 16 };
    plans.push(gqa);
    plans
}

/// Another value of the same JSON type.
fn another(value: &Value) -> Value {
    match value {
        Value::Null => Value::from(1),
        Value::Bool(value) => Value::from(!value),
        Value::Number(number) => match number.as_u64() {
            Some(number) => Value::from(number + 1),
            None => Value::from(number.as_f64().unwrap() + 0.25),
        },
        Value::String(text) => Value::from(format!("{text}!")),
        Value::Array(_) => Value::from(vec![1]),
        Value::Object(_) => panic!("a leaf is no object"),
    }
}

fn leaves(path: &str, value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| leaves(&format!("{path}/{name}"), value, out));
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, value) in items.iter().enumerate() {
                leaves(&format!("{path}/{i}"), value, out);
            }
        }
        _ => out.push(path.to_string()),
    }
}

/// Every value of every key changes `plan`, and changes `numerics` if and only if the committed list says so. A new key
/// fails here until it is put into the list.
#[test]
fn every_key_is_classified() {
    let mut found = std::collections::BTreeSet::new();
    for plan in plans_with_every_key() {
        let value = serde_json::to_value(&plan).unwrap();
        let before = of_value(&value);
        assert_eq!(before, Digests::of(&plan));
        let mut pointers = Vec::new();
        leaves("", &value, &mut pointers);
        for pointer in pointers {
            let mut changed = value.clone();
            let leaf = changed.pointer_mut(&pointer).unwrap();
            *leaf = another(leaf);
            let after = of_value(&changed);
            assert_ne!(before.plan, after.plan, "{pointer} is not in the plan digest");
            let numeric = before.numerics != after.numerics;
            let key: Vec<&str> =
                pointer[1..].split('/').filter(|part| part.parse::<usize>().is_err()).collect();
            found.insert(format!("{} {}", key.join("."), if numeric { "numerics" } else { "-" }));
        }
    }
    let found: Vec<String> = found.into_iter().collect();
    let listed: Vec<&str> = include_str!("classes.txt").lines().collect();
    assert_eq!(found, listed, "\n{}\n", found.join("\n"));
}

#[test]
fn changes_are_named() {
    let before = fixture::plan();
    let mut after = before.clone();
    after.batch.leaves = 2;
    after.name = "other".to_string();
    after.data.sources.push(Source::Text { path: "/b".to_string() });
    let changes = changes(&before, &after);
    let keys: Vec<(&str, bool)> = changes.iter().map(|c| (c.key.as_str(), c.numeric)).collect();
    assert_eq!(
        keys,
        [
            ("batch.leaves", true),
            ("data.sources[1].kind", true),
            ("data.sources[1].path", true),
            ("name", false)
        ]
    );
    assert_eq!(changes[0].before.as_deref(), Some("4"));
    assert_eq!(changes[0].after.as_deref(), Some("2"));
    assert_eq!(changes[1].before, None);
    assert!(super::changes(&before, &before).is_empty());
}

/// The digest of a fixed plan is a fixed value: resuming must survive a rebuild.
#[test]
fn digests_do_not_drift() {
    let digests = Digests::of(&fixture::plan());
    assert_eq!(&digests.numerics[..16], "f40cc7570cc0f01b");
    assert_eq!(&digests.plan[..16], "7e176202ecccb6b7");
}
