//! The workers' side: one stream per node, from its registration to its end.

use super::link::{EngineLink, Message, Said};
use super::refuse::missing;
use super::{convert, logs};
use lampyris_proto::v1::worker_message::Body;
use lampyris_proto::v1::worker_service_server::WorkerService;
use lampyris_proto::{Attempt, JobId, v1};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Messages that wait for a worker to read; a start of a job is one.
const OUTBOX: usize = 1_024;
/// A worker that has connected says who it is in this time.
const REGISTER_DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct Workers {
    link: EngineLink,
}

impl Workers {
    pub(super) fn new(link: EngineLink) -> Workers {
        Workers { link }
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type JoinStream = ReceiverStream<Result<v1::SchedulerMessage, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(REGISTER_DEADLINE, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Register came"))??;
        let Some(Body::Register(register)) = first.and_then(|message| message.body) else {
            return Err(Status::failed_precondition("the first message must be Register"));
        };
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let sender = outbox.clone();
        let link = self.link.clone();
        let (node, session) =
            link.ask(|reply| Message::Join(Box::new(register), sender, reply)).await?;
        tokio::spawn(async move {
            let status = listen(&link, &mut inbound, &node, session).await;
            if let Err(status) = status {
                outbox.try_send(Err(status)).ok();
            }
            link.logs.close(session);
            link.send(Message::Left { node, session }).await.ok();
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Takes in what a worker says, until its stream ends.
async fn listen(
    link: &EngineLink,
    inbound: &mut Streaming<v1::WorkerMessage>,
    node: &crate::core::NodeName,
    session: u64,
) -> Result<(), Status> {
    // A broken stream is how nodes vanish; the lease takes care of it.
    while let Ok(Some(message)) = inbound.message().await {
        let said = match message.body.ok_or_else(|| missing("body"))? {
            Body::Register(_) => {
                return Err(Status::failed_precondition("Register comes once"));
            }
            Body::Heartbeat(heartbeat) => Said::Heartbeat(heartbeat),
            Body::AttemptStarted(started) => {
                Said::Started(JobId(started.job), Attempt(started.attempt))
            }
            Body::AttemptEnded(ended) => {
                let mut outcome = ended.outcome.ok_or_else(|| missing("outcome"))?;
                let last = outcome.progress.take();
                let outcome = convert::outcome(outcome)?;
                Said::Ended {
                    job: JobId(ended.job),
                    attempt: Attempt(ended.attempt),
                    outcome,
                    last,
                }
            }
            Body::LogChunk(chunk) => {
                logs::route(&link.logs, session, chunk).await;
                continue;
            }
        };
        link.send(Message::Worker { node: node.clone(), session, said }).await?;
    }
    Ok(())
}
