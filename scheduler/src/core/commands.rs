//! What people ask.

use super::planted::planted;
use super::{
    Amount, Answer, Command, Job, JobSpec, JobState, NodeName, Priority, Progress, Quota, QuotaKey,
    Reason, Refusal, Scheduler, StopReason, Subject, Time, Wanted,
};
use crate::limits;
use lampyris_proto::words::name_problem;
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeSet;

impl Scheduler {
    pub(super) fn command(&mut self, command: Command) -> Result<Answer, Refusal> {
        match command {
            Command::Submit { request_id, spec } => self.submit(request_id, spec),
            Command::Cancel { job } => self.cancel(job),
            Command::Suspend { job } => self.suspend_for_user(job),
            Command::Resume { job } => self.resume(job),
            Command::Drain { node, suspend_jobs, by_host } => {
                self.drain(&node, suspend_jobs, by_host)
            }
            Command::ResumeNode { node, only_host } => self.resume_node(&node, only_host),
            Command::SetQuota(quota) => self.set_quota(quota),
            Command::RemoveQuota(key) => self.remove_quota(&key),
        }
    }

    fn submit(&mut self, request_id: String, spec: JobSpec) -> Result<Answer, Refusal> {
        if let Some(id) = self.requests.get(&request_id) {
            let same = self.get(*id).spec == spec;
            let taken = Refusal::RequestIdTaken { request_id, job: *id };
            return same.then_some(Answer::Job(*id)).ok_or(taken);
        }
        self.validate(&request_id, &spec)?;
        if self.live_jobs >= self.policy.max_jobs {
            return Err(Refusal::TooManyJobs { max_jobs: self.policy.max_jobs });
        }
        if !self.groups.contains_key(&spec.group) && self.groups.len() >= limits::GROUPS {
            return Err(Refusal::TooManyGroups { max_groups: limits::GROUPS });
        }
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.live_jobs += 1;
        self.requests.insert(request_id.clone(), id);
        let now = self.now;
        let job = Job {
            id,
            spec,
            request_id,
            state: JobState::Queued,
            reason: Reason::Submitted,
            wanted: Wanted::Run,
            submitted: now,
            not_before: now,
            waiting_since: now,
            attempt: Attempt(0),
            members: Vec::new(),
            stop: None,
            failure: None,
            failed_before: None,
            unsuited: BTreeSet::new(),
            placed: Time::default(),
            running_since: None,
            retries: 0,
            progress: Progress::default(),
            progressed: now,
            saved: now,
        };
        self.jobs.insert(id, job);
        self.note(id, Reason::Submitted);
        self.enter_queue(id);
        Ok(Answer::Job(id))
    }

    /// Whether a job could be submitted; changes nothing.
    pub fn validate(&self, request_id: &str, spec: &JobSpec) -> Result<(), Refusal> {
        let bad = |field, what: &str| Err(Refusal::BadSpec { field, what: what.to_owned() });
        let words = [
            ("request_id", request_id),
            ("name", &spec.name),
            ("user", &spec.user),
            ("group", &spec.group),
        ];
        for (field, word) in words {
            if let Some(problem) = name_problem(word) {
                return bad(field, problem);
            }
        }
        if spec.user == "*" {
            return bad("user", "`*` is no user");
        }
        if spec.nodes.is_empty() || spec.nodes.len() > limits::SIZES {
            return bad("nodes", "must be 1 to 16 numbers, the wished one first");
        }
        let max_nodes = self.policy.max_nodes;
        if spec.nodes.iter().any(|n| *n == 0 || *n > max_nodes) {
            return bad("nodes", &format!("must be 1 to {max_nodes}"));
        }
        if spec.nodes.windows(2).any(|pair| pair[0] <= pair[1]) {
            return bad("nodes", "must fall: alternatives are smaller than what is wished");
        }
        if spec.devices_per_node.is_some_and(|devices| devices == 0 || devices > limits::DEVICES) {
            return bad("devices_per_node", "must be 1 to 65536; leave it out for whole nodes");
        }
        if spec.max_retries > limits::RETRIES {
            return bad("max_retries", "must be at most 100");
        }
        let spans =
            [("max_runtime_ms", spec.max_runtime_ms), ("hang_timeout_ms", spec.hang_timeout_ms)];
        for (field, span) in spans {
            if span.is_some_and(|ms| ms == 0 || ms > limits::SPAN_MS) {
                return bad(field, "must be at least 1 ms and at most ten years");
            }
        }
        Ok(())
    }

