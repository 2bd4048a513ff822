//! The scheduler's settings.

use crate::limits;
use serde::{Deserialize, Serialize};

/// Times and bounds, in milliseconds where they are times. One set for the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// A worker's right to run its attempts, counted from when it sent the heartbeat that was answered.
    pub lease_ms: u64,
    /// What a shim may take to stop its ranks once the lease has passed.
    pub stop_grace_ms: u64,
    /// Added before attempts of a silent node count as stopped: clocks drift, and stopped processes take a moment.
    pub margin_ms: u64,
    /// All nodes of an attempt must have started it by then.
    pub start_deadline_ms: u64,
    /// A job runs at least so long before it is suspended for another.
    pub min_quantum_ms: u64,
    /// A job that was asked to suspend is killed after this and [`Policy::save_factor`] of its last save.
    pub suspend_grace_ms: u64,
    /// See [`Policy::suspend_grace_ms`].
    pub save_factor: u64,
    /// Wait before the first retry; doubles with each, up to `max_backoff_ms`.
    pub backoff_ms: u64,
    /// Longest wait before a retry.
    pub max_backoff_ms: u64,
    /// A node that was found unfit gets nothing for so long.
    pub unfit_ms: u64,
    /// The first job in line waits so long before smaller jobs behind it may no longer pass.
    pub patience_ms: u64,
    /// A job that can run on fewer nodes than it wishes waits so long before it does.
    pub shrink_after_ms: u64,
    /// Jobs in the queue and on nodes; a submission beyond is refused.
    pub max_jobs: u32,
    /// Finished jobs that are remembered.
    pub max_finished: u32,
    /// Nodes in the table; a registration beyond is refused.
    pub max_nodes: u32,
    /// Waiting jobs looked at in one pass over a group.
    pub max_candidates: u32,
    /// Jobs placed in one step; the rest follow in the next.
    pub max_placements: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            lease_ms: 20_000,
            stop_grace_ms: 5_000,
            margin_ms: 2_000,
            start_deadline_ms: 120_000,
            min_quantum_ms: 900_000,
            suspend_grace_ms: 120_000,
            save_factor: 4,
            backoff_ms: 10_000,
            max_backoff_ms: 600_000,
            unfit_ms: 600_000,
            patience_ms: 600_000,
            shrink_after_ms: 300_000,
            max_jobs: 200_000,
            max_finished: 10_000,
            max_nodes: 50_000,
            max_candidates: 1_000,
            max_placements: 64,
        }
    }
}

impl Policy {
    /// Whether a scheduler can work with them; else what is wrong, by name.
    ///
    /// # Errors
    /// In words, for who wrote them.
    pub fn check(&self) -> Result<(), String> {
        const DAY_MS: u64 = 86_400_000;
        let numbers = [
            // A heartbeat every quarter of it: below, the network would be busy with nothing else.
            ("lease_ms", self.lease_ms, 200, DAY_MS),
            ("stop_grace_ms", self.stop_grace_ms, 0, DAY_MS),
            ("margin_ms", self.margin_ms, 0, DAY_MS),
            ("start_deadline_ms", self.start_deadline_ms, 1, DAY_MS),
            ("min_quantum_ms", self.min_quantum_ms, 0, limits::SPAN_MS),
            ("suspend_grace_ms", self.suspend_grace_ms, 1, limits::SPAN_MS),
            ("save_factor", self.save_factor, 0, 1_000),
            ("backoff_ms", self.backoff_ms, 0, DAY_MS),
            ("max_backoff_ms", self.max_backoff_ms, 0, limits::SPAN_MS),
            ("unfit_ms", self.unfit_ms, 0, limits::SPAN_MS),
            ("patience_ms", self.patience_ms, 0, limits::SPAN_MS),
            ("shrink_after_ms", self.shrink_after_ms, 0, limits::SPAN_MS),
            ("max_jobs", self.max_jobs.into(), 1, 10_000_000),
            ("max_finished", self.max_finished.into(), 0, 10_000_000),
            ("max_nodes", self.max_nodes.into(), 1, limits::CONNECTIONS as u64),
            ("max_candidates", self.max_candidates.into(), 1, 1_000_000),
            ("max_placements", self.max_placements.into(), 1, 1_000_000),
        ];
        for (name, number, least, most) in numbers {
            if number < least || number > most {
                return Err(format!("{name} = {number}: must be {least} to {most}"));
            }
        }
        Ok(())
    }

    /// Silence after which nothing runs on a node any more.
    pub fn lost_after_ms(&self) -> u64 {
        self.lease_ms + self.stop_grace_ms + self.margin_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_with_which_nothing_would_work_are_refused_by_name() {
        assert_eq!(Policy::default().check(), Ok(()));
        let lease = Policy { lease_ms: 0, ..Policy::default() };
        assert_eq!(lease.check(), Err("lease_ms = 0: must be 200 to 86400000".to_owned()));
        let endless = Policy { stop_grace_ms: u64::MAX, ..Policy::default() };
        assert!(endless.check().unwrap_err().starts_with("stop_grace_ms"));
        for nothing in ["max_jobs", "max_nodes", "max_candidates", "max_placements"] {
            let mut policy = serde_json::to_value(Policy::default()).expect("plain data");
            policy[nothing] = 0.into();
            let policy: Policy = serde_json::from_value(policy).expect("a policy");
            assert!(policy.check().unwrap_err().starts_with(nothing));
        }
    }
}
