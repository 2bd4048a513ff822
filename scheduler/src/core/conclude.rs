//! What follows when an attempt is over on all its nodes.

use super::planted::planted;
use super::timers::Timer;
use super::{
    Failure, FailureClass, Job, JobState, MemberState, Outcome, Reason, Scheduler, StopReason,
    Wanted,
};
use lampyris_proto::JobId;

/// What becomes of a job.
enum Next {
    End(JobState, Reason),
    /// Waits for nodes again.
    Wait(Reason),
    /// Waits for a person.
    Hold(Reason),
    /// Waits for nodes after a backoff.
    Retry(Failure),
    /// Waits for other nodes than those that were not the ones for it.
    Elsewhere(Failure),
}

/// Nodes on which a job is tried before the fault counts as its own.
const MAX_UNSUITED: usize = 3;

/// How an attempt ended as a whole. `others`: there are nodes enough that have not turned out to be unsuited.
fn verdict(job: &Job, others: bool) -> Next {
    let all = |wanted: fn(&Outcome) -> bool| {
        job.members.iter().all(|m| matches!(&m.state, MemberState::Ended(o) if wanted(o)))
    };
    if all(|outcome| *outcome == Outcome::Finished) {
        return Next::End(JobState::Succeeded, Reason::Finished { attempt: job.attempt });
    }
    if job.wanted == Wanted::Cancelled {
        return Next::End(JobState::Cancelled, Reason::CancelledByUser);
    }
    if let Some(failure) = &job.failure {
        return after_failure(job, failure.clone(), others);
    }
    let checkpointed = all(|outcome| matches!(outcome, Outcome::Suspended { .. }));
    let killed = |m: &super::Member| m.state == MemberState::Ended(Outcome::Killed);
    if !checkpointed && !job.members.iter().any(killed) {
        let message = "some nodes finished and others suspended".to_owned();
        let failure =
            Failure { class: FailureClass::Program, exit_code: None, rank: None, message };
        return after_failure(job, failure, others);
    }
    let stay_stopped = all(|outcome| *outcome == Outcome::Suspended { stay_stopped: true });
    match &job.stop {
        _ if job.wanted == Wanted::Suspended => Next::Hold(Reason::SuspendedByUser),
        Some(StopReason::Preempted { by }) => Next::Wait(Reason::PreemptionEnded { by: *by }),
        Some(StopReason::Drain | StopReason::UserSuspend) => Next::Wait(job.reason.clone()),
        // Nobody here asked: a person wrote into the run directory, or pressed Ctrl-C on the node.
        None if stay_stopped => Next::Hold(Reason::SuspendedInRunDirectory),
        _ => Next::Wait(Reason::SuspendedByNode),
    }
}

fn after_failure(job: &Job, failure: Failure, others: bool) -> Next {
    if failure.class == FailureClass::Unsuited && job.wanted == Wanted::Run {
        let nodes = job.unsuited.len();
        if nodes >= MAX_UNSUITED {
            let nodes = nodes as u32;
            return Next::End(JobState::Failed, Reason::UnsuitedEverywhere { failure, nodes });
        }
        if others {
            return Next::Elsewhere(failure);
        }
    }
    let again = match failure.class {
        FailureClass::Hang => job.spec.restart_on_hang,
        class => class.is_retryable(),
    };
    if !again {
        Next::End(JobState::Failed, Reason::FailedForGood { failure })
    } else if job.retries >= job.spec.max_retries {
        let retries = job.retries;
        Next::End(JobState::Failed, Reason::RetriesSpent { failure, retries })
    } else if job.wanted == Wanted::Suspended {
        Next::Hold(Reason::SuspendedByUser)
    } else {
        Next::Retry(failure)
    }
}

impl Scheduler {
    /// The current attempt of a job has ended on all its nodes.
    pub(super) fn conclude(&mut self, id: JobId) {
        self.release_quota(id);
        let spec = &self.get(id).spec;
        let (group, entry) = (spec.group.clone(), (spec.priority, id));
        let group = self.group_mut(&group);
        group.running.remove(&entry);
        group.leaving.remove(&id);
        if self.cross_zone == Some(id) {
            self.cross_zone = None;
            self.dirty.extend(self.groups.keys().cloned());
        }
        let others = self.has_other_nodes(self.get(id));
        let next = verdict(self.get(id), others);
        let now = self.now;
        let job = self.edit(id);
        job.members.clear();
        job.stop = None;
        job.running_since = None;
        job.waiting_since = now;
        match next {
            Next::End(state, reason) => self.end(id, state, reason),
            Next::Hold(reason) => {
                job.state = JobState::Suspended;
                job.wanted = Wanted::Suspended;
                self.note(id, reason);
                if planted!(self, ResumesByItself) {
                    self.enter_queue(id);
                }
            }
            Next::Wait(reason) => {
                job.state = JobState::Suspended;
                job.not_before = now;
                self.note(id, reason);
                if !planted!(self, LosesPreemptedJobs) {
                    self.enter_queue(id);
                }
            }
            Next::Retry(failure) => self.retry(id, failure),
            Next::Elsewhere(failure) => {
                job.state = JobState::Queued;
                job.not_before = now;
                self.note(id, Reason::TriedElsewhere { failure });
                self.enter_queue(id);
            }
        }
    }

    /// Whether a job could be placed on nodes in service that have not turned out to be unsuited.
    fn has_other_nodes(&self, job: &Job) -> bool {
        let smallest = job.spec.nodes.last().copied().unwrap_or(1);
        let group = self.groups.get(&job.spec.group);
        group.is_some_and(|group| self.in_service_for(group, job) >= smallest)
    }

    fn retry(&mut self, id: JobId, failure: Failure) {
        let doublings = self.get(id).retries.min(32);
        let wait_ms =
            self.policy.backoff_ms.saturating_mul(1 << doublings).min(self.policy.max_backoff_ms);
        let due = self.now + wait_ms;
        let job = self.edit(id);
        job.state = JobState::Queued;
        // There was no other node: what was missing may be there next time.
        job.unsuited.clear();
        job.retries += 1;
        job.not_before = due;
        let (retry, max_retries) = (job.retries, job.spec.max_retries);
        self.note(id, Reason::BacksOff { failure, retry, max_retries, wait_ms });
        self.arm(due, Timer::Backoff(id));
    }

    /// A job will not run again.
    pub(super) fn end(&mut self, id: JobId, state: JobState, reason: Reason) {
        self.leave_queue(id);
        self.drop_claim(id);
        let now = self.now;
        let job = self.edit(id);
        job.state = state;
        // From now on: when it ended.
        job.waiting_since = now;
        self.note(id, reason);
        self.live_jobs -= 1;
        self.finished.push_back(id);
        while self.finished.len() > self.policy.max_finished as usize {
            let Some(oldest) = self.finished.pop_front() else { break };
            if let Some(job) = self.jobs.remove(&oldest) {
                self.requests.remove(&job.request_id);
                self.changes.jobs.remove(&oldest);
                self.changes.removed_jobs.insert(oldest);
            }
        }
    }
}
