//! The daemon over real sockets, with scripted workers.

mod beliefs;
mod crowd;
mod fuzz;
mod protection;

use super::*;
use crate::core::{JobSpec, Priority};
use lampyris_proto::JobId;
use lampyris_proto::v1::scheduler_message::Body as Down;
use lampyris_proto::v1::scheduler_service_client::SchedulerServiceClient;
use lampyris_proto::v1::worker_message::Body as Up;
use lampyris_proto::v1::worker_service_client::WorkerServiceClient;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

type Client = SchedulerServiceClient<Channel>;

/// A daemon on a free port of the loopback interface.
struct Daemon {
    address: String,
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Daemon {
    fn start(options: Options) -> Daemon {
        Daemon::start_with(options, Places::for_files(1_024))
    }

    fn start_with(options: Options, places: Places) -> Daemon {
        let service = options.build_with(places).expect("builds");
        let address = service.handle().address().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(service.run(async {
            stopped.await.ok();
        }));
        Daemon { address, stop, done }
    }

    async fn client(&self) -> Client {
        Client::connect(self.address.clone()).await.expect("connects")
    }

    async fn stop(self) {
        self.stop.send(()).expect("runs");
        self.done.await.expect("no panic").expect("stops well");
    }
}

fn options(home: &std::path::Path) -> Options {
    let loopback = Address::Tcp(([127, 0, 0, 1], 0).into());
    let mut options = Options::new(home.to_owned(), loopback);
    options.policy.lease_ms = 2_000;
    options
}

/// A worker that does as the test says.
struct Worker {
    up: mpsc::Sender<v1::WorkerMessage>,
    down: Streaming<v1::SchedulerMessage>,
}

impl Worker {
    async fn join(address: &str, attempts: Vec<v1::ReportedAttempt>) -> Worker {
        Worker::join_as(address, "n1", "", attempts).await.expect("joins")
    }

    async fn join_as(
        address: &str,
        node: &str,
        instance: &str,
        attempts: Vec<v1::ReportedAttempt>,
    ) -> Result<Worker, tonic::Status> {
        let (up, messages) = mpsc::channel(16);
        let mut client = WorkerServiceClient::connect(address.to_owned()).await.expect("connects");
        let capacity = v1::Capacity { group: "main".into(), devices: 4, ..Default::default() };
        let register = v1::Register {
            node: node.into(),
            instance: instance.into(),
            place: format!("place of {instance}"),
            boot_id: "b".into(),
            capacity: Some(capacity),
            attempts,
            ..Default::default()
        };
        say(&up, Up::Register(register)).await;
        let down = client.join(ReceiverStream::new(messages)).await?.into_inner();
        let mut worker = Worker { up, down };
        let first = worker.hear().await;
        assert!(matches!(first, Down::Registered(ref r) if r.lease_ms == 2_000), "{first:?}");
        Ok(worker)
    }

    /// The sequence of the next heartbeat that is answered.
    async fn told_of_heartbeat(&mut self) -> u64 {
        loop {
            if let Down::HeartbeatAck(ack) = self.hear().await {
                return ack.sequence;
            }
        }
    }

    async fn say(&self, body: Up) {
        say(&self.up, body).await;
    }

    async fn hear(&mut self) -> Down {
        let next = tokio::time::timeout(Duration::from_secs(10), self.down.message()).await;
        next.expect("in time").expect("no error").expect("open").body.expect("not empty")
    }

    /// The next message that is not about heartbeats.
    async fn told(&mut self) -> Down {
        loop {
            match self.hear().await {
                Down::HeartbeatAck(_) => {}
                other => return other,
            }
        }
    }

    async fn started(&self, attempt: u64) {
        self.say(Up::AttemptStarted(v1::AttemptStarted { job: 1, attempt })).await;
    }

