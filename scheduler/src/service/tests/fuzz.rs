//! Fuzzing of every message that the scheduler takes in, from its bytes through the checks into the core and the database
//! (`testdata/corpus`).

use super::*;
use crate::core::NodeName;
use crate::store::EventFilter;
use prost::Message as _;
use std::path::PathBuf;
use tonic::Status;

/// A scheduler without a network, a job on a node, and a worker that speaks.
struct Target {
    engine: Engine,
    session: u64,
    fed: usize,
    _home: tempfile::TempDir,
    _outbox: mpsc::Receiver<Result<v1::SchedulerMessage, Status>>,
}

impl Target {
    fn new() -> Target {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::open(home.path()).expect("opens");
        let mut engine = Engine::new(Policy::default(), store, None).expect("loads");
        let (outbox, receiver) = mpsc::channel(limits::OUTBOX);
        let (reply, mut joined) = oneshot::channel();
        let submission = v1::SubmitJobRequest::decode(sample("submit_job").as_slice());
        submit(&mut engine, submission.expect("a sample"));
        let register = v1::Register::decode(sample("register").as_slice()).expect("a sample");
        engine.take(link::Message::Join(Box::new(register), outbox, reply));
        engine.finish_batch().expect("commits");
        let (_, session) = joined.try_recv().expect("answered").expect("is let in");
        Target { engine, session, fed: 0, _home: home, _outbox: receiver }
    }

    /// Feeds one input; whatever it is, nothing panics.
    fn feed(&mut self, message: &str, input: &[u8]) {
        match message {
            "submit_job" => decoded(input, |request| submit(&mut self.engine, request)),
            "list_jobs" => decoded(input, |request: v1::ListJobsRequest| {
                let asked = request.filter.clone().unwrap_or_default();
                if let Ok(filter) = filter::Filter::new(asked) {
                    pages::jobs(&self.engine.view, &request, &filter).ok();
                    pages::look_at_all(&self.engine.view, &filter, JobId(0));
                }
            }),
            "list_nodes" => decoded(input, |request: v1::ListNodesRequest| {
                pages::nodes(&self.engine.view, &request);
            }),
            "list_quotas" => decoded(input, |request: v1::ListQuotasRequest| {
                let quotas = self.engine.view.core.quotas().collect();
                pages::quotas(quotas, &request, api::to_quota).ok();
            }),
            "list_events" => decoded(input, |request: v1::ListEventsRequest| {
                pages::events(&self.engine.view, request).ok();
            }),
            "set_quota" => decoded(input, |request: v1::SetQuotaRequest| {
                if let Some(Ok(quota)) = request.quota.map(api::quota) {
                    self.command(crate::core::Command::SetQuota(quota));
                }
            }),
            "read_logs" => decoded(input, |request: v1::ReadLogsRequest| {
                self.engine.read_log(&request, &logs::LogRoutes::default()).ok();
            }),
            "register" => decoded(input, |register: v1::Register| {
                let (outbox, _) = mpsc::channel(limits::OUTBOX);
                let (reply, _) = oneshot::channel();
                self.engine.take(link::Message::Join(Box::new(register), outbox, reply));
            }),
            "worker_message" => decoded(input, |message: v1::WorkerMessage| {
                if let Ok(Some(said)) = workers::said(message) {
                    let (node, session) = (NodeName("n1".into()), self.session);
                    self.engine.take(link::Message::Worker { node, session, said });
                }
            }),
            "row" => parse_row(input),
            other => panic!("no message {other}: corpus files are named MESSAGE-anything"),
        }
        self.fed += 1;
        if self.fed.is_multiple_of(500) {
            self.settle();
        }
    }

    fn command(&mut self, command: crate::core::Command) {
        let (reply, _) = oneshot::channel();
        self.engine.take(link::Message::Other(command, reply));
    }

