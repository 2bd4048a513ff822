//! What the engine shows: jobs and nodes as messages, with what heartbeats have told beside what the core keeps.

use super::clock::Clock;
use super::convert;
use crate::core::{Failure, Job, JobState, Node, NodeName, NodeState, Reason, Scheduler, Time};
use crate::store::Store;
use lampyris_proto::v1;
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeMap;

/// The engine's state, for those who read.
pub(super) struct View {
    pub(super) core: Scheduler,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) runs: BTreeMap<JobId, v1::RunSpec>,
    pub(super) live: BTreeMap<JobId, Live>,
    pub(super) hardware: BTreeMap<NodeName, v1::Hardware>,
}

/// What the ranks of an attempt are at, as of the last heartbeats.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    pub(super) attempt: Attempt,
    total_steps: u64,
    figures: Option<v1::StepFigures>,
    ranks: BTreeMap<u64, v1::RankProgress>,
}

impl Live {
    /// Takes in what one node says; [`super::check::progress`] has left what it can know.
    pub(super) fn update(&mut self, attempt: Attempt, progress: v1::Progress) {
        if attempt > self.attempt {
            *self = Live { attempt, ..Live::default() };
        }
        if attempt < self.attempt {
            return;
        }
        self.total_steps = self.total_steps.max(progress.total_steps);
        if progress.figures.is_some() {
            self.figures = progress.figures;
        }
        self.ranks.extend(progress.ranks.into_iter().map(|rank| (rank.rank, rank)));
    }

    /// The attempt is over: what its ranks were at is of no interest any more.
    pub(super) fn forget_ranks(&mut self) {
        self.ranks.clear();
    }
}

impl View {
    /// A job as a message; `with_ranks` includes what every rank is at.
    pub(super) fn job(&self, job: &Job, with_ranks: bool) -> v1::Job {
        let names = self.core.members(job);
        let live = self.live.get(&job.id).filter(|live| live.attempt == job.attempt);
        let progress = v1::Progress {
            step: job.progress.step,
            total_steps: live.map_or(0, |live| live.total_steps),
            saved_step: job.progress.saved_step,
            save_ms: job.progress.save_ms,
            operations: job.progress.operations,
            figures: live.and_then(|live| live.figures),
            ranks: match live.filter(|_| with_ranks) {
                Some(live) => live.ranks.values().cloned().collect(),
                None => Vec::new(),
            },
        };
        let members = names.into_iter().zip(&job.members);
        v1::Job {
            id: job.id.0,
            spec: Some(convert::to_spec(&job.spec)),
            run: self.runs.get(&job.id).cloned(),
            state: convert::to_state(job.state).into(),
            reason: Some(convert::to_reason(&self.core.explain(job))),
            wanted: convert::to_wanted(job.wanted).into(),
            attempt: job.attempt.0,
            members: members.map(|(name, member)| convert::to_member(name, member)).collect(),
            retries: job.retries,
            failure: failure(job).map(convert::to_failure),
            progress: Some(progress),
            submit_time: Some(self.clock.timestamp(job.submitted)),
            start_time: job.running_since.map(|at| self.clock.timestamp(at)),
            end_time: job.state.is_terminal().then(|| self.clock.timestamp(job.waiting_since)),
        }
    }

    pub(super) fn job_by_id(&self, id: JobId, with_ranks: bool) -> Option<v1::Job> {
        self.core.job(id).map(|job| self.job(job, with_ranks))
    }

    pub(super) fn node(&self, node: &Node) -> v1::Node {
        let now = self.clock.now();
        let unfit = node.unfit_until > now;
        let holdings = node
            .held
            .iter()
            .map(|(job, devices)| v1::node::Holding { job: job.0, devices: *devices });
        v1::Node {
            name: node.name.0.clone(),
            capacity: Some(convert::to_capacity(&node.capacity)),
            hardware: self.hardware.get(&node.name).cloned(),
            state: convert::to_node_state(node.state).into(),
            draining: node.draining,
            reason: Some(convert::to_reason(&why(node, now))),
            unfit_until: unfit.then(|| self.clock.timestamp(node.unfit_until)),
            heard_time: Some(self.clock.timestamp(node.heard)),
            holdings: holdings.collect(),
        }
    }
}

/// The failure that people ask about: none once all is well in the end.
fn failure(job: &Job) -> Option<&Failure> {
    let of = job.failure.as_ref().or(job.failed_before.as_ref());
    of.filter(|_| job.state != JobState::Succeeded)
}

#[allow(clippy::arithmetic_side_effects, reason = "scheduler's time saturates")]
fn why(node: &Node, now: Time) -> Reason {
    let silent_ms = now - node.heard;
    match node.state {
        NodeState::Lost if node.left => Reason::NodeLeft,
        NodeState::Lost => Reason::NodeLost { silent_ms, jobs: node.held.len() as u32 },
        NodeState::Silent => Reason::NodeSilent { silent_ms },
        NodeState::Online if node.draining && node.held.is_empty() => Reason::NodeFree,
        NodeState::Online if node.draining => Reason::NodeDrained { node: node.name.clone() },
        NodeState::Online if node.unfit_until > now => Reason::NodeUnfitFor {
            left_ms: node.unfit_until - now,
            message: node.unfit_for.clone(),
        },
        NodeState::Online => Reason::NodeRegistered { devices: node.capacity.devices },
    }
}
