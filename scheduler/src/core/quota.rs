//! Quotas: how much of a group a user may hold at a priority.

use super::Priority;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Whole nodes, and single devices of shared nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Whole nodes.
    pub nodes: u32,
    /// Devices on shared nodes.
    pub slots: u32,
}

impl Amount {
    /// Whether this much more fits under `limit`.
    pub(super) fn fits(self, more: Amount, limit: Amount) -> bool {
        u64::from(self.nodes) + u64::from(more.nodes) <= u64::from(limit.nodes)
            && u64::from(self.slots) + u64::from(more.slots) <= u64::from(limit.slots)
    }

    pub(super) fn add(&mut self, more: Amount) {
        self.nodes = self.nodes.saturating_add(more.nodes);
        self.slots = self.slots.saturating_add(more.slots);
    }

    pub(super) fn sub(&mut self, less: Amount) {
        self.nodes = self.nodes.saturating_sub(less.nodes);
        self.slots = self.slots.saturating_sub(less.slots);
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slots {
            0 => write!(f, "{} nodes", self.nodes),
            slots => write!(f, "{} nodes and {slots} devices", self.nodes),
        }
    }
}

/// What a quota speaks of. The user `*` stands for every user without a row of their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QuotaKey {
    /// User, or `*`.
    pub user: String,
    /// Level.
    pub priority: Priority,
    /// Node group.
    pub group: String,
}

/// One row. Where there is none, neither for the user nor for `*`, nothing limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// What it speaks of.
    pub key: QuotaKey,
    /// What may be held at once.
    pub limit: Amount,
}
