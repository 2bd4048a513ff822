//! Lists come in pages, and streams look in pieces: both end after so many entries or bytes, whichever comes first.

use super::filter::Filter;
use super::view::View;
use super::{check, watch};
use crate::core::Quota;
use crate::limits;
use crate::store::{EventFilter, EventRow};
use lampyris_proto::{JobId, v1};
use prost::Message;
use std::collections::BTreeSet;
use tonic::Status;

/// A part of a list that grows until it is full.
struct Page<T> {
    entries: Vec<T>,
    bytes: usize,
    most: usize,
}

impl<T: Message> Page<T> {
    fn new(wished: u32) -> Page<T> {
        let wished = usize::try_from(wished).unwrap_or(usize::MAX);
        let most = if wished == 0 { limits::PAGE } else { wished.min(limits::PAGE) };
        Page { entries: Vec::new(), bytes: 0, most }
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.most || self.bytes >= limits::PAGE_BYTES
    }

    fn push(&mut self, entry: T) {
        self.bytes = self.bytes.saturating_add(entry.encoded_len());
        self.entries.push(entry);
    }
}

/// A token that says where the next page begins.
fn number<T: std::str::FromStr>(token: &str, first: T) -> Result<T, Status> {
    match token {
        "" => Ok(first),
        token => token.parse().map_err(|_| check::bad("page_token", "not one of ours")),
    }
}

pub(super) fn jobs(
    view: &View,
    request: &v1::ListJobsRequest,
    filter: &Filter,
) -> Result<v1::ListJobsResponse, Status> {
    let before: u64 = number(&request.page_token, u64::MAX)?;
    let mut page = Page::new(request.page_size);
    let (mut total_size, mut next_page_token) = (0_u64, String::new());
    let mut last = 0;
    for job in view.core.jobs_newest_first().filter(|job| filter.matches(view, job)) {
        total_size = total_size.saturating_add(1);
        if job.id.0 >= before {
            continue;
        }
        if !page.is_full() {
            last = job.id.0;
            page.push(view.job(job, false));
        } else if next_page_token.is_empty() {
            next_page_token = last.to_string();
        }
    }
    Ok(v1::ListJobsResponse { jobs: page.entries, next_page_token, total_size })
}

pub(super) fn nodes(view: &View, request: &v1::ListNodesRequest) -> v1::ListNodesResponse {
    let wanted = |node: &&crate::core::Node| {
        request.group.is_empty() || node.capacity.group == request.group
    };
    let total_size = view.core.nodes().iter().filter(wanted).count() as u64;
    let mut page = Page::new(request.page_size);
    let (mut next_page_token, mut last) = (String::new(), None);
    for node in view.core.nodes_by_name(&request.page_token).filter(wanted) {
        if page.is_full() {
            next_page_token =
                last.map(|name: &crate::core::NodeName| name.0.clone()).unwrap_or_default();
            break;
        }
        last = Some(&node.name);
        page.push(view.node(node));
    }
    v1::ListNodesResponse { nodes: page.entries, next_page_token, total_size }
}

pub(super) fn quotas(
    mut quotas: Vec<Quota>,
    request: &v1::ListQuotasRequest,
    to_quota: fn(&Quota) -> v1::Quota,
) -> Result<v1::ListQuotasResponse, Status> {
    let from: usize = number(&request.page_token, 0)?;
    quotas.sort_by_cached_key(|q| (q.key.group.clone(), q.key.user.clone(), q.key.priority));
    let mut page = Page::new(request.page_size);
    let mut next_page_token = String::new();
    for (index, quota) in quotas.iter().enumerate().skip(from) {
        if page.is_full() {
            next_page_token = index.to_string();
            break;
        }
        page.push(to_quota(quota));
    }
    Ok(v1::ListQuotasResponse { quotas: page.entries, next_page_token })
}

/// What of the history is asked for.
pub(super) fn event_filter(job: u64, node: String) -> Result<EventFilter, Status> {
    if !node.is_empty() {
        check::name("node", &node)?;
    }
    Ok(EventFilter {
        job: (job != 0).then_some(JobId(job)),
        node: (!node.is_empty()).then_some(crate::core::NodeName(node)),
    })
}

pub(super) fn events(
    view: &View,
    request: v1::ListEventsRequest,
) -> Result<v1::ListEventsResponse, Status> {
    let after: u64 = number(&request.page_token, 0)?;
    let filter = event_filter(request.job, request.node)?;
    let mut page = Page::new(request.page_size);
    let size = u32::try_from(page.most).unwrap_or(u32::MAX);
    let failed = |error| super::refuse::of_error(&error);
    if request.newest {
        // The newest are the ones that are wanted: what does not fit is at the other end.
        let rows = view.store.newest_events(&filter, size).map_err(failed)?;
        fill(&mut page, rows.into_iter().rev());
        page.entries.reverse();
        let next_page_token = String::new();
        return Ok(v1::ListEventsResponse { events: page.entries, next_page_token });
    }
    let rows = view.store.events(&filter, after, size).map_err(failed)?;
    fill(&mut page, rows.into_iter());
    let last = page.entries.last().map(|event| event.sequence.to_string()).unwrap_or_default();
    let next_page_token = if page.is_full() { last } else { String::new() };
    Ok(v1::ListEventsResponse { events: page.entries, next_page_token })
}

fn fill(page: &mut Page<v1::Event>, rows: impl Iterator<Item = EventRow>) {
    for row in rows {
        if page.is_full() {
            return;
        }
        page.push(watch::event(row));
    }
}

/// A piece of what a stream shows.
pub(super) struct Look {
    pub(super) jobs: Vec<v1::Job>,
    /// Where to go on, if there is more.
    pub(super) next: Option<JobId>,
}

/// Jobs above `after` that match.
pub(super) fn look_at_all(view: &View, filter: &Filter, after: JobId) -> Look {
    let (mut jobs, mut bytes, mut last) = (Vec::new(), 0_usize, after);
    for (looked, job) in view.core.jobs_after(after).enumerate() {
        if looked >= limits::JOBS_PER_LOOK || bytes >= limits::LOOK_BYTES {
            return Look { jobs, next: Some(last) };
        }
        last = job.id;
        if filter.matches(view, job) {
            let shown = view.job(job, false);
            bytes = bytes.saturating_add(shown.encoded_len());
            jobs.push(shown);
        }
    }
    Look { jobs, next: None }
}

/// Jobs of `ids` above `after` that match; those in `shown` in any state, and without `shown` all of them.
pub(super) fn look_at_some(
    view: &View,
    filter: &Filter,
    (ids, shown): (&BTreeSet<JobId>, Option<&BTreeSet<JobId>>),
    after: JobId,
) -> Look {
    use std::ops::Bound::{Excluded, Unbounded};
    let (mut jobs, mut bytes, mut last) = (Vec::new(), 0_usize, after);
    for (looked, id) in ids.range((Excluded(after), Unbounded)).enumerate() {
        if looked >= limits::JOBS_PER_LOOK || bytes >= limits::LOOK_BYTES {
            return Look { jobs, next: Some(last) };
        }
        last = *id;
        let Some(job) = view.core.job(*id) else { continue };
        let state = shown.is_none_or(|shown| shown.contains(id)) || filter.wants_state(job.state);
        if state && filter.wants(view, job) {
            let message = view.job(job, false);
            bytes = bytes.saturating_add(message.encoded_len());
            jobs.push(message);
        }
    }
    Look { jobs, next: None }
}
