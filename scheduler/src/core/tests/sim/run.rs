//! Training as the simulation sees it: a gang of nodes that makes steps, saves, suspends, fails and hangs.

use crate::core::{Failure, FailureClass, NodeName, Outcome, Progress};
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeMap;

pub(super) type RunKey = (JobId, Attempt);

/// How long a step takes.
pub(super) const STEP_MS: u64 = 200;
/// A checkpoint every so many steps.
const SAVE_EVERY: u64 = 4;

/// What really happens on one node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// The shim lives, its ranks load.
    Loading,
    /// Its ranks train.
    Live,
    /// No process lives.
    Over(Outcome),
}

/// One attempt of a job.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) parts: BTreeMap<NodeName, Part>,
    /// Parts of a gang; those missing in `parts` have not been told to start.
    pub(super) size: usize,
    pub(super) step: u64,
    pub(super) saved: u64,
    pub(super) save_ms: u64,
    pub(super) suspend_asked: bool,
    /// When the checkpoint of a suspend is committed.
    pub(super) suspends_at: Option<u64>,
    pub(super) hangs: bool,
    /// A part failed: the others notice at this time.
    pub(super) breaks_at: Option<u64>,
}

/// What a step of the clock does to a run.
#[derive(Debug, PartialEq)]
pub(super) enum Happening {
    Nothing,
    /// A checkpoint of this step.
    Commit(u64),
    /// All parts end so.
    All(Outcome),
}

impl Run {
    pub(super) fn is_live(&self) -> bool {
        self.parts.values().any(|part| !matches!(part, Part::Over(_)))
    }

    fn trains(&self) -> bool {
        self.parts.len() == self.size && self.parts.values().all(|part| *part == Part::Live)
    }

    /// As a node sees it, each with its own count of operations.
    pub(super) fn progress(&self, operations: u64) -> Progress {
        let (step, saved_step, save_ms) = (self.step, self.saved, self.save_ms);
        Progress { step, saved_step, save_ms, operations }
    }

    /// What `STEP_MS` of time do.
    pub(super) fn tick(&mut self, now: u64, total_steps: u64) -> Happening {
        if self.breaks_at.is_some_and(|at| at <= now) {
            return Happening::All(failed(FailureClass::Infrastructure, "lost a peer"));
        }
        if self.hangs || !self.trains() || self.breaks_at.is_some() {
            return Happening::Nothing;
        }
        if self.suspend_asked {
            let at = *self.suspends_at.get_or_insert(now + self.save_ms);
            if at > now {
                return Happening::Nothing;
            }
            self.saved = self.step;
            return Happening::All(Outcome::Suspended { stay_stopped: true });
        }
        // The last step may have been committed by an attempt whose end nobody heard of.
        self.step = (self.step + 1).min(total_steps);
        if self.step >= total_steps {
            self.saved = self.step;
            return Happening::All(Outcome::Finished);
        }
        if self.step.is_multiple_of(SAVE_EVERY) {
            self.saved = self.step;
            return Happening::Commit(self.step);
        }
        Happening::Nothing
    }
}

pub(super) fn failed(class: FailureClass, message: &str) -> Outcome {
    Outcome::Failed(Failure { class, exit_code: None, rank: None, message: message.to_owned() })
}
