//! The rules a [`TrainPlan`] obeys. [`validate`] finds plans that make no sense; [`check_trainable`] finds sensible
//! plans that this release can describe but not train.
//!
//! Every finding carries the path of the recipe key at fault, so that `recipes` can point at its line. Nothing is read
//! here: whether a file exists or a vocabulary fits a corpus is found out by the data step.

use crate::train_plan::{SCHEMA, TrainPlan};
use thiserror::Error;

mod layout;
mod model;
mod schedule;
mod trainable;

pub use trainable::{Unsupported, check_trainable};

/// A broken rule: which key, its value, the other key it clashes with, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A number is outside its range.
    #[error("{key} = {value} is out of range: it must be {range}")]
    OutOfRange {
        /// Key at fault.
        key: String,
        /// Its value.
        value: String,
        /// The range in words.
        range: &'static str,
    },
    /// A number must be a multiple of another.
    #[error("{key} = {value} is not a multiple of {of_key} = {of}")]
    NotMultiple {
        /// Key at fault.
        key: String,
        /// Its value.
        value: u64,
        /// Name of the other number: a key or an expression of keys.
        of_key: String,
        /// Value of the other number.
        of: u64,
    },
    /// A number must divide another.
    #[error("{key} = {value} does not divide {of_key} = {of}")]
    NotDivisor {
        /// Key at fault.
        key: String,
        /// Its value.
        value: u64,
        /// Name of the other number: a key or an expression of keys.
        of_key: String,
        /// Value of the other number.
        of: u64,
    },
    /// A number exceeds another.
    #[error("{key} = {value} is more than {limit_key} = {limit}")]
    TooLarge {
        /// Key at fault.
        key: String,
        /// Its value.
        value: u64,
        /// Name of the limit: a key or an expression of keys.
        limit_key: String,
        /// Value of the limit.
        limit: u64,
    },
    /// The number must be a power of two.
    #[error("{key} = {value} is not a power of two")]
    NotPowerOfTwo {
        /// Key at fault.
        key: String,
        /// Its value.
        value: u64,
    },
    /// Two keys contradict each other.
    #[error("{key} = {value} {why}")]
    Conflict {
        /// Key at fault.
        key: String,
        /// Its value.
        value: String,
        /// What it contradicts, as the end of a sentence.
        why: String,
        /// What to do.
        fix: String,
    },
}

impl Invalid {
    /// Path of the recipe key at fault, e.g. `batch.leaves`.
    pub fn key(&self) -> &str {
        match self {
            Invalid::OutOfRange { key, .. }
            | Invalid::NotMultiple { key, .. }
            | Invalid::NotDivisor { key, .. }
            | Invalid::TooLarge { key, .. }
            | Invalid::NotPowerOfTwo { key, .. }
            | Invalid::Conflict { key, .. } => key,
        }
    }

    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Invalid::OutOfRange { range, .. } => format!("give a value that is {range}"),
            Invalid::NotMultiple { value, of, .. } => {
                let below = value / of * of;
                let above = below + of;
                if below == 0 { format!("use {above}") } else { format!("use {below} or {above}") }
            }
            Invalid::NotDivisor { value, of, .. } if *of <= MAX_SIZE as u64 => {
                let divides = |n: &u64| of.is_multiple_of(*n);
                let below = (1..=*value.min(of)).rev().find(divides).unwrap_or(1);
                match (*value..=*of).find(divides) {
                    Some(above) => format!("use {below} or {above}"),
                    None => format!("use {below}"),
                }
            }
            Invalid::NotDivisor { of_key, .. } => format!("change it or {of_key}"),
            Invalid::TooLarge { limit, limit_key, .. } => {
                format!("use at most {limit}, or raise {limit_key}")
            }
            Invalid::NotPowerOfTwo { value, .. } => {
                let above = value.next_power_of_two();
                format!("use {} or {above}", (above / 2).max(1))
            }
            Invalid::Conflict { fix, .. } => fix.clone(),
        }
    }
}

