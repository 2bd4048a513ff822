//! The database after crashes and on a full disk.

use super::*;
use crate::core::{
    Action, Capacity, Command, Event, JobSpec, NodeName, Place, Policy, Priority, Registration,
};
use std::fs;

fn spec(index: u64) -> JobSpec {
    JobSpec {
        name: format!("job {index}"),
        user: "ann".to_owned(),
        group: "main".to_owned(),
        priority: if index.is_multiple_of(3) { Priority::High } else { Priority::Low },
        nodes: vec![1],
        devices_per_node: None,
        max_runtime_ms: None,
        max_retries: 3,
        hang_timeout_ms: Some(1_000),
        restart_on_hang: true,
    }
}

fn happenings() -> Vec<Event> {
    let register = |index: u64| {
        let place = Place { zone: "z".to_owned(), switch: "s".to_owned() };
        Event::Registered(Registration {
            node: NodeName(format!("n{index}")),
            session: index + 1,
            boot_id: "b".to_owned(),
            instance: crate::core::Instance::default(),
            capacity: Capacity { group: "main".to_owned(), devices: 8, shared: false, place },
            attempts: Vec::new(),
        })
    };
    let submit = |index: u64| Event::Command {
        ticket: index,
        command: Command::Submit { request_id: format!("r{index}"), spec: spec(index) },
    };
    let suspend = |job| Event::Command { ticket: 0, command: Command::Suspend { job: JobId(job) } };
    let mut events: Vec<Event> = (0..3).map(register).collect();
    events.extend((0..8).map(submit));
    events.extend([suspend(2), suspend(7)]);
    events
}

fn run_spec(job: u64) -> RunSpec {
    RunSpec { run_dir: format!("/runs/{job}"), ranks_per_node: 2, ..RunSpec::default() }
}

/// Steps and commits one event, as the daemon does.
fn step(store: &mut Store, core: &mut Scheduler, now: u64, event: Event) -> Result<(), Error> {
    let actions = core.step(Time(now), event);
    let mut commit = Commit { changes: core.take_changes(), ..Commit::default() };
    for action in actions {
        match action {
            Action::Record(record) => commit.records.push((now as i64, record)),
            Action::Answer { answer: Ok(crate::core::Answer::Job(job)), .. } => {
                commit.runs.push((job, run_spec(job.0)));
            }
            _ => {}
        }
    }
    store.commit(core, Time(now), &commit)
}

/// A copy of the database as a crash would leave it.
fn crash(from: &Path, to: &Path, wal_bytes: Option<u64>) {
    fs::create_dir_all(to).expect("a fresh directory");
    fs::copy(from.join("scheduler.db"), to.join("scheduler.db")).expect("it exists");
    fs::copy(from.join("scheduler.db-wal"), to.join("scheduler.db-wal")).expect("it exists");
    if let Some(bytes) = wal_bytes {
        let wal = fs::OpenOptions::new().write(true).open(to.join("scheduler.db-wal"));
        wal.expect("just copied").set_len(bytes).expect("shorter");
    }
}

/// What survives: all but what is said again anyway.
fn durable(snapshot: &Snapshot) -> (u64, Vec<crate::core::Job>, Vec<(NodeName, bool)>) {
    let nodes = snapshot.nodes.iter().map(|node| (node.name.clone(), node.draining)).collect();
    (snapshot.next_job, snapshot.jobs.clone(), nodes)
}

#[test]
fn a_crash_after_any_commit_loses_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(&home.path().join("live")).expect("opens");
    let mut core = Scheduler::new(Policy::default());
    for (index, event) in (0..).zip(happenings()) {
        step(&mut store, &mut core, 1_000 + index, event).expect("commits");
        let copy = home.path().join(format!("crash-{index}"));
        crash(&home.path().join("live"), &copy, None);
        let reopened = Store::open(&copy).expect("opens after a crash");
        let loaded = reopened.load().expect("loads");
        assert_eq!(durable(&loaded.snapshot), durable(&core.snapshot()), "after {index}");
        assert_eq!(loaded.clock, Time(1_000 + index));
        assert_eq!(loaded.runs.len(), loaded.snapshot.jobs.len());
        assert_eq!(reopened.last_event(), store.last_event());
    }
    let all = store.events(&EventFilter::default(), 0, 1_000).expect("reads");
    assert!(all.iter().zip(1..).all(|(row, sequence)| row.sequence == sequence));
    let of_job = EventFilter { job: Some(JobId(2)), node: None };
    let newest = store.newest_events(&of_job, 1).expect("reads");
    assert_eq!(newest[0].record.reason, crate::core::Reason::SuspendedByUser);
}

#[test]
fn a_torn_write_leaves_the_commit_before() {
    let home = tempfile::tempdir().expect("a directory");
    let live = home.path().join("live");
    let mut store = Store::open(&live).expect("opens");
    let mut core = Scheduler::new(Policy::default());
    let mut states = vec![durable(&core.snapshot())];
    let mut ends = vec![fs::metadata(live.join("scheduler.db-wal")).expect("made").len()];
    for (index, event) in (0..).zip(happenings()) {
        step(&mut store, &mut core, index, event).expect("commits");
        states.push(durable(&core.snapshot()));
        ends.push(fs::metadata(live.join("scheduler.db-wal")).expect("grows").len());
    }
    let first = ends[0];
    let last = *ends.last().expect("not empty");
    for cut in (0..40).map(|part| first + (last - first) * part / 40) {
        let copy = home.path().join(format!("torn-{cut}"));
        crash(&live, &copy, Some(cut));
        let loaded = Store::open(&copy).expect("opens").load().expect("loads");
        let complete = ends.iter().take_while(|end| **end <= cut).count();
        assert_eq!(durable(&loaded.snapshot), states[complete - 1], "cut at {cut}");
    }
}

#[test]
fn a_full_disk_changes_nothing_and_says_so() {
    let home = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(home.path()).expect("opens");
    let mut core = Scheduler::new(Policy::default());
    let mut events = happenings().into_iter();
    for event in events.by_ref().take(4) {
        step(&mut store, &mut core, 1, event).expect("commits");
    }
    let before = durable(&store.load().expect("loads").snapshot);
    store.limit_pages(1);
    let mut core_after = core.clone();
    let mut error = None;
    // Small commits may still fit into pages that exist.
    for index in 100..400 {
        let submit = Event::Command {
            ticket: 0,
            command: Command::Submit { request_id: format!("r{index}"), spec: spec(index) },
        };
        let last = core_after.clone();
        if let Err(full) = step(&mut store, &mut core_after, 2, submit) {
            error = Some(full);
            core_after = last;
            break;
        }
    }
    assert!(matches!(error, Some(Error::DiskFull { .. })), "{error:?}");
    assert!(error.is_some_and(|e| e.to_string().contains("free some space")));
    let after = durable(&store.load().expect("still readable").snapshot);
    assert_eq!(after.1, core_after.snapshot().jobs, "what was committed is there");
    assert!(after.1.len() >= before.1.len());
    store.limit_pages(0);
    for event in events {
        step(&mut store, &mut core_after, 3, event).expect("commits again");
    }
}

#[test]
fn one_scheduler_at_a_time_and_no_newer_layout() {
    let home = tempfile::tempdir().expect("a directory");
    let store = Store::open(home.path()).expect("opens");
    assert!(matches!(Store::open(home.path()), Err(Error::Locked { .. })));
    store.connection.pragma_update(None, "user_version", LAYOUT + 1).expect("writes");
    drop(store);
    let error = Store::open(home.path()).expect_err("too new");
    assert!(error.to_string().contains("newer release"), "{error}");
}
