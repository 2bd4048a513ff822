//! Jobs of the project's scheduler, over gRPC.

use super::{
    Backend, JobDetails, JobName, JobRow, LogSink, LogsWanted, Phase, RankRow, Wanted, local,
};
use crate::error::CliError;
use lampyris_proto::v1::scheduler_service_client::SchedulerServiceClient;
use lampyris_proto::v1::{self, JobState, Priority};
use lampyris_proto::{Attempt, Rank};
use lampyris_worker::client::{Authorized, Target};
use lampyris_worker::shim::log_name;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};

/// Longest time for one answer.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Jobs of a page.
const PAGE: u32 = 500;

/// A client of a scheduler, with the current thread's own small runtime.
pub(crate) struct Scheduler {
    runtime: Runtime,
    target: Target,
    client: SchedulerServiceClient<Authorized>,
}

impl Scheduler {
    /// Connects.
    pub(crate) fn connect(target: &Target) -> Result<Scheduler, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| CliError::Runtime { source })?;
        let client = runtime.block_on(target.scheduler())?;
        Ok(Scheduler { runtime, target: target.clone(), client })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        &self.target.address
    }

    /// Makes one call, with a deadline.
    pub(crate) fn call<Q, A, F>(&self, message: Q, method: F) -> Result<A, CliError>
    where
        F: AsyncFnOnce(
            SchedulerServiceClient<Authorized>,
            Request<Q>,
        ) -> Result<tonic::Response<A>, Status>,
    {
        let mut request = Request::new(message);
        request.set_timeout(CALL_LIMIT);
        let answer = self.runtime.block_on(method(self.client.clone(), request));
        answer.map(tonic::Response::into_inner).map_err(|status| self.refused(&status))
    }

    /// Reads a stream until it ends or `each` has enough.
    pub(crate) fn stream<Q, A, F>(
        &self,
        message: Q,
        method: F,
        each: &mut dyn FnMut(A) -> bool,
    ) -> Result<(), CliError>
    where
        F: AsyncFnOnce(
            SchedulerServiceClient<Authorized>,
            Request<Q>,
        ) -> Result<tonic::Response<tonic::Streaming<A>>, Status>,
    {
        let read = async {
            let mut stream = method(self.client.clone(), Request::new(message)).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                if !each(answer) {
                    break;
                }
            }
            Ok::<(), Status>(())
        };
        self.runtime.block_on(read).map_err(|status| self.refused(&status))
    }

    fn refused(&self, status: &Status) -> CliError {
        let address = self.target.address.clone();
        let what = status.message().to_string();
        // What the scheduler says itself has no source; a connection that broke has.
        let broken = std::error::Error::source(status).is_some();
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => CliError::SchedulerLost { address, what },
            _ if broken => CliError::SchedulerLost { address, what },
            _ => CliError::Refused { what },
        }
    }

    /// The number of the job that a person names, by itself or by its run directory.
    pub(crate) fn number(&self, job: &str) -> Result<u64, CliError> {
        let path = match JobName::parse(job) {
            JobName::Number(number) => return Ok(number),
            JobName::RunDir(path) => path,
            JobName::Slurm => job.into(),
        };
        let run_dir = absolute(&path);
        let filter = v1::JobFilter { run_dir, ..Default::default() };
        let request =
            v1::ListJobsRequest { filter: Some(filter), page_size: 1, ..Default::default() };
        let found =
            self.call(request, async |mut client, request| client.list_jobs(request).await)?;
        let none = || CliError::Refused { what: format!("no job has the run directory {job}") };
        found.jobs.first().map(|job| job.id).ok_or_else(none)
    }

    /// Whether it answers, and lets this person in.
    pub(crate) fn check_access(&self) -> Result<(), CliError> {
        let request = v1::ListJobsRequest { page_size: 1, ..Default::default() };
        self.call(request, async |mut client, request| client.list_jobs(request).await)?;
        Ok(())
    }

    /// One job.
    pub(crate) fn job(&self, job: u64) -> Result<v1::Job, CliError> {
        let request = v1::GetJobRequest { job };
        self.call(request, async |mut client, request| client.get_job(request).await)
    }
}

/// A path as every node sees it.
pub(crate) fn absolute(path: &Path) -> String {
    let path = path.canonicalize().or_else(|_| std::path::absolute(path));
    path.unwrap_or_default().to_string_lossy().into()
}

impl Backend for Scheduler {
    fn list(&self, wanted: &Wanted) -> Result<Vec<JobRow>, CliError> {
        let states = if wanted.all { Vec::new() } else { live_states() };
        let user = wanted.user.clone().unwrap_or_default();
        let filter = v1::JobFilter { states, user, ..Default::default() };
        let (mut rows, mut page_token) = (Vec::new(), String::new());
        loop {
            let filter = Some(filter.clone());
            let request = v1::ListJobsRequest { page_size: PAGE, page_token, filter };
            let page =
                self.call(request, async |mut client, request| client.list_jobs(request).await)?;
            rows.extend(page.jobs.iter().map(row));
            page_token = page.next_page_token;
            if page_token.is_empty() || rows.len() >= wanted.limit {
                rows.truncate(wanted.limit);
                return Ok(rows);
            }
        }
    }

    fn show(&self, job: &str) -> Result<JobDetails, CliError> {
        Ok(details(&self.job(self.number(job)?)?))
    }

