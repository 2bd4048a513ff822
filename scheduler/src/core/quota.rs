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