/// Largest dimension or number of sequences: products of two stay far below 2^64.
const MAX_SIZE: usize = 1 << 24;

/// Most tokens of a run: three orders above any published one, and exact in all arithmetic on schedules.
const MAX_TOKENS: u64 = 1_000_000_000_000_000_000;

/// Every rule that `plan` breaks, in the order of the recipe's sections.
pub fn validate(plan: &TrainPlan) -> Result<(), Vec<Invalid>> {
    let mut rules = Rules::default();
    rules.within("schema", plan.schema, plan.schema == SCHEMA, "the schema of this release");
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let folder = plan.name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let name = folder && plan.name.chars().all(plain) && plan.name.len() <= 100;
    let range = "letters, digits, '.', '_' and '-', at most 100, the first a letter or digit";
    rules.within("name", format!("{:?}", plan.name), name, range);
    model::check(plan, &mut rules);
    layout::check(plan, &mut rules);
    schedule::check(plan, &mut rules);
    if rules.broken.is_empty() { Ok(()) } else { Err(rules.broken) }
}

/// Collects broken rules. The relations guard themselves against zero: that is reported once, as a range.
#[derive(Default)]
struct Rules {
    broken: Vec<Invalid>,
}

impl Rules {
    fn within(&mut self, key: &str, value: impl ToString, ok: bool, range: &'static str) {
        if !ok {
            let (key, value) = (key.to_string(), value.to_string());
            self.broken.push(Invalid::OutOfRange { key, value, range });
        }
    }

    fn positive(&mut self, key: &str, value: u64) {
        self.within(key, value, value > 0, "at least 1");
    }

    /// A dimension or a number of sequences.
    fn size(&mut self, key: &str, value: usize) {
        self.within(key, value, (1..=MAX_SIZE).contains(&value), "1 to 16777216");
    }

    /// A finite number in `[0, 1]`.
    fn share(&mut self, key: &str, value: f64) {
        self.within(key, value, (0.0..=1.0).contains(&value), "from 0 to 1");
    }

    /// A finite number of at least 0.
    fn not_negative(&mut self, key: &str, value: f64) {
        self.within(key, value, value.is_finite() && value >= 0.0, "a finite number, at least 0");
    }

    /// A finite number above 0.
    fn above_zero(&mut self, key: &str, value: f64) {
        self.within(key, value, value.is_finite() && value > 0.0, "a finite number above 0");
    }

    fn multiple(&mut self, key: &str, value: u64, of_key: &str, of: u64) {
        if of > 0 && !value.is_multiple_of(of) {
            let (key, of_key) = (key.to_string(), of_key.to_string());
            self.broken.push(Invalid::NotMultiple { key, value, of_key, of });
        }
    }

    fn divides(&mut self, key: &str, value: u64, of_key: &str, of: u64) {
        if value > 0 && of > 0 && !of.is_multiple_of(value) {
            let (key, of_key) = (key.to_string(), of_key.to_string());
            self.broken.push(Invalid::NotDivisor { key, value, of_key, of });
        }
    }

    fn at_most(&mut self, key: &str, value: u64, limit_key: &str, limit: u64) {
        if value > limit {
            let (key, limit_key) = (key.to_string(), limit_key.to_string());
            self.broken.push(Invalid::TooLarge { key, value, limit_key, limit });
        }
    }

    fn power_of_two(&mut self, key: &str, value: u64) {
        if value > 0 && !value.is_power_of_two() {
            self.broken.push(Invalid::NotPowerOfTwo { key: key.to_string(), value });
        }
    }

    fn conflict(&mut self, key: &str, value: impl ToString, why: impl Into<String>, fix: &str) {
        self.broken.push(Invalid::Conflict {
            key: key.to_string(),
            value: value.to_string(),
            why: why.into(),
            fix: fix.to_string(),
        });
    }
}

#[cfg(test)]
mod tests;
