//! What is believed of what workers say, and how much of a cluster one answer shows.

use super::*;
use crate::limits;

fn attempt_progress(ranks: Vec<v1::RankProgress>) -> Up {
    let figures = Some(v1::StepFigures { loss: 6.66, ..v1::StepFigures::default() });
    let progress = v1::Progress { step: 9, figures, ranks, ..v1::Progress::default() };
    let attempts = vec![v1::AttemptProgress { job: 1, attempt: 1, progress: Some(progress) }];
    Up::Heartbeat(v1::Heartbeat { sequence: 1, attempts })
}

fn rank(rank: u64) -> v1::RankProgress {
    let operation = "x".repeat(1_000);
    v1::RankProgress { rank, operation, ..v1::RankProgress::default() }
}

async fn shown(client: &mut Client) -> v1::Progress {
    let job = client.get_job(v1::GetJobRequest { job: 1 }).await.expect("known").into_inner();
    job.progress.expect("set")
}

#[tokio::test]
async fn a_worker_speaks_for_its_own_jobs_and_ranks_alone() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(options(home.path()));
    let mut client = daemon.client().await;
    client.submit_job(wish("a")).await.expect("accepted");
    let mut worker = Worker::join(&daemon.address, Vec::new()).await;
    worker.told().await;
    worker.started(1).await;
    job_in(&mut client, 1, v1::JobState::Running).await;
    let mut other = Worker::join_as(&daemon.address, "n2", "", Vec::new()).await.expect("joins");
    other.say(attempt_progress(vec![rank(0)])).await;
    assert!(matches!(other.told_of_heartbeat().await, 1));
    let seen = shown(&mut client).await;
    assert_eq!((seen.step, seen.figures, seen.ranks.len()), (0, None, 0));
    // The job has two ranks; a thousand and one that never were are not kept.
    worker.say(attempt_progress((0..1_000).chain([u64::MAX]).map(rank).collect())).await;
    assert!(matches!(worker.told_of_heartbeat().await, 1));
    let seen = shown(&mut client).await;
    assert_eq!((seen.step, seen.ranks.len()), (9, 2));
    let first = &seen.ranks[0];
    assert_eq!((first.node.as_str(), first.operation.len()), ("n1", limits::OPERATION_BYTES));
    daemon.stop().await;
}

#[tokio::test]
async fn a_second_worker_of_a_name_is_refused_and_a_restarted_one_takes_over() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(options(home.path()));
    let first = Worker::join_as(&daemon.address, "n1", "first", Vec::new()).await.expect("joins");
    let refused = Worker::join_as(&daemon.address, "n1", "second", Vec::new()).await;
    let status = refused.err().expect("refused");
    assert_eq!(status.code(), Code::AlreadyExists);
    for named in ["place of first (instance first)", "place of second (instance second)", "--name"]
    {
        assert!(status.message().contains(named), "{named} in {}", status.message());
    }
    let mut again = Worker::join_as(&daemon.address, "n1", "first", Vec::new()).await.expect("in");
    let mut first = first;
    assert_eq!(first.down.message().await.expect_err("ended").code(), Code::Aborted);
    again.say(Up::Heartbeat(v1::Heartbeat { sequence: 4, attempts: Vec::new() })).await;
    assert_eq!(again.told_of_heartbeat().await, 4);
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_registration_says_has_bounds() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(options(home.path()));
    let many = (0..limits::REPORTED_ATTEMPTS as u64).map(|job| v1::ReportedAttempt {
        job,
        attempt: 1,
        outcome: None,
    });
    let mut too_many: Vec<v1::ReportedAttempt> = many.collect();
    too_many.push(v1::ReportedAttempt::default());
    let refused = Worker::join_as(&daemon.address, "n1", "", too_many.clone()).await;
    let status = refused.err().expect("refused");
    assert!(status.message().starts_with("attempts: "), "{status}");
    too_many.pop();
    // As many as it may say are answered one by one: the worker is not cut off for them.
    let mut worker = Worker::join_as(&daemon.address, "n1", "", too_many).await.expect("joins");
    for _ in 0..limits::REPORTED_ATTEMPTS {
        assert!(matches!(worker.told().await, Down::KillAttempt(_)));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn long_jobs_come_in_pages_and_in_pieces() {
    const JOBS: u64 = 400;
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(options(home.path()));
    let mut client = daemon.client().await;
    let long = "x".repeat(3_700);
    for index in 0..JOBS {
        let mut long_wish = wish(&format!("r{index}"));
        let run = long_wish.run.as_mut().expect("set");
        (run.run_dir, run.dataset) = (format!("/{index}/{long}"), format!("/{long}"));
        client.submit_job(long_wish).await.expect("accepted");
    }
    let (mut seen, mut page_token, mut pages) = (0, String::new(), 0);
    loop {
        let request = v1::ListJobsRequest { page_token, page_size: 500, filter: None };
        let page = client.list_jobs(request).await.expect("below 4 MiB").into_inner();
        assert_eq!(page.total_size, JOBS);
        (seen, pages) = (seen + page.jobs.len() as u64, pages + 1);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, JOBS);
    assert!(pages > 1);
    let watch = client.watch_jobs(v1::WatchJobsRequest::default()).await.expect("opens");
    let mut watch = watch.into_inner();
    for expected in 1..=JOBS {
        let job = watch.message().await.expect("no error").expect("open").job.expect("set");
        assert_eq!(job.id, expected);
    }
    let states = vec![v1::JobState::Queued.into()];
    let filter = Some(v1::JobFilter { states, jobs: vec![7], ..v1::JobFilter::default() });
    let watch = client.watch_jobs(v1::WatchJobsRequest { filter }).await.expect("opens");
    let mut watch = watch.into_inner();
    client.cancel_job(v1::CancelJobRequest { job: 7 }).await.expect("cancelled");
    let mut last = v1::JobState::Unspecified;
    while last != v1::JobState::Cancelled {
        let job = watch.message().await.expect("no error").expect("open").job.expect("set");
        assert_eq!(job.id, 7);
        last = job.state();
    }
    daemon.stop().await;
}

#[test]
fn one_look_is_bounded() {
    let home = tempfile::tempdir().expect("a folder");
    let store = Store::open(home.path()).expect("opens");
    let mut engine = Engine::new(Policy::default(), store, None).expect("loads");
    for index in 0..limits::JOBS_PER_LOOK as u64 * 2 {
        let spec = convert::spec(wish("a").spec.expect("set")).expect("good");
        let command = crate::core::Command::Submit { request_id: format!("r{index}"), spec };
        engine
            .view
            .core
            .step(crate::core::Time(0), crate::core::Event::Command { ticket: 0, command });
    }
    let view = &engine.view;
    let nobody = v1::JobFilter { user: "nobody".into(), ..v1::JobFilter::default() };
    let nobody = filter::Filter::new(nobody).expect("good");
    let look = pages::look_at_all(view, &nobody, JobId(0));
    assert_eq!((look.jobs.len(), look.next), (0, Some(JobId(limits::JOBS_PER_LOOK as u64))));
    let everybody = filter::Filter::default();
    let look = pages::look_at_all(view, &everybody, JobId(0));
    let bytes: usize = look.jobs.iter().map(prost::Message::encoded_len).sum();
    assert!(look.next.is_some() && bytes <= limits::LOOK_BYTES + 1_000, "{bytes}");
}
