//! Between messages and the core's types.

use super::check;
use super::refuse::missing;
use crate::core::{
    Capacity, Failure, FailureClass, Instance, JobSpec, JobState, Member, MemberState, NodeName,
    NodeState, Outcome, Place, Priority, Progress, Reason, Registration, ReportedAttempt,
    ReportedState, Wanted,
};
use crate::limits;
use lampyris_proto::{Attempt, JobId, v1};
use tonic::Status;

/// Group of those who name none.
const DEFAULT_GROUP: &str = "default";

pub(super) fn priority(priority: i32) -> Result<Priority, Status> {
    let wrong = || Status::invalid_argument(format!("priority: there is no level {priority}"));
    match v1::Priority::try_from(priority).map_err(|_| wrong())? {
        v1::Priority::Unspecified => Ok(Priority::Normal),
        level => {
            let index = (level as usize).saturating_sub(1);
            Priority::ALL.get(index).copied().ok_or_else(wrong)
        }
    }
}

pub(super) fn to_priority(priority: Priority) -> v1::Priority {
    v1::Priority::try_from((priority as i32).saturating_add(1)).unwrap_or_default()
}

pub(super) fn spec(spec: v1::JobSpec) -> Result<JobSpec, Status> {
    let priority = priority(spec.priority)?;
    let group = if spec.group.is_empty() { DEFAULT_GROUP.to_owned() } else { spec.group };
    Ok(JobSpec {
        name: spec.name,
        user: spec.user,
        group,
        priority,
        nodes: spec.nodes,
        devices_per_node: spec.devices_per_node,
        max_runtime_ms: spec.max_runtime_ms,
        max_retries: spec.max_retries,
        hang_timeout_ms: spec.hang_timeout_ms,
        restart_on_hang: spec.restart_on_hang,
    })
}

pub(super) fn to_spec(spec: &JobSpec) -> v1::JobSpec {
    v1::JobSpec {
        name: spec.name.clone(),
        user: spec.user.clone(),
        group: spec.group.clone(),
        priority: to_priority(spec.priority).into(),
        nodes: spec.nodes.clone(),
        devices_per_node: spec.devices_per_node,
        max_runtime_ms: spec.max_runtime_ms,
        max_retries: spec.max_retries,
        hang_timeout_ms: spec.hang_timeout_ms,
        restart_on_hang: spec.restart_on_hang,
    }
}

pub(super) fn to_state(state: JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Starting => v1::JobState::Starting,
        JobState::Running => v1::JobState::Running,
        JobState::Suspending => v1::JobState::Suspending,
        JobState::Stopping => v1::JobState::Stopping,
        JobState::Suspended => v1::JobState::Suspended,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}

pub(super) fn to_wanted(wanted: Wanted) -> v1::Wanted {
    match wanted {
        Wanted::Run => v1::Wanted::Run,
        Wanted::Suspended => v1::Wanted::Suspended,
        Wanted::Cancelled => v1::Wanted::Cancelled,
    }
}

pub(super) fn to_node_state(state: NodeState) -> v1::node::State {
    match state {
        NodeState::Online => v1::node::State::Online,
        NodeState::Silent => v1::node::State::Silent,
        NodeState::Lost => v1::node::State::Lost,
    }
}

/// The name of the reason and its words.
pub(super) fn to_reason(reason: &Reason) -> v1::Reason {
    let code = match serde_json::to_value(reason) {
        Ok(serde_json::Value::String(code)) => code,
        Ok(serde_json::Value::Object(fields)) => {
            fields.into_iter().next().map(|(code, _)| code).unwrap_or_default()
        }
        _ => String::new(),
    };
    v1::Reason { code, text: reason.to_string() }
}

pub(super) fn to_failure(failure: &Failure) -> v1::Failure {
    let class = match failure.class {
        FailureClass::BadRecipe => v1::failure::Class::BadRecipe,
        FailureClass::Infrastructure => v1::failure::Class::Infrastructure,
        FailureClass::Killed => v1::failure::Class::Killed,
        FailureClass::NodeLost => v1::failure::Class::NodeLost,
        FailureClass::NodeUnfit => v1::failure::Class::NodeUnfit,
        FailureClass::Unsuited => v1::failure::Class::Unsuited,
        FailureClass::StartTimeout => v1::failure::Class::StartTimeout,
        FailureClass::Hang => v1::failure::Class::Hang,
        FailureClass::Program => v1::failure::Class::Program,
    };
    v1::Failure {
        class: class.into(),
        exit_code: failure.exit_code,
        rank: failure.rank,
        message: failure.message.clone(),
    }
}

