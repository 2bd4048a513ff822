//! The people's side: every call is a command to the engine, or a look at its state.

use super::link::{EngineLink, Message, Submission};
use super::logs::LogRoutes;
use super::refuse::{self, missing};
use super::view::View;
use super::{convert, watch};
use crate::core::{Amount, Command, NodeName, Quota, QuotaKey, Refusal};
use crate::store::EventFilter;
use lampyris_proto::v1::scheduler_service_server::SchedulerService;
use lampyris_proto::{JobId, v1};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Entries of a page.
const MAX_PAGE: usize = 1_000;
/// Streams of people, in all.
const MAX_WATCHERS: usize = 1_024;

pub(super) struct Api {
    link: EngineLink,
    watchers: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(link: EngineLink) -> Api {
        Api { link, watchers: Arc::new(Semaphore::new(MAX_WATCHERS)) }
    }

    fn watcher(&self) -> Result<OwnedSemaphorePermit, Status> {
        let permit = Arc::clone(&self.watchers).try_acquire_owned();
        permit.map_err(|_| Status::resource_exhausted("too many open streams: try again"))
    }

    async fn on_job(&self, job: u64, command: Command) -> Result<Response<v1::Job>, Status> {
        let id = JobId(job);
        let job = self.link.ask(|reply| Message::OnJob(command, id, reply)).await?;
        Ok(Response::new(job))
    }

    async fn on_node(&self, node: String, command: Command) -> Result<Response<v1::Node>, Status> {
        self.link.ask(|reply| Message::Other(command, reply)).await?;
        self.node(node).await
    }

    async fn node(&self, name: String) -> Result<Response<v1::Node>, Status> {
        let name = NodeName(name);
        let wanted = name.clone();
        let node =
            self.link.read(move |view| view.core.node(&wanted).map(|node| view.node(node))).await?;
        let refusal = Refusal::NoSuchNode(name);
        node.map(Response::new).ok_or_else(|| refuse::of_refusal(&refusal))
    }
}

fn no_such_job(job: u64) -> Status {
    refuse::of_refusal(&Refusal::NoSuchJob(JobId(job)))
}

fn page_size(wished: u32) -> usize {
    if wished == 0 { MAX_PAGE } else { (wished as usize).min(MAX_PAGE) }
}

fn bad_token() -> Status {
    Status::invalid_argument("page_token: not one of ours")
}

/// Whether a job is wanted.
pub(super) fn matches(job: &v1::Job, filter: &v1::JobFilter) -> bool {
    let Some(spec) = &job.spec else { return false };
    let run_dir = job.run.as_ref().map_or("", |run| &run.run_dir);
    (filter.states.is_empty() || filter.states.contains(&job.state))
        && (filter.user.is_empty() || filter.user == spec.user)
        && (filter.group.is_empty() || filter.group == spec.group)
        && (filter.jobs.is_empty() || filter.jobs.contains(&job.id))
        && (filter.run_dir.is_empty() || filter.run_dir == run_dir)
}

fn check_run(run: &v1::RunSpec) -> Result<(), Status> {
    let bad = |text: &str| Err(Status::invalid_argument(text));
    for (field, path) in [("run.run_dir", &run.run_dir), ("run.dataset", &run.dataset)] {
        if !path.starts_with('/') || path.len() > 4096 {
            return bad(&format!("{field}: must be an absolute path"));
        }
    }
    if run.ranks_per_node == 0 {
        return bad("run.ranks_per_node: must be at least 1");
    }
    if run.build_id.is_empty() || run.build_id.len() > 64 {
        return bad("run.build_id: required");
    }
    Ok(())
}

fn quota_key(user: String, priority: i32, group: String) -> Result<QuotaKey, Status> {
    if user.is_empty() || group.is_empty() {
        return Err(missing("user and group"));
    }
    let priority = convert::priority(priority)?;
    Ok(QuotaKey { user, priority, group })
}

fn to_quota(quota: &Quota) -> v1::Quota {
    v1::Quota {
        user: quota.key.user.clone(),
        priority: convert::to_priority(quota.key.priority).into(),
        group: quota.key.group.clone(),
        nodes: quota.limit.nodes,
        devices: quota.limit.slots,
    }
}

fn event_filter(job: u64, node: String) -> EventFilter {
    EventFilter {
        job: (job != 0).then_some(JobId(job)),
        node: (!node.is_empty()).then_some(NodeName(node)),
    }
}

