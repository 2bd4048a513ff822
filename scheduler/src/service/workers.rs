//! The workers' side: one stream per node, from its registration to its end.

use super::api::peer;
use super::link::{EngineLink, Message, Said};
use super::refuse::missing;
use super::{check, convert, logs};
use crate::limits;
use lampyris_proto::v1::worker_message::Body;
use lampyris_proto::v1::worker_service_server::WorkerService;
use lampyris_proto::{Attempt, JobId, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

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
        let peer = peer(&request)?.clone();
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(limits::REGISTER_DEADLINE, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Register came"))??;
        let Some(Body::Register(register)) = first.and_then(|message| message.body) else {
            return Err(Status::failed_precondition("the first message must be Register"));
        };
        let (outbox, messages) = mpsc::channel(limits::OUTBOX);
        let sender = outbox.clone();
        let link = self.link.clone();
        let (node, session) =
            link.ask(|reply| Message::Join(Box::new(register), sender, reply)).await?;
        let place = peer.as_worker();
        tokio::spawn(async move {
            let status = listen(&link, &mut inbound, &node, session).await;
            if let Err(status) = status {
                outbox.try_send(Err(status)).ok();
            }
            link.logs.close(session);
            link.send(Message::Left { node, session }).await.ok();
            drop(place);
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
    let mut patience = limits::SLOW_READERS;
    // A broken stream is how nodes vanish; the lease takes care of it.
    while let Ok(Some(message)) = inbound.message().await {
        let message = match message.body {
            Some(Body::LogChunk(mut chunk)) => {
                check::log_chunk(&mut chunk)?;
                logs::route(&link.logs, session, chunk, &mut patience).await;
                continue;
            }
            body => v1::WorkerMessage { body },
        };
        let Some(said) = said(message)? else { continue };
        if matches!(said, Said::Heartbeat(_)) {
            patience = limits::SLOW_READERS;
        }
        let leaves = matches!(said, Said::Left);
        link.send(Message::Worker { node: node.clone(), session, said }).await?;
        if leaves {
            return Ok(());
        }
    }
    Ok(())
}

/// What the engine hears of a message; nothing of a log, which goes to its reader.
pub(super) fn said(message: v1::WorkerMessage) -> Result<Option<Said>, Status> {
    Ok(Some(match message.body.ok_or_else(|| missing("body"))? {
        Body::Register(_) => return Err(Status::failed_precondition("Register comes once")),
        Body::Heartbeat(heartbeat) => {
            check::heartbeat(&heartbeat)?;
            Said::Heartbeat(heartbeat)
        }
        Body::AttemptStarted(started) => {
            Said::Started(JobId(started.job), Attempt(started.attempt))
        }
        Body::AttemptEnded(ended) => {
            let mut outcome = ended.outcome.ok_or_else(|| missing("outcome"))?;
            let last = outcome.progress.take();
            Said::Ended {
                job: JobId(ended.job),
                attempt: Attempt(ended.attempt),
                outcome: convert::outcome(outcome)?,
                last,
            }
        }
        Body::Leave(_) => Said::Left,
        Body::LogChunk(_) => return Ok(None),
    }))
}