fn failure(mut failure: v1::Failure) -> Failure {
    check::shorten(&mut failure.message, limits::FAILURE_BYTES);
    let class = match failure.class() {
        v1::failure::Class::BadRecipe => FailureClass::BadRecipe,
        v1::failure::Class::Infrastructure => FailureClass::Infrastructure,
        v1::failure::Class::Killed => FailureClass::Killed,
        v1::failure::Class::NodeLost => FailureClass::NodeLost,
        v1::failure::Class::NodeUnfit => FailureClass::NodeUnfit,
        v1::failure::Class::Unsuited => FailureClass::Unsuited,
        v1::failure::Class::StartTimeout => FailureClass::StartTimeout,
        v1::failure::Class::Hang => FailureClass::Hang,
        v1::failure::Class::Program | v1::failure::Class::Unspecified => FailureClass::Program,
    };
    Failure { class, exit_code: failure.exit_code, rank: failure.rank, message: failure.message }
}

pub(super) fn outcome(outcome: v1::Outcome) -> Result<Outcome, Status> {
    use v1::outcome::Kind;
    match outcome.kind.ok_or_else(|| missing("outcome.kind"))? {
        Kind::Finished(_) => Ok(Outcome::Finished),
        Kind::Suspended(suspended) => {
            Ok(Outcome::Suspended { stay_stopped: suspended.stay_stopped })
        }
        Kind::Killed(_) => Ok(Outcome::Killed),
        Kind::Failed(failed) => Ok(Outcome::Failed(failure(failed))),
    }
}

fn to_outcome(outcome: &Outcome) -> v1::Outcome {
    use v1::outcome::Kind;
    let kind = match outcome {
        Outcome::Finished => Kind::Finished(v1::outcome::Finished {}),
        Outcome::Suspended { stay_stopped } => {
            Kind::Suspended(v1::outcome::Suspended { stay_stopped: *stay_stopped })
        }
        Outcome::Killed => Kind::Killed(v1::outcome::Killed {}),
        Outcome::Failed(failure) => {
            let mut shown = to_failure(failure);
            check::shorten(&mut shown.message, limits::MEMBER_FAILURE_BYTES);
            Kind::Failed(shown)
        }
    };
    v1::Outcome { kind: Some(kind), progress: None }
}

pub(super) fn to_member(node: NodeName, member: &Member) -> v1::Member {
    let (state, outcome) = match &member.state {
        MemberState::Assigned => (v1::member::State::Assigned, None),
        MemberState::Running => (v1::member::State::Running, None),
        MemberState::Ended(outcome) => (v1::member::State::Ended, Some(to_outcome(outcome))),
    };
    v1::Member { node: node.0, state: state.into(), outcome }
}

fn capacity(capacity: v1::Capacity) -> Capacity {
    let group = if capacity.group.is_empty() { DEFAULT_GROUP.to_owned() } else { capacity.group };
    let place = Place { zone: capacity.zone, switch: capacity.switch };
    Capacity { group, devices: capacity.devices, shared: capacity.shared, place }
}

pub(super) fn to_capacity(capacity: &Capacity) -> v1::Capacity {
    v1::Capacity {
        group: capacity.group.clone(),
        devices: capacity.devices,
        shared: capacity.shared,
        zone: capacity.place.zone.clone(),
        switch: capacity.place.switch.clone(),
    }
}

pub(super) fn registration(
    register: v1::Register,
    session: u64,
) -> Result<(Registration, v1::Hardware), Status> {
    check::register(&register)?;
    let attempts = register.attempts.into_iter().map(|attempt| {
        let state = match attempt.outcome {
            None => ReportedState::Running,
            Some(ended) => ReportedState::Ended(outcome(ended)?),
        };
        Ok(ReportedAttempt { job: JobId(attempt.job), attempt: Attempt(attempt.attempt), state })
    });
    let registration = Registration {
        node: NodeName(register.node),
        session,
        boot_id: register.boot_id,
        instance: Instance { id: register.instance, place: register.place },
        capacity: capacity(register.capacity.ok_or_else(|| missing("capacity"))?),
        attempts: attempts.collect::<Result<_, Status>>()?,
    };
    Ok((registration, register.hardware.unwrap_or_default()))
}

/// How far the ranks came of the attempts that a worker reports as ended.
pub(super) fn last_progress(register: &v1::Register) -> Vec<(JobId, Attempt, v1::Progress)> {
    let last = |attempt: &v1::ReportedAttempt| {
        let progress = attempt.outcome.as_ref()?.progress.clone()?;
        Some((JobId(attempt.job), Attempt(attempt.attempt), progress))
    };
    register.attempts.iter().filter_map(last).collect()
}

/// What the core wants to know of a progress.
pub(super) fn progress(progress: &v1::Progress) -> Progress {
    Progress {
        step: progress.step,
        saved_step: progress.saved_step,
        save_ms: progress.save_ms,
        operations: progress.operations,
    }
}
