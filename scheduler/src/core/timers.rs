//! What happens by itself. A timer says only "look again": what it finds is judged then, so a timer that has been
//! overtaken by events does nothing.

use super::{
    Failure, FailureClass, Job, JobState, MemberState, NodeId, Reason, Scheduler, StopReason, Time,
};
use lampyris_proto::{Attempt, JobId};

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Whether a node is silent.
    Watch(NodeId),
    /// Whether a node that was unfit has served its time.
    Unfit(NodeId),
    /// Whether a job's backoff is over.
    Backoff(JobId),
    /// Whether an attempt has started everywhere.
    Start(JobId, Attempt),
    /// Whether an attempt that was asked to suspend has.
    Grace(JobId, Attempt),
    /// Whether an attempt makes progress.
    Hang(JobId, Attempt),
    /// Whether waiting jobs of a group can be placed now.
    Pass(String),
    /// Whether the nodes have had their time to report after a restart.
    Recovered,
}

impl Scheduler {
    pub(super) fn arm(&mut self, at: Time, timer: Timer) {
        self.timers.insert((at, timer));
    }

    pub(super) fn fire_timers(&mut self) {
        while self.timers.first().is_some_and(|(at, _)| *at <= self.now) {
            let Some((_, timer)) = self.timers.pop_first() else { break };
            match timer {
                Timer::Watch(node) => self.watch(node),
                Timer::Unfit(node) => self.refresh(node),
                Timer::Backoff(job) => self.enter_queue(job),
                Timer::Start(job, attempt) => self.check_start(job, attempt),
                Timer::Grace(job, attempt) => self.check_grace(job, attempt),
                Timer::Hang(job, attempt) => self.check_hang(job, attempt),
                Timer::Pass(group) => {
                    self.group_mut(&group).wakeup = None;
                    self.dirty.insert(group);
                }
                Timer::Recovered => self.end_recovery(),
            }
        }
    }

    /// A job whose current attempt is `attempt` and in `state`.
    fn in_attempt(&self, job: JobId, attempt: Attempt, state: JobState) -> Option<&Job> {
        self.jobs.get(&job).filter(|job| job.attempt == attempt && job.state == state)
    }

    fn check_start(&mut self, id: JobId, attempt: Attempt) {
        let Some(job) = self.in_attempt(id, attempt, JobState::Starting) else { return };
        let missing = job.members.iter().filter(|m| m.state == MemberState::Assigned).count();
        let deadline_ms = self.policy.start_deadline_ms;
        let reason = Reason::StartOverran { deadline_ms, missing: missing as u32 };
        self.fail_attempt(id, FailureClass::StartTimeout, reason);
    }

    fn check_grace(&mut self, id: JobId, attempt: Attempt) {
        let Some(job) = self.in_attempt(id, attempt, JobState::Suspending) else { return };
        let reason = Reason::SuspendOverran { grace_ms: self.grace_ms(job) };
        self.note(id, reason.clone());
        self.kill(id, reason);
    }

    fn check_hang(&mut self, id: JobId, attempt: Attempt) {
        let Some(job) = self.in_attempt(id, attempt, JobState::Running) else { return };
        let Some(timeout_ms) = job.spec.hang_timeout_ms else { return };
        let due = job.progressed + timeout_ms;
        if due > self.now {
            return self.arm(due, Timer::Hang(id, attempt));
        }
        let reason = Reason::Hung { timeout_ms, step: job.progress.step };
        self.fail_attempt(id, FailureClass::Hang, reason);
    }

    fn fail_attempt(&mut self, id: JobId, class: FailureClass, reason: Reason) {
        let message = reason.to_string();
        let job = self.edit(id);
        job.failure = Some(Failure { class, exit_code: None, rank: None, message });
        job.stop = Some(StopReason::Failed);
        self.note(id, reason.clone());
        self.kill(id, reason);
    }

    /// Milliseconds that a job may take from the request to the end of its suspend.
    pub(super) fn grace_ms(&self, job: &Job) -> u64 {
        let saving = job.progress.save_ms.saturating_mul(self.policy.save_factor);
        self.policy.suspend_grace_ms.saturating_add(saving)
    }
}