    /// A job on which something can still be done.
    fn live(&self, id: JobId) -> Result<&Job, Refusal> {
        let job = self.jobs.get(&id).ok_or(Refusal::NoSuchJob(id))?;
        match job.state.is_terminal() {
            true => Err(Refusal::HasEnded { job: id, state: job.state.as_str() }),
            false => Ok(job),
        }
    }

    /// Ends a job: at once where nothing runs, else by checkpoint; asked for again, by kill.
    fn cancel(&mut self, id: JobId) -> Result<Answer, Refusal> {
        let (state, wanted) = self.live(id).map(|job| (job.state, job.wanted))?;
        self.edit(id).wanted = Wanted::Cancelled;
        let reason = Reason::CancelledByUser;
        match state {
            JobState::Starting => {
                self.edit(id).stop = Some(StopReason::UserCancel);
                self.note(id, reason.clone());
                self.kill(id, reason);
            }
            JobState::Running => self.suspend(id, StopReason::UserCancel, reason),
            JobState::Suspending if wanted == Wanted::Cancelled => self.kill(id, reason),
            JobState::Suspending | JobState::Stopping => self.note(id, reason),
            _ => self.end(id, JobState::Cancelled, reason),
        }
        Ok(Answer::Job(id))
    }

    fn suspend_for_user(&mut self, id: JobId) -> Result<Answer, Refusal> {
        let (state, wanted) = self.live(id).map(|job| (job.state, job.wanted))?;
        if wanted == Wanted::Cancelled {
            return Err(Refusal::BeingCancelled(id));
        }
        if wanted == Wanted::Suspended {
            return Ok(Answer::Job(id));
        }
        self.leave_queue(id);
        self.drop_claim(id);
        self.edit(id).wanted = Wanted::Suspended;
        let reason = Reason::SuspendedByUser;
        match state {
            JobState::Starting | JobState::Running => {
                self.suspend(id, StopReason::UserSuspend, reason);
            }
            JobState::Queued => {
                self.edit(id).state = JobState::Suspended;
                self.note(id, reason);
            }
            _ => self.note(id, reason),
        }
        Ok(Answer::Job(id))
    }

    fn resume(&mut self, id: JobId) -> Result<Answer, Refusal> {
        match self.live(id)?.wanted {
            Wanted::Cancelled => return Err(Refusal::BeingCancelled(id)),
            Wanted::Run => return Err(Refusal::NotSuspended(id)),
            Wanted::Suspended => {}
        }
        let now = self.now;
        let job = self.edit(id);
        job.wanted = Wanted::Run;
        job.waiting_since = now;
        job.not_before = now;
        job.retries = 0;
        job.unsuited.clear();
        self.note(id, Reason::ResumedByUser);
        self.enter_queue(id);
        Ok(Answer::Job(id))
    }

    fn drain(
        &mut self,
        name: &NodeName,
        suspend_jobs: bool,
        by_host: bool,
    ) -> Result<Answer, Refusal> {
        let id = *self.names.get(name).ok_or_else(|| Refusal::NoSuchNode(name.clone()))?;
        let node = self.at_mut(id);
        // A person's drain stays a person's.
        node.drained_by_host = by_host && (!node.draining || node.drained_by_host);
        node.draining = true;
        self.changes.nodes.insert(id);
        self.refresh(id);
        let reason = Reason::NodeDrained { node: name.clone() };
        self.record(Subject::Node(name.clone()), reason.clone());
        let jobs: Vec<JobId> = self.at(id).held.keys().copied().collect();
        for job in jobs.into_iter().filter(|_| suspend_jobs) {
            if matches!(self.get(job).state, JobState::Starting | JobState::Running) {
                self.suspend(job, StopReason::Drain, reason.clone());
            }
        }
        Ok(Answer::Done)
    }

