//! How everything else reaches the engine: three bounded queues, of workers, of commands and of looks at its state, and what
//! it publishes. Workers have a queue of their own so that their leases do not wait for people.

use super::logs::{LogRead, LogRoutes};
use super::refuse;
use super::view::View;
use crate::core::{Command, JobSpec, NodeName, Outcome};
use lampyris_proto::{Attempt, JobId, v1};
use std::sync::Arc;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tonic::Status;

/// To one worker. A worker that does not read is cut off.
pub(super) type Outbox = mpsc::Sender<Result<v1::SchedulerMessage, Status>>;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Status>>;

/// A wish to submit.
pub(super) struct Submission {
    pub(super) request_id: String,
    pub(super) spec: JobSpec,
    pub(super) run: v1::RunSpec,
    pub(super) validate_only: bool,
}

/// What the engine is told.
pub(super) enum Message {
    Submit(Box<Submission>, Reply<v1::Job>),
    /// A command about a job: answered with the job.
    OnJob(Command, JobId, Reply<v1::Job>),
    /// Another command.
    Other(Command, Reply<()>),
    Join(Box<v1::Register>, Outbox, Reply<(NodeName, u64)>),
    Worker {
        node: NodeName,
        session: u64,
        said: Said,
    },
    Left {
        node: NodeName,
        session: u64,
    },
    ReadLog(v1::ReadLogsRequest, Arc<LogRoutes>, Reply<LogRead>),
    StopLog {
        node: NodeName,
        session: u64,
        id: u64,
    },
}

pub(super) type Look = Box<dyn FnOnce(&View) + Send>;

impl Message {
    /// Whether a worker waits for it.
    fn is_of_worker(&self) -> bool {
        matches!(self, Message::Join(..) | Message::Worker { .. } | Message::Left { .. })
    }

    /// About how many heartbeats it takes as long as.
    pub(super) fn weight(&self) -> usize {
        match self {
            Message::Join(register, ..) => register.attempts.len().saturating_add(1),
            Message::Worker { said: Said::Heartbeat(heartbeat), .. } => {
                heartbeat.attempts.len().max(1)
            }
            _ => 1,
        }
    }
}

/// What a worker says.
pub(super) enum Said {
    Heartbeat(v1::Heartbeat),
    /// It leaves on purpose.
    Left,
    Started(JobId, Attempt),
    /// `last`: how far its ranks came.
    Ended {
        job: JobId,
        attempt: Attempt,
        outcome: Outcome,
        last: Option<v1::Progress>,
    },
}

/// How everything else reaches the engine.
#[derive(Clone)]
pub(super) struct EngineLink {
    pub(super) workers: mpsc::Sender<Message>,
    pub(super) commands: mpsc::Sender<Message>,
    pub(super) looks: mpsc::Sender<Look>,
    pub(super) changed: broadcast::Sender<JobId>,
    pub(super) progressed: broadcast::Sender<JobId>,
    pub(super) last_event: watch::Receiver<u64>,
    pub(super) serving: watch::Receiver<bool>,
    pub(super) closing: Arc<Notify>,
    pub(super) logs: Arc<LogRoutes>,
}

impl EngineLink {
    pub(super) async fn send(&self, message: Message) -> Result<(), Status> {
        let queue = if message.is_of_worker() { &self.workers } else { &self.commands };
        queue.send(message).await.map_err(|_| refuse::stopping())
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask<T>(
        &self,
        message: impl FnOnce(Reply<T>) -> Message,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.send(message(reply)).await?;
        answer.await.map_err(|_| refuse::stopping())?
    }

    /// Looks at the engine's state.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let look: Look = Box::new(move |view: &View| {
            // Nobody waits for what takes time and is not wanted any more.
            if !reply.is_closed() {
                reply.send(look(view)).ok();
            }
        });
        self.looks.send(look).await.map_err(|_| refuse::stopping())?;
        answer.await.map_err(|_| refuse::stopping())
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<JobId> {
        self.changed.subscribe()
    }

    pub(super) fn progress(&self) -> broadcast::Receiver<JobId> {
        self.progressed.subscribe()
    }

    pub(super) fn last_event(&self) -> watch::Receiver<u64> {
        self.last_event.clone()
    }

    pub(super) fn serving(&self) -> watch::Receiver<bool> {
        self.serving.clone()
    }

    pub(super) fn close(&self) {
        self.closing.notify_one();
    }
}
