//! A simulated worker daemon and its node: connections that break, a lease kept by shims, a journal that survives the
//! daemon, a machine that reboots.

use super::run::RunKey;
use crate::core::{Action, Capacity, JobSpec, NodeName, Outcome, ReportedAttempt, ReportedState};
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What travels from scheduler to worker.
#[derive(Debug, Clone)]
pub(super) enum ToWorker {
    Start {
        job: JobId,
        attempt: Attempt,
        nodes: Arc<[NodeName]>,
        spec: Arc<JobSpec>,
    },
    Suspend(RunKey),
    Kill(RunKey),
    Forget(RunKey),
    Reject,
    /// The answer to a registration or heartbeat that was sent at this time.
    Renewed {
        sent: u64,
    },
}

impl ToWorker {
    /// Message of an action, and to whom; `None` for those that are not for workers.
    pub(super) fn of(action: &Action) -> Option<(NodeName, ToWorker)> {
        Some(match action {
            Action::Start { node, job, attempt, nodes, spec, .. } => {
                let (job, attempt) = (*job, *attempt);
                let (nodes, spec) = (nodes.clone(), spec.clone());
                (node.clone(), ToWorker::Start { job, attempt, nodes, spec })
            }
            Action::Suspend { node, job, attempt, .. } => {
                (node.clone(), ToWorker::Suspend((*job, *attempt)))
            }
            Action::Kill { node, job, attempt, .. } => {
                (node.clone(), ToWorker::Kill((*job, *attempt)))
            }
            Action::Forget { node, job, attempt } => {
                (node.clone(), ToWorker::Forget((*job, *attempt)))
            }
            Action::Reject { node, .. } => (node.clone(), ToWorker::Reject),
            Action::Answer { .. } | Action::Record(_) => return None,
        })
    }
}

pub(super) struct Worker {
    pub(super) name: NodeName,
    pub(super) capacity: Capacity,
    pub(super) boot: u64,
    /// Its connection; what is sent on another one is lost.
    pub(super) session: Option<u64>,
    /// Not before this time does it connect: it is cut off, dead or stopped.
    pub(super) away_until: u64,
    /// Shims kill their ranks at this time.
    pub(super) lease_ends: u64,
    /// What it knows of attempts, on disk.
    pub(super) journal: BTreeMap<RunKey, Option<Outcome>>,
    /// Newest attempt of each job that it ever knew, on disk.
    pub(super) newest: BTreeMap<JobId, Attempt>,
    /// Delivery times never fall within a connection.
    pub(super) last_up: u64,
    pub(super) last_down: u64,
}

impl Worker {
    pub(super) fn report(&self) -> Vec<ReportedAttempt> {
        let state = |outcome: &Option<Outcome>| match outcome {
            None => ReportedState::Running,
            Some(outcome) => ReportedState::Ended(outcome.clone()),
        };
        let report = self.journal.iter().map(|((job, attempt), outcome)| ReportedAttempt {
            job: *job,
            attempt: *attempt,
            state: state(outcome),
        });
        report.collect()
    }

    /// Whether an order to start is news.
    pub(super) fn accepts(&self, (job, attempt): RunKey) -> bool {
        self.newest.get(&job).is_none_or(|newest| *newest < attempt)
    }
}