    /// Makes it durable, and begins again from that.
    fn settle(&mut self) {
        self.engine.finish_batch().expect("commits");
        let loaded = self.engine.view.store.load().expect("reads its own rows");
        crate::core::Scheduler::restore(
            Policy::default(),
            self.engine.view.clock.now(),
            loaded.snapshot,
        );
        let events = self.engine.view.store.newest_events(&EventFilter::default(), 10);
        events.expect("reads its own rows");
    }
}

fn decoded<M: prost::Message + Default>(input: &[u8], take: impl FnOnce(M)) {
    if let Ok(message) = M::decode(input) {
        take(message);
    }
}

fn submit(engine: &mut Engine, request: v1::SubmitJobRequest) {
    if let Ok(submission) = api::submission(request, None) {
        let (reply, _) = oneshot::channel();
        engine.take(link::Message::Submit(Box::new(submission), reply));
    }
}

/// A job's row in the database, as somebody may have changed it.
fn parse_row(input: &[u8]) {
    let Ok(job) = serde_json::from_slice::<crate::core::Job>(input) else { return };
    let next_job = job.id.0.saturating_add(1);
    let snapshot =
        crate::core::Snapshot { next_job, jobs: vec![job], nodes: Vec::new(), quotas: Vec::new() };
    if snapshot.check().is_ok() {
        let now = crate::core::Time(5);
        let mut core = crate::core::Scheduler::restore(Policy::default(), now, snapshot);
        core.step(crate::core::Time(u64::MAX / 2), crate::core::Event::Tick);
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus")
}

fn sample(message: &str) -> Vec<u8> {
    let found = lampyris_fuzz::corpus(&folder()).into_iter().find(|(of, _)| of == message);
    found.unwrap_or_else(|| panic!("no {message} in the corpus")).1
}

fn run(time: Duration) {
    let mut target = Target::new();
    lampyris_fuzz::fuzz(&folder(), time, None, |message, input| {
        // Many jobs make every look slow; what they teach is learnt.
        if target.fed > 20_000 {
            target = Target::new();
        }
        target.feed(message, input);
    });
    target.settle();
}

#[test]
fn messages_survive_the_corpus_and_a_second_of_mutations() {
    run(Duration::from_secs(1));
}

#[test]
#[ignore = "long: ten minutes"]
fn messages_survive_ten_minutes_of_mutations() {
    run(Duration::from_secs(600));
}

/// Writes the corpus again, after a change of the messages; extreme values that once did harm are among it.
#[test]
#[ignore = "long: writes testdata/corpus"]
fn write_the_corpus() {
    let folder = folder();
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, bytes) in submissions().into_iter().chain(requests()).chain(words()) {
        std::fs::write(folder.join(name), bytes).expect("written");
    }
    let target = Target::new();
    let job = target.engine.view.core.job(JobId(1)).expect("submitted");
    let mut row = serde_json::to_value(job).expect("plain data");
    let write = |name: &str, row: &serde_json::Value| {
        std::fs::write(folder.join(name), row.to_string()).expect("written");
    };
    write("row-node_that_is_not", &row);
    row["members"] = serde_json::json!([]);
    row["attempt"] = u64::MAX.into();
    write("row-last_attempt", &row);
    row["attempt"] = 3.into();
    write("row-1", &row);
}