    /// Ends a drain and a spell of unfitness; with `only_host`, only a drain that the node's host has made.
    fn resume_node(&mut self, name: &NodeName, only_host: bool) -> Result<Answer, Refusal> {
        let id = *self.names.get(name).ok_or_else(|| Refusal::NoSuchNode(name.clone()))?;
        let now = self.now;
        let node = self.at_mut(id);
        if only_host && !node.drained_by_host {
            return Ok(Answer::Done);
        }
        (node.draining, node.drained_by_host) = (false, false);
        if !only_host {
            node.unfit_until = node.unfit_until.min(now);
        }
        self.changes.nodes.insert(id);
        self.refresh(id);
        self.record(Subject::Node(name.clone()), Reason::NodeResumed);
        Ok(Answer::Done)
    }

    fn set_quota(&mut self, quota: Quota) -> Result<Answer, Refusal> {
        let key = quota.key;
        for (field, word) in [("user", &key.user), ("group", &key.group)] {
            if let Some(problem) = name_problem(word) {
                return Err(Refusal::BadSpec { field, what: problem.to_owned() });
            }
        }
        if !self.quotas.contains_key(&key) && self.quotas.len() >= limits::QUOTAS {
            return Err(Refusal::TooManyQuotas { max_quotas: limits::QUOTAS });
        }
        self.quotas.insert(key.clone(), quota.limit);
        self.changes.quotas.insert(key.clone());
        self.quota_changed(&key);
        Ok(Answer::Done)
    }

    fn remove_quota(&mut self, key: &QuotaKey) -> Result<Answer, Refusal> {
        if self.quotas.remove(key).is_none() {
            return Err(Refusal::NoSuchQuota {
                user: key.user.clone(),
                priority: key.priority,
                group: key.group.clone(),
            });
        }
        self.changes.quotas.insert(key.clone());
        self.quota_changed(key);
        Ok(Answer::Done)
    }

    fn quota_changed(&mut self, key: &QuotaKey) {
        if key.user == "*" {
            let users = self.group_mut(&key.group).lanes.users(key.priority);
            for user in users {
                self.refresh_lane(&QuotaKey { user, ..key.clone() });
            }
        } else {
            self.refresh_lane(key);
        }
        self.dirty.insert(key.group.clone());
    }

    /// What limits `user`, `priority`, `group`: a row of the user, else one for `*`, else nothing.
    pub(super) fn limit(&self, key: &QuotaKey) -> Option<Amount> {
        if self.quotas.is_empty() || planted!(self, NoQuota) {
            return None;
        }
        let for_all = || self.quotas.get(&QuotaKey { user: "*".to_owned(), ..key.clone() });
        self.quotas.get(key).or_else(for_all).copied()
    }

    /// What `user` holds at `priority` in `group`.
    pub(super) fn held(&self, key: &QuotaKey) -> Amount {
        self.held.get(key).copied().unwrap_or_default()
    }

    /// Whether `amount` more fits under the quota of a job.
    pub(super) fn fits_quota(&self, key: &QuotaKey, amount: Amount) -> bool {
        self.limit(key).is_none_or(|limit| self.held(key).fits(amount, limit))
    }

    /// Parks a lane that has no quota left at all, and frees one that has.
    pub(super) fn refresh_lane(&mut self, key: &QuotaKey) {
        let parked = self.limit(key).is_some_and(|limit| {
            let held = self.held(key);
            held.nodes >= limit.nodes && held.slots >= limit.slots
        });
        self.group_mut(&key.group).lanes.park(key.priority, &key.user, parked);
    }

    /// A waiting job stands in line, from when its backoff is over.
    pub(super) fn enter_queue(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let due = job.is_waiting() && job.not_before <= self.now;
        let by_itself = planted!(self, ResumesByItself) && job.state == JobState::Suspended;
        if !due && !by_itself {
            return;
        }
        let (group, priority, user): (String, Priority, String) =
            (job.spec.group.clone(), job.spec.priority, job.spec.user.clone());
        self.group_mut(&group).lanes.insert(priority, &user, id);
        self.refresh_lane(&QuotaKey { user, priority, group: group.clone() });
        self.dirty.insert(group);
    }

    /// A job no longer stands in line.
    pub(super) fn leave_queue(&mut self, id: JobId) {
        let spec = &self.get(id).spec;
        let (group, priority, user) = (spec.group.clone(), spec.priority, spec.user.clone());
        self.group_mut(&group).lanes.remove(priority, &user, id);
    }
}