fn list_jobs(view: &View, request: &v1::ListJobsRequest) -> Result<v1::ListJobsResponse, Status> {
    let before = match request.page_token.as_str() {
        "" => u64::MAX,
        token => token.parse().map_err(|_| bad_token())?,
    };
    let filter = request.filter.clone().unwrap_or_default();
    let size = page_size(request.page_size);
    let mut page = v1::ListJobsResponse::default();
    for job in view.core.jobs_newest_first() {
        let shown = view.job_for_filter(job);
        if !matches(&shown, &filter) {
            continue;
        }
        page.total_size += 1;
        if job.id.0 < before && page.jobs.len() < size {
            page.jobs.push(view.job(job, false));
        } else if job.id.0 < before && page.next_page_token.is_empty() {
            page.next_page_token = page.jobs.last().map_or(0, |job| job.id).to_string();
        }
    }
    Ok(page)
}

fn list_nodes(view: &View, request: &v1::ListNodesRequest) -> v1::ListNodesResponse {
    let wanted = |node: &&crate::core::Node| {
        request.group.is_empty() || node.capacity.group == request.group
    };
    let mut nodes: Vec<_> = view.core.nodes().iter().filter(wanted).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let total_size = nodes.len() as u64;
    let rest = nodes.into_iter().filter(|node| node.name.0.as_str() > request.page_token.as_str());
    let size = page_size(request.page_size);
    let mut page: Vec<_> = rest.take(size + 1).collect();
    let more = page.len() > size;
    page.truncate(size);
    let last = page.last().map(|node| node.name.0.clone()).unwrap_or_default();
    let next_page_token = if more { last } else { String::new() };
    let nodes = page.into_iter().map(|node| view.node(node)).collect();
    v1::ListNodesResponse { nodes, next_page_token, total_size }
}