    fn logs(&self, job: &str, wanted: &LogsWanted, out: LogSink<'_>) -> Result<(), CliError> {
        let job = self.number(job)?;
        let request = v1::ReadLogsRequest {
            job,
            attempt: wanted.attempt.unwrap_or(0),
            rank: wanted.rank,
            offset: wanted.offset,
            follow: wanted.follow,
        };
        let mut any = false;
        let mut each = |part: v1::ReadLogsResponse| {
            any = true;
            part.data.is_empty() || out(&part.data)
        };
        let read = async |mut client: SchedulerServiceClient<Authorized>, request| {
            client.read_logs(request).await
        };
        match self.stream(request, read, &mut each) {
            // Its node does not answer; the run directory may be seen from here.
            Err(CliError::SchedulerLost { .. } | CliError::Refused { .. }) if !any => {
                self.logs_of_run_dir(job, wanted, out)
            }
            other => other,
        }
    }

    fn stop(&self, job: &str) -> Result<String, CliError> {
        let job = self.number(job)?;
        let request = v1::CancelJobRequest { job };
        let now =
            self.call(request, async |mut client, request| client.cancel_job(request).await)?;
        Ok(said(&now))
    }

    fn suspend(&self, job: &str, _reason: &str) -> Result<String, CliError> {
        let job = self.number(job)?;
        let request = v1::SuspendJobRequest { job };
        let now =
            self.call(request, async |mut client, request| client.suspend_job(request).await)?;
        Ok(said(&now))
    }

    fn resume(&self, job: &str) -> Result<String, CliError> {
        let job = self.number(job)?;
        let request = v1::ResumeJobRequest { job };
        let now =
            self.call(request, async |mut client, request| client.resume_job(request).await)?;
        Ok(said(&now))
    }
}

impl Scheduler {
    fn logs_of_run_dir(
        &self,
        job: u64,
        wanted: &LogsWanted,
        out: LogSink<'_>,
    ) -> Result<(), CliError> {
        let now = self.job(job)?;
        let run = now.run.unwrap_or_default();
        let attempt = wanted.attempt.unwrap_or(now.attempt);
        let of_run = run.attempt_base.checked_add(attempt).map(Attempt);
        let of_run = of_run.ok_or_else(|| CliError::Refused {
            what: format!("job {} has had {} attempts", now.id, now.attempt),
        })?;
        let run_dir = PathBuf::from(run.run_dir);
        local::read_log(&run_dir, &log_name(Rank(wanted.rank), of_run), wanted, out, &|| {
            let job = self.job(job)?;
            Ok(job.members.is_empty() || phase(job.state()).is_final())
        })
    }
}

/// `job 3 is suspending: suspended by a person`.
fn said(job: &v1::Job) -> String {
    let reason = job.reason.clone().unwrap_or_default().text;
    format!("job {} is {}: {reason}", job.id, phase(job.state()).as_str())
}

fn live_states() -> Vec<i32> {
    use JobState as S;
    let live = [S::Queued, S::Starting, S::Running, S::Suspending, S::Stopping, S::Suspended];
    live.into_iter().map(i32::from).collect()
}

/// A state in the words of all backends.
pub(crate) fn phase(state: JobState) -> Phase {
    match state {
        JobState::Unspecified => Phase::Unknown,
        JobState::Queued => Phase::Queued,
        JobState::Starting => Phase::Starting,
        JobState::Running => Phase::Running,
        JobState::Suspending => Phase::Suspending,
        JobState::Stopping => Phase::Stopping,
        JobState::Suspended => Phase::Suspended,
        JobState::Succeeded => Phase::Succeeded,
        JobState::Failed => Phase::Failed,
        JobState::Cancelled => Phase::Cancelled,
    }
}

/// `above_normal` of PRIORITY_ABOVE_NORMAL.
pub(crate) fn priority_word(priority: Priority) -> String {
    let name = match priority {
        Priority::Unspecified => Priority::Normal,
        named => named,
    };
    name.as_str_name().trim_start_matches("PRIORITY_").to_lowercase()
}

/// The level of a word on the command line.
pub(crate) fn priority_of(word: &str) -> Option<Priority> {
    Priority::from_str_name(&format!("PRIORITY_{}", word.to_uppercase().replace('-', "_")))
        .filter(|priority| *priority != Priority::Unspecified)
}

fn row(job: &v1::Job) -> JobRow {
    let spec = job.spec.clone().unwrap_or_default();
    let progress = job.progress.clone().unwrap_or_default();
    let priority = priority_word(spec.priority());
    let wished = spec.nodes.first().copied().unwrap_or(1) as usize;
    let figures = progress.figures;
    JobRow {
        id: job.id.to_string(),
        name: spec.name,
        user: spec.user,
        phase: phase(job.state()),
        reason: job.reason.clone().unwrap_or_default().text,
        priority,
        nodes: if job.members.is_empty() { wished } else { job.members.len() } as u64,
        attempt: job.attempt,
        step: progress.step,
        total_steps: progress.total_steps,
        loss: figures.map(|figures| figures.loss),
        tokens_per_s: figures.map(|figures| figures.tokens_per_s),
        step_s: figures.map(|figures| figures.step_s),
        run_dir: job.run.clone().unwrap_or_default().run_dir.into(),
    }
}

/// A job in the words of all backends.
pub(crate) fn details(job: &v1::Job) -> JobDetails {
    let progress = job.progress.clone().unwrap_or_default();
    let rank = |rank: v1::RankProgress| RankRow {
        rank: rank.rank,
        node: rank.node,
        step: rank.step,
        operation: rank.operation,
        since_ms: rank.since_ms,
    };
    JobDetails {
        row: row(job),
        node_names: job.members.iter().map(|member| member.node.clone()).collect(),
        saved_step: progress.saved_step,
        failure: job.failure.clone().unwrap_or_default().message,
        ranks: progress.ranks.into_iter().map(rank).collect(),
    }
}
