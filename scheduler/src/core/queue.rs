//! What is known of one node group: free nodes, waiting jobs, running jobs.
//!
//! Waiting jobs stand in *lanes*, one per priority and user, in order of submission. All jobs of a lane count against
//! the same quota, so a lane without quota left is parked as a whole, and the order over all lanes is a merge of heads.

use super::free::FreeNodes;
use super::{NodeId, Priority, Time};
use lampyris_proto::JobId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

/// One node group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Group {
    /// Free nodes.
    pub(super) free: FreeNodes,
    /// Nodes in service, free or not.
    pub(super) in_service: u32,
    /// Nodes in service by zone.
    pub(super) zones: BTreeMap<String, u32>,
    /// Waiting jobs.
    pub(super) lanes: Lanes,
    /// Jobs that run on all their nodes.
    pub(super) running: BTreeSet<(Priority, JobId)>,
    /// Jobs that are being suspended or killed: their nodes will be free.
    pub(super) leaving: BTreeSet<JobId>,
    /// Nodes kept for a waiting job until all of them are free.
    pub(super) claims: BTreeMap<JobId, BTreeSet<NodeId>>,
    /// The first job in line that could not be placed in the last pass.
    pub(super) first_in_line: Option<JobId>,
    /// When a pass is due though nothing happens.
    pub(super) wakeup: Option<Time>,
}

/// Waiting jobs of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<LaneKey, Lane>,
    /// First jobs of the lanes that have quota left.
    heads: BTreeSet<(Reverse<Priority>, JobId, String)>,
}

type LaneKey = (Reverse<Priority>, String);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Lane {
    jobs: BTreeSet<JobId>,
    parked: bool,
}

impl Lanes {
    pub(super) fn insert(&mut self, priority: Priority, user: &str, job: JobId) {
        self.change(priority, user, |lane| {
            lane.jobs.insert(job);
        });
    }

    pub(super) fn remove(&mut self, priority: Priority, user: &str, job: JobId) {
        self.change(priority, user, |lane| {
            lane.jobs.remove(&job);
        });
    }

    /// Says whether a lane has quota left.
    pub(super) fn park(&mut self, priority: Priority, user: &str, parked: bool) {
        if self.lanes.contains_key(&(Reverse(priority), user.to_owned())) {
            self.change(priority, user, |lane| lane.parked = parked);
        }
    }

    /// Users with waiting jobs at a priority.
    pub(super) fn users(&self, priority: Priority) -> Vec<String> {
        let from = (Reverse(priority), String::new());
        let same = self.lanes.range(from..).take_while(|((p, _), _)| p.0 == priority);
        same.map(|((_, user), _)| user.clone()).collect()
    }

    fn change(&mut self, priority: Priority, user: &str, change: impl FnOnce(&mut Lane)) {
        let key = (Reverse(priority), user.to_owned());
        let lane = self.lanes.entry(key.clone()).or_default();
        let head = |lane: &Lane| lane.jobs.first().copied().filter(|_| !lane.parked);
        let before = head(lane);
        change(lane);
        let after = head(lane);
        if lane.jobs.is_empty() {
            self.lanes.remove(&key);
        }
        if before != after {
            if let Some(job) = before {
                self.heads.remove(&(key.0, job, key.1.clone()));
            }
            if let Some(job) = after {
                self.heads.insert((key.0, job, key.1));
            }
        }
    }

    /// The highest priority at which a job waits with quota left.
    pub(super) fn highest(&self) -> Option<Priority> {
        self.heads.first().map(|(priority, _, _)| priority.0)
    }

    /// Waiting jobs in order (priority, then submission) of which `wanted` is true: at most `limit`, out of at most four
    /// times as many looked at.
    pub(super) fn in_order(&self, limit: usize, wanted: impl Fn(JobId) -> bool) -> Vec<JobId> {
        let mut found = Vec::new();
        let mut heads = self.heads.iter().peekable();
        let mut open: BTreeSet<(Reverse<Priority>, JobId, &str)> = BTreeSet::new();
        for _ in 0..limit.saturating_mul(4) {
            if let Some((priority, job, user)) = heads.peek()
                && open.first().is_none_or(|first| (*priority, *job) < (first.0, first.1))
            {
                open.insert((*priority, *job, user));
                heads.next();
            }
            let Some((priority, job, user)) = open.pop_first() else { break };
            if wanted(job) {
                found.push(job);
                if found.len() >= limit {
                    break;
                }
            }
            let lane = self.lanes.get(&(priority, user.to_owned()));
            let next = lane.and_then(|lane| lane.jobs.range((Excluded(job), Unbounded)).next());
            if let Some(next) = next {
                open.insert((priority, *next, user));
            }
        }
        found
    }
}
