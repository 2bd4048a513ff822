//! The people's side: every call is a command to the engine, or a look at its state.

use super::door::{Origin, Peer, StreamPlace};
use super::filter::Filter;
use super::link::{EngineLink, Message, Submission};
use super::logs::LogRoutes;
use super::refuse::{self, missing};
use super::view::View;
use super::{accounts, check, convert, pages, watch};
use crate::core::{Amount, Command, NodeName, Quota, QuotaKey, Refusal};
use crate::limits;
use lampyris_proto::v1::scheduler_service_server::SchedulerService;
use lampyris_proto::{JobId, v1};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub(super) struct Api {
    link: EngineLink,
}

/// A place for the stream that a request opens.
fn stream_place<T>(request: &Request<T>) -> Result<StreamPlace, Status> {
    peer(request)?.stream()
}

impl Api {
    pub(super) fn new(link: EngineLink) -> Api {
        Api { link }
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
        check::name("node", &name)?;
        let name = NodeName(name);
        let wanted = name.clone();
        let node =
            self.link.read(move |view| view.core.node(&wanted).map(|node| view.node(node))).await?;
        let refusal = Refusal::NoSuchNode(name);
        node.map(Response::new).ok_or_else(|| refuse::of_refusal(&refusal))
    }
}

/// Who makes a call.
pub(super) fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request.extensions().get().ok_or_else(|| Status::internal("a call from nowhere"))
}

/// What is submitted, checked; `user` is who does it, where that is known better than by the request.
pub(super) fn submission(
    request: v1::SubmitJobRequest,
    user: Option<String>,
) -> Result<Submission, Status> {
    let run = request.run.ok_or_else(|| missing("run"))?;
    let mut spec = convert::spec(request.spec.ok_or_else(|| missing("spec"))?)?;
    check::run(&run, spec.nodes.first().copied().unwrap_or(1))?;
    spec.user = user.unwrap_or(spec.user);
    let v1::SubmitJobRequest { request_id, validate_only, .. } = request;
    Ok(Submission { request_id, spec, run, validate_only })
}

fn no_such_job(job: u64) -> Status {
    refuse::of_refusal(&Refusal::NoSuchJob(JobId(job)))
}

fn quota_key(user: String, priority: i32, group: String) -> Result<QuotaKey, Status> {
    if user.is_empty() || group.is_empty() {
        return Err(missing("user and group"));
    }
    let priority = convert::priority(priority)?;
    Ok(QuotaKey { user, priority, group })
}

/// A quota as the core has it; the core looks at its words.
pub(super) fn quota(quota: v1::Quota) -> Result<Quota, Status> {
    let key = quota_key(quota.user, quota.priority, quota.group)?;
    Ok(Quota { key, limit: Amount { nodes: quota.nodes, slots: quota.devices } })
}

pub(super) fn to_quota(quota: &Quota) -> v1::Quota {
    v1::Quota {
        user: quota.key.user.clone(),
        priority: convert::to_priority(quota.key.priority).into(),
        group: quota.key.group.clone(),
        nodes: quota.limit.nodes,
        devices: quota.limit.slots,
    }
}

#[tonic::async_trait]
impl SchedulerService for Api {
    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let user = match peer(&request)?.origin() {
            // The kernel knows better than the client.
            Origin::User(uid) => Some(accounts::name_of(uid)),
            Origin::Machine(_) => None,
        };
        let submission = Box::new(submission(request.into_inner(), user)?);
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
        let filter = Filter::new(request.filter.clone().unwrap_or_default())?;
        let page = self.link.read(move |view| pages::jobs(view, &request, &filter)).await??;
        Ok(Response::new(page))
    }

    type WatchJobsStream = ReceiverStream<Result<v1::WatchJobsResponse, Status>>;

    async fn watch_jobs(
        &self,
        request: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let place = stream_place(&request)?;
        let filter = Filter::new(request.into_inner().filter.unwrap_or_default())?;
        let (sender, receiver) = mpsc::channel(limits::WAITING);
        let link = self.link.clone();
        tokio::spawn(async move {
            watch::jobs(link, filter, sender).await;
            drop(place);
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
        let place = stream_place(&request)?;
        let request = request.into_inner();
        let routes: Arc<LogRoutes> = self.link.logs.clone();
        let read = self.link.ask(|reply| Message::ReadLog(request, routes, reply)).await?;
        let (sender, receiver) = mpsc::channel(limits::WAITING);
        let link = self.link.clone();
        tokio::spawn(async move {
            super::logs::pass_on(&link, read, sender).await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type WatchProgressStream = ReceiverStream<Result<v1::WatchProgressResponse, Status>>;

    async fn watch_progress(
        &self,
        request: Request<v1::WatchProgressRequest>,
    ) -> Result<Response<Self::WatchProgressStream>, Status> {
        let place = stream_place(&request)?;
        let job = request.into_inner().job;
        if !self.link.read(move |view| view.core.job(JobId(job)).is_some()).await? {
            return Err(no_such_job(job));
        }
        // One may be as large as a message can be.
        let (sender, receiver) = mpsc::channel(1);
        let link = self.link.clone();
        tokio::spawn(async move {
            watch::progress(link, JobId(job), sender).await;
            drop(place);
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
        Ok(Response::new(self.link.read(move |view| pages::nodes(view, &request)).await?))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let v1::DrainNodeRequest { node, suspend_jobs, by_host } = request.into_inner();
        let name = NodeName(node.clone());
        self.on_node(node, Command::Drain { node: name, suspend_jobs, by_host }).await
    }

    async fn resume_node(
        &self,
        request: Request<v1::ResumeNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let v1::ResumeNodeRequest { node, only_host } = request.into_inner();
        let name = NodeName(node.clone());
        self.on_node(node, Command::ResumeNode { node: name, only_host }).await
    }

    async fn list_quotas(
        &self,
        request: Request<v1::ListQuotasRequest>,
    ) -> Result<Response<v1::ListQuotasResponse>, Status> {
        let request = request.into_inner();
        let quotas = self.link.read(|view| view.core.quotas().collect::<Vec<_>>()).await?;
        pages::quotas(quotas, &request, to_quota).map(Response::new)
    }

    async fn set_quota(
        &self,
        request: Request<v1::SetQuotaRequest>,
    ) -> Result<Response<v1::Quota>, Status> {
        let quota = quota(request.into_inner().quota.ok_or_else(|| missing("quota"))?)?;
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
        let page = self.link.read(move |view| pages::events(view, request)).await??;
        Ok(Response::new(page))
    }

    type WatchEventsStream = ReceiverStream<Result<v1::Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let place = stream_place(&request)?;
        let v1::WatchEventsRequest { after, job, node } = request.into_inner();
        let filter = pages::event_filter(job, node)?;
        let (sender, receiver) = mpsc::channel(limits::WAITING);
        let link = self.link.clone();
        tokio::spawn(async move {
            watch::events(link, filter, after, sender).await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
