//! What happens once a batch is durable, and what happens instead if it cannot be made so.

use super::engine::Engine;
use super::link::Reply;
use super::logs::{LogRead, LogRoutes};
use super::{convert, refuse};
use crate::core::{Action, NodeName, Refusal, Scheduler};
use crate::error::Error;
use lampyris_proto::v1::scheduler_message::Body;
use lampyris_proto::{JobId, v1};
use tonic::Status;

/// What happens once a batch is durable, in order.
pub(super) enum Effect {
    Act(Action),
    Job(Reply<v1::Job>, Result<JobId, Status>),
    Other(Reply<()>, Result<(), Status>),
    Joined(Reply<(NodeName, u64)>, NodeName, u64),
    Refused(Reply<(NodeName, u64)>, Status),
    Ack { node: NodeName, session: u64, sequence: u64 },
}

impl Engine {
    /// Nothing of a batch has happened: says so, and begins again from what is durable.
    pub(super) fn roll_back(&mut self, error: &Error, effects: Vec<Effect>) -> Result<(), Error> {
        tracing::error!(%error, "nothing of this batch has happened");
        let status = refuse::of_error(error);
        for effect in effects {
            match effect {
                // Whoever asked may be gone.
                Effect::Job(reply, _) => drop(reply.send(Err(status.clone()))),
                Effect::Other(reply, _) => drop(reply.send(Err(status.clone()))),
                Effect::Joined(reply, ..) | Effect::Refused(reply, _) => {
                    drop(reply.send(Err(status.clone())));
                }
                Effect::Act(_) | Effect::Ack { .. } => {}
            }
        }
        for session in std::mem::take(&mut self.sessions).into_values() {
            session.outbox.try_send(Err(status.clone())).ok();
        }
        let loaded = self.view.store.load()?;
        let now = self.view.clock.now();
        self.view.core = Scheduler::restore(self.policy.clone(), now, loaded.snapshot);
        self.view.runs = loaded.runs;
        self.index_run_dirs();
        self.disk_failed = true;
        Ok(())
    }

    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Act(action) => self.act(action),
            Effect::Job(reply, answer) => {
                let job = answer.and_then(|id| {
                    let shown = self.view.job_by_id(id, true);
                    // A job that is only checked has no number.
                    shown.or((id.0 == 0).then(v1::Job::default)).ok_or_else(|| gone(id))
                });
                reply.send(job).ok();
            }
            Effect::Other(reply, answer) => drop(reply.send(answer)),
            Effect::Joined(reply, node, number) => {
                let (lease_ms, heartbeat_ms) = (self.policy.lease_ms, self.policy.lease_ms / 4);
                let registered = v1::Registered { session: number, lease_ms, heartbeat_ms };
                self.tell(&node, Some(number), Body::Registered(registered));
                reply.send(Ok((node, number))).ok();
            }
            Effect::Refused(reply, status) => drop(reply.send(Err(status))),
            Effect::Ack { node, session, sequence } => {
                let ack = v1::HeartbeatAck { sequence, lease_ms: self.policy.lease_ms };
                self.tell(&node, Some(session), Body::HeartbeatAck(ack));
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start { node, job, attempt, nodes, index, spec } => {
                let start = v1::StartAttempt {
                    job: job.0,
                    attempt: attempt.0,
                    nodes: nodes.iter().map(|name| name.0.clone()).collect(),
                    node_index: index,
                    spec: Some(convert::to_spec(&spec)),
                    run: self.view.runs.get(&job).cloned(),
                };
                self.tell(&node, None, Body::StartAttempt(start));
            }
            Action::Suspend { node, job, attempt, reason } => {
                let reason = Some(convert::to_reason(&reason));
                let suspend = v1::SuspendAttempt { job: job.0, attempt: attempt.0, reason };
                self.tell(&node, None, Body::SuspendAttempt(suspend));
            }
            Action::Kill { node, job, attempt, reason } => {
                let reason = Some(convert::to_reason(&reason));
                let kill = v1::KillAttempt { job: job.0, attempt: attempt.0, reason };
                self.tell(&node, None, Body::KillAttempt(kill));
            }
            Action::Forget { node, job, attempt } => {
                let forget = v1::ForgetAttempt { job: job.0, attempt: attempt.0 };
                self.tell(&node, None, Body::ForgetAttempt(forget));
            }
            Action::Reject { node, session, reason } => {
                if self.sessions.get(&node).is_some_and(|known| known.number == session)
                    && let Some(session) = self.sessions.remove(&node)
                {
                    session.outbox.try_send(Err(refuse::of_reason(&reason))).ok();
                }
            }
            Action::Answer { .. } | Action::Record(_) => {}
        }
    }

    /// Speaks to a worker, on one connection or whichever it has. What does not fit or arrive is said again when the
    /// worker registers.
    pub(super) fn tell(&mut self, node: &NodeName, number: Option<u64>, body: Body) {
        let Some(session) = self.sessions.get(node) else { return };
        if number.is_some_and(|number| number != session.number) {
            return;
        }
        let message = v1::SchedulerMessage { body: Some(body) };
        if session.outbox.try_send(Ok(message)).is_err() {
            let number = session.number;
            self.sessions.remove(node);
            self.left.push((node.clone(), number));
        }
    }

    /// Asks a worker for a log: the one whose node has the rank, else any of the group, which sees the run directory.
    pub(super) fn read_log(
        &mut self,
        request: &v1::ReadLogsRequest,
        routes: &LogRoutes,
    ) -> Result<LogRead, Status> {
        let id = JobId(request.job);
        let (core, sessions) = (&self.view.core, &self.sessions);
        let job = core.job(id).ok_or_else(|| gone(id))?;
        let run = self.view.runs.get(&id).cloned().unwrap_or_default();
        let attempt = if request.attempt == 0 { job.attempt.0 } else { request.attempt };
        if attempt == 0 || attempt > job.attempt.0 {
            return Err(Status::not_found(format!("job {id} has had {} attempts", job.attempt)));
        }
        let index = request.rank.checked_div(run.ranks_per_node.into()).unwrap_or(0);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let at_rank = core.members(job).into_iter().nth(index);
        let of_group = core.nodes().iter().filter(|n| n.capacity.group == job.spec.group);
        let mut nodes = at_rank.into_iter().chain(of_group.map(|n| n.name.clone()));
        let node = nodes.find(|node| sessions.contains_key(node));
        let node = node.ok_or_else(|| Status::unavailable("no node of its group is connected"))?;
        let session = sessions.get(&node).map_or(0, |session| session.number);
        let (number, chunks) = routes.open(session)?;
        let read = v1::ReadLog {
            id: number,
            run: Some(run),
            job: id.0,
            attempt,
            rank: request.rank,
            offset: request.offset,
            follow: request.follow,
        };
        self.tell(&node, Some(session), Body::ReadLog(read));
        Ok(LogRead { node, session, id: number, attempt, chunks })
    }

    /// A reader wants no more of a log.
    pub(super) fn stop_log(&mut self, node: &NodeName, session: u64, id: u64) {
        self.tell(node, Some(session), Body::StopLog(v1::StopLog { id }));
    }
}

fn gone(id: JobId) -> Status {
    refuse::of_refusal(&Refusal::NoSuchJob(id))
}
