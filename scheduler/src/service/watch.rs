//! Streams of changes. A slow reader gets the newest state of a job, not every one.

use super::api::matches;
use super::link::EngineLink;
use super::view::View;
use crate::store::{EventFilter, EventRow};
use lampyris_proto::{JobId, v1};
use std::collections::BTreeSet;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, watch};
use tonic::Status;

/// Messages that wait for a reader.
pub(super) const WAITING: usize = 16;
/// Lines of history read at once.
const PAGE: u32 = 500;

/// Sends jobs that match: all as they are, then each after every change. Ends when the reader goes.
pub(super) async fn jobs(
    link: EngineLink,
    filter: v1::JobFilter,
    sender: mpsc::Sender<Result<v1::WatchJobsResponse, Status>>,
) {
    let mut changes = link.changes();
    let mut known: BTreeSet<JobId> = BTreeSet::new();
    let mut due: Option<BTreeSet<JobId>> = None;
    loop {
        let wanted = filter.clone();
        let read = move |view: &View| match due {
            None => all(view, &wanted),
            Some(ids) => ids.iter().filter_map(|id| view.job_by_id(*id, false)).collect(),
        };
        let Ok(jobs) = link.read::<Vec<v1::Job>>(read).await else { return };
        for job in jobs {
            // States are looked at when the stream begins; a job that was shown stays in view.
            let id = JobId(job.id);
            let shown = known.contains(&id) || matches(&job, &filter);
            if shown {
                known.insert(id);
                if sender.send(Ok(v1::WatchJobsResponse { job: Some(job) })).await.is_err() {
                    return;
                }
            }
        }
        due = tokio::select! {
            next = next(&mut changes) => match next {
                Ok(next) => next,
                Err(()) => return,
            },
            () = sender.closed() => return,
        };
    }
}

fn all(view: &View, filter: &v1::JobFilter) -> Vec<v1::Job> {
    let jobs = view.core.jobs_after(JobId(0)).map(|job| view.job(job, false));
    jobs.filter(|job| matches(job, filter)).collect()
}

/// Everything that has changed since; `None` if that is more than can be told.
async fn next(changes: &mut broadcast::Receiver<JobId>) -> Result<Option<BTreeSet<JobId>>, ()> {
    let mut ids = match changes.recv().await {
        Ok(id) => BTreeSet::from([id]),
        Err(RecvError::Lagged(_)) => return Ok(None),
        Err(RecvError::Closed) => return Err(()),
    };
    loop {
        match changes.try_recv() {
            Ok(id) => {
                ids.insert(id);
            }
            Err(TryRecvError::Lagged(_)) => return Ok(None),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(Some(ids)),
        }
    }
}

/// Sends one job whenever heartbeats or decisions bring news, until it has ended.
pub(super) async fn progress(
    link: EngineLink,
    id: JobId,
    sender: mpsc::Sender<Result<v1::WatchProgressResponse, Status>>,
) {
    let (mut progress, mut changes) = (link.progress(), link.changes());
    loop {
        let Ok(Some(job)) = link.read(move |view| view.job_by_id(id, true)).await else { return };
        let over = job.end_time.is_some();
        let sent = sender.send(Ok(v1::WatchProgressResponse { job: Some(job) })).await;
        if over || sent.is_err() {
            return;
        }
        loop {
            let news = tokio::select! {
                news = next(&mut progress) => news,
                news = next(&mut changes) => news,
                () = sender.closed() => return,
            };
            match news {
                Ok(Some(ids)) if !ids.contains(&id) => {}
                Ok(_) => break,
                Err(()) => return,
            }
        }
    }
}

/// Sends history as it is written.
pub(super) async fn events(
    link: EngineLink,
    filter: EventFilter,
    mut after: u64,
    sender: mpsc::Sender<Result<v1::Event, Status>>,
) {
    let mut last = link.last_event();
    loop {
        let wanted = filter.clone();
        let until = *last.borrow_and_update();
        let read = link.read(move |view| view.store.events(&wanted, after, PAGE)).await;
        let rows = match read {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => {
                sender.send(Err(super::refuse::of_error(&error))).await.ok();
                return;
            }
            Err(_) => return,
        };
        let full = rows.len() as u32 == PAGE;
        for row in rows {
            after = row.sequence;
            if sender.send(Ok(event(row))).await.is_err() {
                return;
            }
        }
        if full {
            continue;
        }
        after = after.max(until);
        tokio::select! {
            changed = last.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

/// A line of history as a message.
pub(super) fn event(row: EventRow) -> v1::Event {
    use crate::core::Subject;
    let subject = match row.record.subject {
        Subject::Job(job) => v1::event::Subject::Job(job.0),
        Subject::Node(node) => v1::event::Subject::Node(node.0),
    };
    v1::Event {
        sequence: row.sequence,
        time: Some(super::clock::timestamp(row.wall_ms)),
        reason: Some(super::convert::to_reason(&row.record.reason)),
        subject: Some(subject),
    }
}

/// Shows whether the scheduler serves: not while nodes report after a restart, not while its disk is full.
pub(super) async fn report_health(
    health: tonic_health::server::HealthReporter,
    mut serving: watch::Receiver<bool>,
) {
    use tonic_health::ServingStatus;
    loop {
        let status = match *serving.borrow_and_update() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for service in ["", "lampyris.v1.SchedulerService", "lampyris.v1.WorkerService"] {
            health.set_service_status(service, status).await;
        }
        if serving.changed().await.is_err() {
            return;
        }
    }
}