#[tonic::async_trait]
impl SchedulerService for Api {
    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let request = request.into_inner();
        let run = request.run.ok_or_else(|| missing("run"))?;
        check_run(&run)?;
        let submission = Box::new(Submission {
            request_id: request.request_id,
            spec: convert::spec(request.spec.ok_or_else(|| missing("spec"))?)?,
            run,
            validate_only: request.validate_only,
        });
        let job = self.link.ask(|reply| Message::Submit(submission, reply)).await?;
        Ok(Response::new(job))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let job = request.into_inner().job;
        let found = self.link.read(move |view| view.job_by_id(JobId(job), true)).await?;
        found.map(Response::new).ok_or_else(|| no_such_job(job))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let request = request.into_inner();
        let page = self.link.read(move |view| list_jobs(view, &request)).await??;
        Ok(Response::new(page))
    }

    type WatchJobsStream = ReceiverStream<Result<v1::WatchJobsResponse, Status>>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let permit = self.watcher()?;
        let filter = request.into_inner().filter.unwrap_or_default();
        let (sender, receiver) = mpsc::channel(watch::WAITING);
        let link = self.link.clone();
        tokio::spawn(async move {
            watch::jobs(link, filter, sender).await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let job = request.into_inner().job;
        let ended = move |view: &View| {
            view.core
                .job(JobId(job))
                .filter(|job| job.state.is_terminal())
                .map(|job| view.job(job, true))
        };
        if let Some(job) = self.link.read(ended).await? {
            return Ok(Response::new(job));
        }
        self.on_job(job, Command::Cancel { job: JobId(job) }).await
    }

    async fn suspend_job(
        &self,
        request: Request<v1::SuspendJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let job = request.into_inner().job;
        self.on_job(job, Command::Suspend { job: JobId(job) }).await
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let job = request.into_inner().job;
        self.on_job(job, Command::Resume { job: JobId(job) }).await
    }

    type ReadLogsStream = ReceiverStream<Result<v1::ReadLogsResponse, Status>>;

    async fn read_logs(
        &self,
        request: Request<v1::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let permit = self.watcher()?;
        let request = request.into_inner();
        let routes: Arc<LogRoutes> = self.link.logs.clone();
        let read = self.link.ask(|reply| Message::ReadLog(request, routes, reply)).await?;
        let (sender, receiver) = mpsc::channel(watch::WAITING);
        let link = self.link.clone();
        tokio::spawn(async move {
            super::logs::pass_on(&link, read, sender).await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type WatchProgressStream = ReceiverStream<Result<v1::WatchProgressResponse, Status>>;

    async fn watch_progress(
        &self,
        request: Request<v1::WatchProgressRequest>,
    ) -> Result<Response<Self::WatchProgressStream>, Status> {
        let permit = self.watcher()?;
        let job = request.into_inner().job;
        if !self.link.read(move |view| view.core.job(JobId(job)).is_some()).await? {
            return Err(no_such_job(job));
        }
        let (sender, receiver) = mpsc::channel(watch::WAITING);
        let link = self.link.clone();
        tokio::spawn(async move {
            watch::progress(link, JobId(job), sender).await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_node(
        &self,
        request: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        self.node(request.into_inner().node).await
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.link.read(move |view| list_nodes(view, &request)).await?))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let v1::DrainNodeRequest { node, suspend_jobs } = request.into_inner();
        let name = NodeName(node.clone());
        self.on_node(node, Command::Drain { node: name, suspend_jobs }).await
    }

    async fn resume_node(
        &self,
        request: Request<v1::ResumeNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let node = request.into_inner().node;
        self.on_node(node.clone(), Command::ResumeNode { node: NodeName(node) }).await
    }

    async fn list_quotas(
        &self,
        request: Request<v1::ListQuotasRequest>,
    ) -> Result<Response<v1::ListQuotasResponse>, Status> {
        let request = request.into_inner();
        let from: usize = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| bad_token())?,
        };
        let size = page_size(request.page_size);
        let mut quotas = self.link.read(|view| view.core.quotas().collect::<Vec<_>>()).await?;
        quotas.sort_by(|a, b| {
            let key = |q: &Quota| (q.key.group.clone(), q.key.user.clone(), q.key.priority);
            key(a).cmp(&key(b))
        });
        let more = quotas.len() > from.saturating_add(size);
        let next_page_token = if more { (from + size).to_string() } else { String::new() };
        let quotas = quotas.iter().skip(from).take(size).map(to_quota).collect();
        Ok(Response::new(v1::ListQuotasResponse { quotas, next_page_token }))
    }

    async fn set_quota(
        &self,
        request: Request<v1::SetQuotaRequest>,
    ) -> Result<Response<v1::Quota>, Status> {
        let quota = request.into_inner().quota.ok_or_else(|| missing("quota"))?;
        let key = quota_key(quota.user, quota.priority, quota.group)?;
        let quota = Quota { key, limit: Amount { nodes: quota.nodes, slots: quota.devices } };
        let shown = to_quota(&quota);
        self.link.ask(|reply| Message::Other(Command::SetQuota(quota), reply)).await?;
        Ok(Response::new(shown))
    }

    async fn delete_quota(
        &self,
        request: Request<v1::DeleteQuotaRequest>,
    ) -> Result<Response<v1::DeleteQuotaResponse>, Status> {
        let v1::DeleteQuotaRequest { user, priority, group } = request.into_inner();
        let key = quota_key(user, priority, group)?;
        self.link.ask(|reply| Message::Other(Command::RemoveQuota(key), reply)).await?;
        Ok(Response::new(v1::DeleteQuotaResponse {}))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let request = request.into_inner();
        let after: u64 = match request.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| bad_token())?,
        };
        let size = page_size(request.page_size) as u32;
        let filter = event_filter(request.job, request.node);
        let newest = request.newest;
        let read = move |view: &View| match newest {
            true => view.store.newest_events(&filter, size),
            false => view.store.events(&filter, after, size),
        };
        let rows = self.link.read(read).await?.map_err(|error| refuse::of_error(&error))?;
        let more = !newest && rows.len() as u32 == size;
        let last = rows.last().map(|row| row.sequence.to_string()).unwrap_or_default();
        let next_page_token = if more { last } else { String::new() };
        let events = rows.into_iter().map(watch::event).collect();
        Ok(Response::new(v1::ListEventsResponse { events, next_page_token }))
    }

    type WatchEventsStream = ReceiverStream<Result<v1::Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let permit = self.watcher()?;
        let v1::WatchEventsRequest { after, job, node } = request.into_inner();
        let filter = event_filter(job, node);
        let (sender, receiver) = mpsc::channel(watch::WAITING);
        let link = self.link.clone();
        tokio::spawn(async move {
            watch::events(link, filter, after, sender).await;
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