    async fn ended(&self, attempt: u64, kind: v1::outcome::Kind) {
        let outcome = Some(v1::Outcome { kind: Some(kind), progress: None });
        self.say(Up::AttemptEnded(v1::AttemptEnded { job: 1, attempt, outcome })).await;
    }
}

async fn say(up: &mpsc::Sender<v1::WorkerMessage>, body: Up) {
    up.send(v1::WorkerMessage { body: Some(body) }).await.expect("open");
}

fn wish(request_id: &str) -> v1::SubmitJobRequest {
    let spec = v1::JobSpec {
        name: "first".into(),
        user: "ann".into(),
        group: "main".into(),
        nodes: vec![1],
        max_retries: 2,
        ..Default::default()
    };
    v1::SubmitJobRequest {
        request_id: request_id.into(),
        spec: Some(spec),
        run: Some(run(request_id)),
        validate_only: false,
    }
}

fn run(name: &str) -> v1::RunSpec {
    v1::RunSpec {
        run_dir: format!("/runs/{name}"),
        dataset: "/data".into(),
        ranks_per_node: 2,
        build_id: "0123".into(),
        ..Default::default()
    }
}

/// The job once it is in `state`.
async fn job_in(client: &mut Client, job: u64, state: v1::JobState) -> v1::Job {
    let filter = Some(v1::JobFilter { jobs: vec![job], ..Default::default() });
    let watch = client.watch_jobs(v1::WatchJobsRequest { filter }).await.expect("watches");
    let mut watch = watch.into_inner();
    let wait = async {
        loop {
            let job = watch.message().await.expect("no error").expect("open").job.expect("set");
            if job.state() == state {
                return job;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time")
}

#[tokio::test]
async fn a_job_from_submit_to_finish_over_a_restart() {
    let home = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(options(home.path()));
    let mut client = daemon.client().await;
    let job = client.submit_job(wish("a")).await.expect("accepted").into_inner();
    let again = client.submit_job(wish("a")).await.expect("the same").into_inner();
    assert_eq!((job.id, again.id), (1, 1));
    let mut worker = Worker::join(&daemon.address, Vec::new()).await;
    let Down::StartAttempt(start) = worker.told().await else { panic!("a start") };
    assert_eq!((start.job, start.attempt, start.nodes), (1, 1, vec!["n1".to_owned()]));
    assert_eq!(start.run, Some(run("a")));
    worker.started(1).await;
    job_in(&mut client, 1, v1::JobState::Running).await;
    let figures = Some(v1::StepFigures { loss: 2.5, ..Default::default() });
    let ranks = vec![v1::RankProgress { rank: 1, step: 7, ..Default::default() }];
    let progress = v1::Progress { step: 7, figures, ranks, ..Default::default() };
    let attempts = vec![v1::AttemptProgress { job: 1, attempt: 1, progress: Some(progress) }];
    worker.say(Up::Heartbeat(v1::Heartbeat { sequence: 5, attempts })).await;
    assert!(matches!(worker.hear().await, Down::HeartbeatAck(ack) if ack.sequence == 5));
    let seen = client.get_job(v1::GetJobRequest { job: 1 }).await.expect("known").into_inner();
    let seen = seen.progress.expect("set");
    assert_eq!((seen.step, seen.figures.expect("set").loss, seen.ranks.len()), (7, 2.5, 1));
    daemon.stop().await;

    let daemon = Daemon::start(options(home.path()));
    let mut client = daemon.client().await;
    let found = client.get_job(v1::GetJobRequest { job: 1 }).await.expect("kept").into_inner();
    assert_eq!(found.state(), v1::JobState::Running, "{found:?}");
    let running = v1::ReportedAttempt { job: 1, attempt: 1, outcome: None };
    let mut worker = Worker::join(&daemon.address, vec![running]).await;
    worker.ended(1, v1::outcome::Kind::Finished(v1::outcome::Finished {})).await;
    assert!(matches!(worker.told().await, Down::ForgetAttempt(f) if f.attempt == 1));
    let done = job_in(&mut client, 1, v1::JobState::Succeeded).await;
    assert!(done.end_time.is_some() && done.members.is_empty());
    let request = v1::ListEventsRequest { job: 1, ..Default::default() };
    let events = client.list_events(request).await.expect("kept").into_inner().events;
    let codes: Vec<&str> =
        events.iter().filter_map(|e| e.reason.as_ref()).map(|r| r.code.as_str()).collect();
    assert_eq!(codes, ["submitted", "placed", "started", "finished"]);
    daemon.stop().await;
}

#[tokio::test]
async fn suspend_resume_cancel_drain_and_what_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(options(home.path()));
    let mut client = daemon.client().await;
    client.submit_job(wish("a")).await.expect("accepted");
    let other = v1::SubmitJobRequest { request_id: "b".into(), ..wish("a") };
    let refused = client.submit_job(other).await.expect_err("the run directory is taken");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let other = v1::SubmitJobRequest { run: Some(run("b")), ..wish("a") };
    let refused = client.submit_job(other).await.expect_err("the request id is taken");
    assert_eq!(refused.code(), Code::AlreadyExists);
    let mut bad = wish("c");
    bad.spec.as_mut().expect("set").nodes.clear();
    let refused = client.submit_job(bad).await.expect_err("no nodes");
    assert!(refused.code() == Code::InvalidArgument && refused.message().starts_with("nodes:"));
    let refused = client.get_job(v1::GetJobRequest { job: 9 }).await.expect_err("unknown");
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "there is no job 9"));

    let mut worker = Worker::join(&daemon.address, Vec::new()).await;
    worker.told().await;
    worker.started(1).await;
    job_in(&mut client, 1, v1::JobState::Running).await;
    client.suspend_job(v1::SuspendJobRequest { job: 1 }).await.expect("asked");
    assert!(matches!(worker.told().await, Down::SuspendAttempt(s) if s.attempt == 1));
    let suspended = v1::outcome::Suspended { stay_stopped: true };
    worker.ended(1, v1::outcome::Kind::Suspended(suspended)).await;
    let job = job_in(&mut client, 1, v1::JobState::Suspended).await;
    assert_eq!(job.wanted(), v1::Wanted::Suspended);
    worker.told().await;
    let drain = v1::DrainNodeRequest { node: "n1".into(), suspend_jobs: true, by_host: false };
    let node = client.drain_node(drain).await.expect("drains").into_inner();
    assert!(node.draining && node.reason.expect("set").text.contains("nothing runs"));
    let resumed = client.resume_job(v1::ResumeJobRequest { job: 1 }).await.expect("resumed");
    let why = resumed.into_inner().reason.expect("set");
    assert_eq!(why.code, "too_large", "{}", why.text);
    client
        .resume_node(v1::ResumeNodeRequest { node: "n1".into(), only_host: false })
        .await
        .expect("back");
    assert!(matches!(worker.told().await, Down::StartAttempt(s) if s.attempt == 2));
    client.cancel_job(v1::CancelJobRequest { job: 1 }).await.expect("asked");
    assert!(matches!(worker.told().await, Down::KillAttempt(k) if k.attempt == 2));
    worker.ended(2, v1::outcome::Kind::Killed(v1::outcome::Killed {})).await;
    job_in(&mut client, 1, v1::JobState::Cancelled).await;
    daemon.stop().await;
}

#[tokio::test]
async fn logs_pass_through_by_offset() {
    let home = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(options(home.path()));
    let mut client = daemon.client().await;
    client.submit_job(wish("a")).await.expect("accepted");
    let mut worker = Worker::join(&daemon.address, Vec::new()).await;
    worker.told().await;
    let request = v1::ReadLogsRequest { job: 1, rank: 1, offset: 3, ..Default::default() };
    let mut logs = client.read_logs(request).await.expect("opens").into_inner();
    let Down::ReadLog(read) = worker.told().await else { panic!("a request") };
    assert_eq!((read.rank, read.offset, read.run), (1, 3, Some(run("a"))));
    for (offset, text) in [(3, "one\n"), (7, "two\n")] {
        let data = text.as_bytes().to_vec();
        let chunk = v1::LogChunk { id: read.id, offset, data, ..Default::default() };
        worker.say(Up::LogChunk(chunk)).await;
    }
    let end = v1::LogChunk { id: read.id, end: true, ..Default::default() };
    worker.say(Up::LogChunk(end)).await;
    let mut text = Vec::new();
    while let Some(part) = logs.message().await.expect("no error") {
        assert_eq!(part.offset, 3 + text.len() as u64);
        text.extend(part.data);
    }
    assert_eq!(text, b"one\ntwo\n");
    let missing = v1::ReadLogsRequest { job: 1, attempt: 4, ..Default::default() };
    assert_eq!(client.read_logs(missing).await.expect_err("no such").code(), Code::NotFound);
    daemon.stop().await;
}

#[tokio::test]
async fn a_second_connection_of_a_node_ends_the_first() {
    let home = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(options(home.path()));
    let mut first = Worker::join(&daemon.address, Vec::new()).await;
    let _second = Worker::join(&daemon.address, Vec::new()).await;
    let ended = first.down.message().await.expect_err("an error");
    assert_eq!(ended.code(), Code::Aborted);
    daemon.stop().await;
}

#[tokio::test]
async fn addresses_are_protected() {
    let home = tempfile::tempdir().expect("a directory");
    let everywhere = Address::Tcp(([0, 0, 0, 0], 0).into());
    let open = Options { listen: everywhere.clone(), ..options(home.path()) };
    assert!(matches!(open.build(), Err(Error::Unprotected { .. })));
    let insecure = Options { listen: everywhere, insecure: true, ..options(home.path()) };
    drop(insecure.build().expect("as it was asked for"));

    for guessed in ["", "short", "0123456789 abcdef"] {
        let weak = Options { token: Some(guessed.into()), ..options(home.path()) };
        assert!(matches!(weak.build(), Err(Error::Token { .. })), "{guessed:?}");
    }
    let mut endless = options(home.path());
    endless.policy.lease_ms = 0;
    assert!(matches!(endless.build(), Err(Error::Policy { .. })));
    let daemon =
        Daemon::start(Options { token: Some("0123456789abcdef".into()), ..options(home.path()) });
    let mut client = daemon.client().await;
    let refused = client.get_job(v1::GetJobRequest { job: 1 }).await.expect_err("no token");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut request = tonic::Request::new(v1::GetJobRequest { job: 1 });
    request
        .metadata_mut()
        .insert("authorization", "Bearer 0123456789abcdef".parse().expect("ascii"));
    assert_eq!(client.get_job(request).await.expect_err("no job").code(), Code::NotFound);
    daemon.stop().await;

    let socket = home.path().join("socket");
    let daemon =
        Daemon::start(Options { listen: Address::Unix(socket.clone()), ..options(home.path()) });
    assert_eq!(daemon.address, format!("unix:{}", socket.display()));
    let mut client = daemon.client().await;
    assert_eq!(
        client.get_job(v1::GetJobRequest { job: 1 }).await.expect_err("no job").code(),
        Code::NotFound
    );
    daemon.stop().await;
}

#[tokio::test]
async fn health_follows_recovery() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let home = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(options(home.path()));
    let _worker = Worker::join(&daemon.address, Vec::new()).await;
    daemon.stop().await;
    let daemon = Daemon::start(options(home.path()));
    let endpoint = tonic::transport::Endpoint::from_shared(daemon.address.clone()).expect("a URL");
    let mut health = HealthClient::new(endpoint.connect().await.expect("connects"));
    let request = HealthCheckRequest { service: String::new() };
    let mut shown = health.watch(request).await.expect("watches").into_inner();
    let mut statuses = Vec::new();
    // A node is missing: not serving until its lease has passed.
    while statuses.last() != Some(&1) {
        let status = tokio::time::timeout(Duration::from_secs(10), shown.message()).await;
        statuses.push(status.expect("in time").expect("no error").expect("open").status);
    }
    assert!(statuses.contains(&2), "{statuses:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let store = Store::open(home.path()).expect("opens");
    store.limit_pages(40);
    let engine = Engine::new(Policy::default(), store, None).expect("loads");
    let (link, _ended) = engine.spawn();
    let submit = |index: u64| {
        let spec = JobSpec {
            name: "x".repeat(100),
            user: "ann".into(),
            group: "main".into(),
            priority: Priority::Normal,
            nodes: vec![1],
            devices_per_node: None,
            max_runtime_ms: None,
            max_retries: 0,
            hang_timeout_ms: None,
            restart_on_hang: false,
        };
        let request_id = format!("r{index}");
        let (run, validate_only) = (run(&request_id), false);
        let submission = link::Submission { request_id, spec, run, validate_only };
        link.ask(|reply| link::Message::Submit(Box::new(submission), reply))
    };
    let mut accepted = 0;
    let refused = loop {
        match submit(accepted).await {
            Ok(job) => accepted = job.id,
            Err(status) => break status,
        }
        assert!(accepted < 2_000, "the disk is never full");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("free some space"), "{}", refused.message());
    let kept = link.read(|view| view.core.jobs_after(JobId(0)).count() as u64).await;
    assert_eq!(kept.expect("still reads"), accepted);
    assert!(!*link.serving().borrow());
    link.close();
}
