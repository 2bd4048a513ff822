//! Streams of changes. A slow reader gets the newest state of a job, not every one.

use super::filter::Filter;
use super::link::EngineLink;
use super::pages;
use super::view::View;
use crate::limits;
use crate::store::{EventFilter, EventRow};
use lampyris_proto::{JobId, v1};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

/// Sends jobs that match: all as they are, then each after every change. Ends when the reader goes.
pub(super) async fn jobs(
    link: EngineLink,
    filter: Filter,
    sender: mpsc::Sender<Result<v1::WatchJobsResponse, Status>>,
) {
    let mut changes = link.changes();
    // States are looked at when the stream begins; a job that was shown stays in view.
    let mut shown = filter.has_states().then(BTreeSet::new);
    let mut due: Option<Arc<BTreeSet<JobId>>> = None;
    loop {
        let mut after = Some(JobId(0));
        while let Some(begin) = after {
            let (wanted, ids) = (filter.clone(), due.clone());
            let known = of_those(due.as_deref(), shown.as_ref());
            let read = move |view: &View| match ids {
                None => pages::look_at_all(view, &wanted, begin),
                Some(ids) => pages::look_at_some(view, &wanted, (&ids, known.as_ref()), begin),
            };
            let Ok(look) = link.read(read).await else { return };
            after = look.next;
            for job in look.jobs {
                if let Some(known) = &mut shown {
                    known.insert(JobId(job.id));
                }
                shown = shown.filter(|known| known.len() <= limits::SHOWN_JOBS);
                if sender.send(Ok(v1::WatchJobsResponse { job: Some(job) })).await.is_err() {
                    return;
                }
            }
        }
        due = tokio::select! {
            next = next(&mut changes) => match next {
                Ok(next) => next.map(Arc::new),
                Err(()) => return,
            },
            () = sender.closed() => return,
        };
    }
}

/// Those of `due` that were shown; none at all if it does not matter.
fn of_those(
    due: Option<&BTreeSet<JobId>>,
    shown: Option<&BTreeSet<JobId>>,
) -> Option<BTreeSet<JobId>> {
    let shown = shown?;
    Some(due?.iter().filter(|id| shown.contains(id)).copied().collect())
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
        let read = Instant::now();
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
        tokio::select! {
            () = tokio::time::sleep(limits::PROGRESS_PERIOD.saturating_sub(read.elapsed())) => {}
            () = sender.closed() => return,
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
        let read =
            link.read(move |view| view.store.events(&wanted, after, limits::EVENTS_PER_LOOK)).await;
        let rows = match read {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => {
                sender.send(Err(super::refuse::of_error(&error))).await.ok();
                return;
            }
            Err(_) => return,
        };
        let full = rows.len() as u32 == limits::EVENTS_PER_LOOK;
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
