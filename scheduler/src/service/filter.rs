//! Which jobs somebody asks for, and whether one is among them, without a copy of anything.

use super::check;
use super::convert;
use super::view::View;
use crate::core::{Job, JobState};
use crate::limits;
use lampyris_proto::{JobId, v1};
use std::collections::BTreeSet;
use tonic::Status;

/// A filter that was looked at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    states: BTreeSet<i32>,
    user: String,
    group: String,
    jobs: BTreeSet<JobId>,
    run_dir: String,
}

impl Filter {
    /// Takes in what was asked.
    pub(super) fn new(asked: v1::JobFilter) -> Result<Filter, Status> {
        if asked.jobs.len() > limits::FILTER_JOBS {
            let most = limits::FILTER_JOBS;
            return Err(check::bad("filter.jobs", format_args!("must be at most {most} numbers")));
        }
        Ok(Filter {
            states: asked.states.into_iter().collect(),
            user: asked.user,
            group: asked.group,
            jobs: asked.jobs.into_iter().map(JobId).collect(),
            run_dir: asked.run_dir,
        })
    }

    /// Whether it asks for states, which change.
    pub(super) fn has_states(&self) -> bool {
        !self.states.is_empty()
    }

    /// Whether a job is in one of the wanted states.
    pub(super) fn wants_state(&self, state: JobState) -> bool {
        self.states.is_empty() || self.states.contains(&convert::to_state(state).into())
    }

    /// Whether all but the state of a job is as wanted.
    pub(super) fn wants(&self, view: &View, job: &Job) -> bool {
        let run_dir = || view.runs.get(&job.id).map_or("", |run| run.run_dir.as_str());
        (self.user.is_empty() || self.user == job.spec.user)
            && (self.group.is_empty() || self.group == job.spec.group)
            && (self.jobs.is_empty() || self.jobs.contains(&job.id))
            && (self.run_dir.is_empty() || self.run_dir == run_dir())
    }

    /// Whether a job is wanted.
    pub(super) fn matches(&self, view: &View, job: &Job) -> bool {
        self.wants_state(job.state) && self.wants(view, job)
    }
}
