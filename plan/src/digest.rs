//! Two fingerprints of a plan. `numerics` covers every value that may change a bit of the result in canonical mode: a
//! run does not resume under another one unless the changed keys are named. `plan` covers everything.
//!
//! Both hash the plan as sorted `key = value` lines, so a change can be named by its keys ([`changes`]). Digests speak
//! of the plan alone; the fingerprint of the machine (CPU capability, libtorch, threads) is the rank's business.

use crate::train_plan::TrainPlan;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Keys, with all below them, that cannot change a bit in canonical mode. All others count as numerics, so that a new
/// key is safe until someone lists it here.
const NOT_NUMERIC: &[&str] = &[
    "schema",
    "name",
    "model.max_positions",
    "data.obtain",
    "data.cache_dir",
    "optimizer.nan_guard",
    "parallel",
    "checkpoint",
    "eval",
    "output",
];

/// Both digests, as 64 hexadecimal digits (BLAKE3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Digests {
    /// Every value that may change a bit in canonical mode.
    pub numerics: String,
    /// Every value.
    pub plan: String,
}

/// A key whose value differs between two plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path in the plan, e.g. `batch.leaves`.
    pub key: String,
    /// Value before, as JSON; none if the key was not there.
    pub before: Option<String>,
    /// Value after, as JSON; none if the key is gone.
    pub after: Option<String>,
    /// Whether the key belongs to the numerics digest.
    pub numeric: bool,
}

impl Digests {
    /// The digests of `plan`.
    pub fn of(plan: &TrainPlan) -> Digests {
        of_value(&to_value(plan))
    }
}

fn of_value(plan: &Value) -> Digests {
    let lines = lines(plan);
    let numeric = lines.iter().filter(|(key, _)| is_numeric(key));
    Digests { numerics: hash(numeric), plan: hash(lines.iter()) }
}

/// The keys in which two plans differ, sorted.
pub fn changes(before: &TrainPlan, after: &TrainPlan) -> Vec<Change> {
    let (before, after) = (lines(&to_value(before)), lines(&to_value(after)));
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| Change {
            key: key.clone(),
            before: before.get(key).cloned(),
            after: after.get(key).cloned(),
            numeric: is_numeric(key),
        })
        .collect()
}

fn is_numeric(key: &str) -> bool {
    let below = |prefix: &&str| {
        key.strip_prefix(*prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    !NOT_NUMERIC.iter().any(below)
}

fn hash<'a>(lines: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in lines {
        hasher.update(format!("{key} = {value}\n").as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn to_value(plan: &TrainPlan) -> Value {
    serde_json::to_value(plan)
        .expect("a plan holds numbers, strings and UTF-8 paths: recipes refuses others")
}

/// Every value of the plan by its path, as JSON.
fn lines(plan: &Value) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    flatten(String::new(), plan, &mut lines);
    lines
}

fn flatten(path: String, value: &Value, lines: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(below, value, lines);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, value) in items.iter().enumerate() {
                flatten(format!("{path}[{i}]"), value, lines);
            }
        }
        leaf => {
            lines.insert(path, leaf.to_string());
        }
    }
}

#[cfg(test)]
mod tests;