type Inputs = Vec<(&'static str, Vec<u8>)>;

fn submissions() -> Inputs {
    let changed = |change: &dyn Fn(&mut v1::JobSpec, &mut v1::RunSpec)| {
        let mut request = wish("b");
        change(request.spec.as_mut().expect("set"), request.run.as_mut().expect("set"));
        request.encode_to_vec()
    };
    vec![
        ("submit_job-1", wish("a").encode_to_vec()),
        ("submit_job-attempt_base", changed(&|_, run| run.attempt_base = u64::MAX)),
        ("submit_job-run_dir", changed(&|_, run| run.run_dir = "/x/../../etc".into())),
        (
            "submit_job-spans",
            changed(&|spec, _| {
                (spec.max_runtime_ms, spec.hang_timeout_ms) = (Some(u64::MAX), Some(u64::MAX));
                (spec.devices_per_node, spec.nodes) = (Some(u32::MAX), vec![u32::MAX, 1]);
            }),
        ),
    ]
}

fn requests() -> Inputs {
    let filter =
        v1::JobFilter { states: vec![1, -1], jobs: vec![1, u64::MAX], ..Default::default() };
    let (page_size, page_token) = (1, u64::MAX.to_string());
    let group = "main".to_owned();
    let jobs =
        v1::ListJobsRequest { page_size, filter: Some(filter), page_token: page_token.clone() };
    let nodes = v1::ListNodesRequest { page_size, page_token: "n".into(), group: group.clone() };
    let quotas = v1::ListQuotasRequest { page_size, page_token: page_token.clone() };
    let events = v1::ListEventsRequest { page_size, page_token, job: 1, ..Default::default() };
    let newest = v1::ListEventsRequest { node: "n1".into(), newest: true, ..Default::default() };
    let quota = v1::Quota { user: "*".into(), group, nodes: u32::MAX, devices: 1, priority: 3 };
    let logs =
        v1::ReadLogsRequest { job: 1, attempt: 0, rank: u64::MAX, offset: i64::MIN, follow: true };
    vec![
        ("list_jobs-1", jobs.encode_to_vec()),
        ("list_nodes-1", nodes.encode_to_vec()),
        ("list_quotas-1", quotas.encode_to_vec()),
        ("list_events-1", events.encode_to_vec()),
        ("list_events-2", newest.encode_to_vec()),
        ("set_quota-1", v1::SetQuotaRequest { quota: Some(quota) }.encode_to_vec()),
        ("read_logs-1", logs.encode_to_vec()),
    ]
}

/// What a worker says.
fn words() -> Inputs {
    let group = "main".to_owned();
    let capacity = v1::Capacity { group, devices: 8, zone: "z".into(), ..Default::default() };
    let rank = Some(u64::MAX);
    let failure = v1::Failure { message: "no".into(), class: 2, exit_code: Some(75), rank };
    let kind = Some(v1::outcome::Kind::Failed(failure));
    let ranks =
        vec![v1::RankProgress { rank: 1, operation: "saving".into(), ..Default::default() }];
    let progress = Some(v1::Progress { step: 7, save_ms: u64::MAX, ranks, ..Default::default() });
    let outcome = Some(v1::Outcome { kind, progress: progress.clone() });
    let attempts = vec![
        v1::ReportedAttempt { job: 9, attempt: u64::MAX, outcome: outcome.clone() },
        v1::ReportedAttempt { job: 8, attempt: 1, outcome: None },
    ];
    let register = v1::Register {
        node: "n1".into(),
        boot_id: "b".into(),
        instance: "i".into(),
        capacity: Some(capacity),
        ..Default::default()
    };
    let full = v1::Register { attempts, ..register.clone() };
    let say = |body| v1::WorkerMessage { body: Some(body) }.encode_to_vec();
    let (job, attempt) = (1, 1);
    let attempts = vec![v1::AttemptProgress { job, attempt, progress }];
    let heartbeat = v1::Heartbeat { sequence: 1, attempts };
    let chunk = v1::LogChunk { id: 1, offset: u64::MAX, data: vec![1], ..Default::default() };
    vec![
        ("register-1", register.encode_to_vec()),
        ("register-2", full.encode_to_vec()),
        ("worker_message-started", say(Up::AttemptStarted(v1::AttemptStarted { job, attempt }))),
        ("worker_message-ended", say(Up::AttemptEnded(v1::AttemptEnded { job, attempt, outcome }))),
        ("worker_message-heartbeat", say(Up::Heartbeat(heartbeat))),
        ("worker_message-log", say(Up::LogChunk(chunk))),
    ]
}
