//! Logs pass through: a reader's request goes to the worker of a node, whose chunks come back by number.

use super::link::{EngineLink, Message};
use crate::core::NodeName;
use crate::limits;
use lampyris_proto::v1;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Status;

pub(super) type Chunk = Result<v1::LogChunk, Status>;

/// Who reads what: by session of the worker and number of the request.
#[derive(Debug, Default)]
pub(super) struct LogRoutes {
    next: AtomicU64,
    readers: Mutex<HashMap<(u64, u64), mpsc::Sender<Chunk>>>,
}

impl LogRoutes {
    fn readers(&self) -> std::sync::MutexGuard<'_, HashMap<(u64, u64), mpsc::Sender<Chunk>>> {
        self.readers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A place for the chunks of a new request: its number, and where they come.
    pub(super) fn open(&self, session: u64) -> Result<(u64, mpsc::Receiver<Chunk>), Status> {
        let (sender, receiver) = mpsc::channel(limits::LOG_CHUNKS);
        let id = self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut readers = self.readers();
        if readers.len() >= limits::LOG_READERS {
            return Err(Status::resource_exhausted("too many logs are being read: try again"));
        }
        readers.insert((session, id), sender);
        Ok((id, receiver))
    }

    /// A request is over.
    pub(super) fn end(&self, session: u64, id: u64) {
        self.readers().remove(&(session, id));
    }

    /// The worker is gone: its readers hear of it.
    pub(super) fn close(&self, session: u64) {
        self.readers().retain(|(of, _), reader| {
            if *of == session {
                reader.try_send(Err(Status::unavailable("the node's connection is gone"))).ok();
            }
            *of != session
        });
    }
}

/// A log that is being read.
pub(super) struct LogRead {
    pub(super) node: NodeName,
    pub(super) session: u64,
    pub(super) id: u64,
    pub(super) attempt: u64,
    pub(super) chunks: mpsc::Receiver<Chunk>,
}

/// Passes a log on to its reader, and tells the worker when the reader is gone.
pub(super) async fn pass_on(
    link: &EngineLink,
    mut read: LogRead,
    sender: mpsc::Sender<Result<v1::ReadLogsResponse, Status>>,
) {
    let mut at = 0;
    loop {
        let chunk = tokio::select! {
            chunk = read.chunks.recv() => chunk,
            () = sender.closed() => break,
        };
        let chunk = match chunk {
            Some(Ok(chunk)) if chunk.error.is_empty() => chunk,
            Some(Ok(chunk)) => {
                sender.send(Err(Status::not_found(chunk.error))).await.ok();
                return;
            }
            Some(Err(status)) => {
                sender.send(Err(status)).await.ok();
                return;
            }
            None => {
                let text = format!("read too slowly: go on from offset {at}");
                sender.send(Err(Status::resource_exhausted(text))).await.ok();
                break;
            }
        };
        at = chunk.offset.saturating_add(chunk.data.len() as u64);
        if !chunk.data.is_empty() {
            let (attempt, offset, data) = (read.attempt, chunk.offset, chunk.data);
            let part = v1::ReadLogsResponse { attempt, offset, data };
            if sender.send(Ok(part)).await.is_err() {
                break;
            }
        }
        if chunk.end {
            return;
        }
    }
    link.logs.end(read.session, read.id);
    let LogRead { node, session, id, .. } = read;
    // A stopping engine needs no word.
    link.send(Message::StopLog { node, session, id }).await.ok();
}

/// Hands a chunk to its reader; a reader that is too slow is cut off. `patience` is how long the readers of this worker may
/// still hold up its heartbeats.
pub(super) async fn route(
    routes: &LogRoutes,
    session: u64,
    chunk: v1::LogChunk,
    patience: &mut Duration,
) {
    let id = chunk.id;
    let reader = routes.readers().get(&(session, id)).cloned();
    let Some(reader) = reader else { return };
    let ends = chunk.end || !chunk.error.is_empty();
    let begun = Instant::now();
    let sent = reader.send_timeout(Ok(chunk), limits::SLOW_READER.min(*patience)).await;
    *patience = patience.saturating_sub(begun.elapsed());
    if ends || sent.is_err() {
        routes.end(session, id);
    }
}
