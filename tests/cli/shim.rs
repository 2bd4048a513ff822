//! The shim with real processes: how they are started, how each end is reported, that nothing outlives it.

use lampyris_comm::{Secret, Server};
use lampyris_proto::rank::from_rank::Body;
use lampyris_proto::{Attempt, Rank, Step};
use lampyris_tests::program;
use lampyris_worker::cores::Given;
use lampyris_worker::shim::{
    Event, Failure, FailureCause, Handle, Options, Outcome, Rendezvous, ShimError, boottime,
    control, status,
};
use rustix::process::{Pid, Signal, kill_process};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest time any of these may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

struct Run {
    dir: TempDir,
    events: Receiver<Event>,
    handle: Handle,
    shim: JoinHandle<Result<Outcome, ShimError>>,
}

fn options(run_dir: &Path, script: &str, local_ranks: usize) -> Options {
    // `env` gives each test its own script without touching the environment of the test process.
    let fake = program("lampyris-fake-rank");
    let arguments =
        vec![format!("FAKE_RANK={script}").into(), fake.into_os_string(), "train".into()];
    Options {
        program: "/usr/bin/env".into(),
        arguments,
        run_dir: run_dir.to_path_buf(),
        attempt: Attempt(3),
        first_rank: Rank(0),
        local_ranks,
        world: local_ranks as u64,
        nodes: 1,
        node: 0,
        rendezvous: (local_ranks > 1).then(nowhere),
        cores: Given::default(),
        build_id: lampyris_proto::build_id(lampyris_plan::train_plan::SCHEMA),
        deadline: None,
        report_after: Duration::from_millis(300),
        handle_signals: false,
    }
}

/// For ranks that do not look for each other.
fn nowhere() -> Rendezvous {
    Rendezvous { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9)), secret: [7; 32] }
}

fn start_with(change: impl FnOnce(&mut Options), script: &str, local_ranks: usize) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), script, local_ranks);
    change(&mut options);
    let (service, handle) = options.build().unwrap();
    let (sender, events) = sync_channel(4096);
    let shim = thread::spawn(move || service.run(&sender));
    Run { dir, events, handle, shim }
}

fn start(script: &str, local_ranks: usize) -> Run {
    start_with(|_| {}, script, local_ranks)
}

impl Run {
    fn wait_for<T>(&self, what: impl Fn(&Event) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("the event comes");
            if let Some(found) = what(&event) {
                return found;
            }
        }
    }

    fn wait_for_step(&self, step: u64) {
        self.wait_for(|event| match event {
            Event::Said { body: Body::StepDone(done), .. } if done.step == step => Some(()),
            _ => None,
        });
    }

    fn pid(&self) -> Pid {
        self.wait_for(|event| match event {
            Event::Started { pid, .. } => Pid::from_raw(*pid as i32),
            _ => None,
        })
    }

    fn end(self) -> Outcome {
        self.shim.join().unwrap().unwrap()
    }

    fn failure(self) -> Failure {
        match self.end() {
            Outcome::Failed(failure) => *failure,
            other => panic!("not a failure: {other:?}"),
        }
    }
}

#[test]
fn a_good_rank_finishes_and_its_output_is_in_its_log() {
    let run = start("log=hello ready steps=4 finish", 1);
    run.wait_for_step(4);
    let log = run.dir.path().join("logs/rank-0.attempt-3.log");
    let dir = run.dir.path().to_path_buf();
    let Run { shim, dir: keep, .. } = run;
    assert_eq!(shim.join().unwrap().unwrap(), Outcome::Finished);
    assert_eq!(std::fs::read_to_string(log).unwrap(), "hello\n");
    assert_eq!(std::fs::read_dir(dir.join("logs")).unwrap().count(), 1);
    drop(keep);
}

#[test]
fn every_suspend_request_ends_in_its_exit_code() {
    for (stay_stopped, code) in [(false, 85), (true, 86)] {
        let run = start("ready steps=2 wait", 2);
        run.wait_for_step(2);
        run.handle.suspend(stay_stopped);
        let outcome = run.end();
        assert_eq!(outcome, Outcome::Suspended { step: Step(2), stay_stopped });
        assert_eq!(outcome.exit_code(), code);
    }
    let run = start("ready steps=2 wait", 1);
    run.wait_for_step(2);
    control::request_suspend(run.dir.path(), "test").unwrap();
    assert_eq!(run.end().exit_code(), 86);
}

#[test]
fn a_suspend_that_comes_before_the_rank_is_ready_is_not_lost() {
    let run = start("ready steps=1 wait", 1);
    run.handle.suspend(true);
    assert_eq!(run.end().exit_code(), 86);
}

#[test]
fn a_crash_names_rank_signal_step_and_last_log_lines_and_ends_the_others() {
    let script =
        "ready ignore|log=about-to-die ready steps=2 busy=evaluating signal=ABRT|ready ignore";
    let run = start(script, 3);
    let began = Instant::now();
    let failure = run.failure();
    assert!(began.elapsed() < LIMIT);
    assert_eq!(
        failure.to_string(),
        "rank 1 was killed by SIGABRT (after step 2, while evaluating)"
    );
    assert_eq!(failure.log_tail, ["about-to-die"]);
    assert!(failure.log.ends_with("logs/rank-1.attempt-3.log"));
}

#[test]
fn a_failure_with_a_reason_is_reported_with_it() {
    let failure = start("ready steps=5 fail=4 exit=1", 1).failure();
    assert_eq!(failure.to_string(), "rank 0 failed (exit 1): the fake failed (after step 5)");
    assert_eq!(failure.hint(), "mend the fake");
}

#[test]
fn exit_codes_75_and_78_pass_through() {
    for code in [75, 78] {
        let outcome = start(&format!("ready exit={code}"), 1).end();
        assert_eq!(outcome.exit_code(), code);
    }
}

#[test]
fn whoever_is_not_at_the_boundary_is_named_and_only_killed_on_demand() {
    let run = start("ready steps=1 wait|ready steps=7 busy=dispatching ignore", 2);
    run.wait_for_step(7);
    run.handle.suspend(false);
    for _ in 0..2 {
        let late = run.wait_for(|event| match event {
            Event::NotAtBoundary { ranks, .. } => Some(ranks.clone()),
            _ => None,
        });
        assert_eq!(late.last(), Some(&(Rank(1), Step(7), "dispatching".to_string())));
    }
    run.handle.kill();
    assert_eq!(run.end().exit_code(), 130);
}

#[test]
fn the_deadline_is_told_to_the_rank_and_then_enforced() {
    let at = boottime() + Duration::from_secs(2);
    let run = start_with(|options| options.deadline = Some(at), "ready deadline ignore", 1);
    let log = run.dir.path().join("logs/rank-0.attempt-3.log");
    let Run { shim, dir, .. } = run;
    let outcome = shim.join().unwrap().unwrap();
    assert!(boottime() >= at);
    assert_eq!(outcome.exit_code(), 75);
    let Outcome::Failed(failure) = outcome else { panic!("not a failure: {outcome:?}") };
    assert_eq!(failure.cause, FailureCause::DeadlinePassed);
    assert_eq!(std::fs::read_to_string(log).unwrap(), format!("deadline {}\n", at.as_nanos()));
    drop(dir);
}

#[test]
fn foreign_bytes_end_the_rank_with_a_report() {
    for (script, expected) in [
        ("ready garbage ignore", "not a message"),
        ("ready huge ignore", "exceeds the limit"),
        ("steps=1 ignore", "before it said that it is ready"),
    ] {
        let failure = start(script, 1).failure();
        assert!(matches!(failure.cause, FailureCause::Protocol(_)), "{script}: {failure}");
        assert!(failure.to_string().contains(expected), "{script}: {failure}");
    }
}

#[test]
fn an_end_without_a_word_is_a_failure() {
    let failure = start("exit=0", 1).failure();
    assert_eq!(failure.cause, FailureCause::Unannounced(0));
}

#[test]
fn another_build_is_refused() {
    let change = |options: &mut Options| options.build_id = "0123".into();
    let failure = start_with(change, "ready ignore", 1).failure();
    assert!(failure.to_string().contains("this program of 0123"), "{failure}");
}

#[test]
fn a_missing_program_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), "ready", 1);
    options.program = "/nowhere/lampyris-rank".into();
    let (service, _handle) = options.build().unwrap();
    let error = service.run(&sync_channel(1).0).unwrap_err();
    assert!(error.to_string().contains("/nowhere/lampyris-rank"), "{error}");
}

#[test]
fn a_stopped_rank_that_is_told_much_still_hears_the_last_word() {
    let run = start("ready steps=1 wait", 1);
    let pid = run.pid();
    run.wait_for_step(1);
    kill_process(pid, Signal::STOP).unwrap();
    // Far more than a socket buffers: only the newest of each kind may be kept.
    for _ in 0..20_000 {
        run.handle.set_deadline(boottime() + LIMIT);
    }
    run.handle.suspend(true);
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(run.end().exit_code(), 86);
}

#[test]
fn ranks_on_virtual_nodes_find_each_other_with_a_secret_that_no_one_else_sees() {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let secret = [3; 32];
    let key = Secret::from_bytes(secret);
    let server = Server::start(anywhere, key, lampyris_comm::Attempt(3), LIMIT).unwrap();
    let rendezvous = Rendezvous { address: server.address(), secret };
    assert!(!format!("{rendezvous:?}").contains("3, 3"), "{rendezvous:?}");
    let change = |options: &mut Options| {
        options.nodes = 2;
        options.rendezvous = Some(rendezvous);
    };
    let run = start_with(change, "ready place meet steps=1 finish", 4);
    let Run { shim, dir, .. } = run;
    let outcome = shim.join().unwrap().unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let cores = std::thread::available_parallelism().unwrap().get();
    for rank in 0..4 {
        let log = dir.path().join(format!("logs/rank-{rank}.attempt-3.log"));
        let log = std::fs::read_to_string(log).unwrap();
        let threads = (cores / 4).max(1);
        let expected = format!(
            "node {} of 2, {threads} threads on {} cores\nmet 4 ranks on 2 nodes\n",
            rank / 2,
            if cores >= 4 { cores / 4 } else { cores },
        );
        assert_eq!(log, expected);
    }
}

#[test]
fn a_shim_of_one_node_among_several_numbers_its_ranks_from_there() {
    let change = |options: &mut Options| {
        (options.world, options.nodes, options.node) = (6, 3, 2);
        options.first_rank = Rank(4);
    };
    let run = start_with(change, "ready place steps=2 busy=saving finish", 2);
    let Run { shim, dir, .. } = run;
    assert_eq!(shim.join().unwrap().unwrap(), Outcome::Finished);
    let log = std::fs::read_to_string(dir.path().join("logs/rank-5.attempt-3.log")).unwrap();
    assert!(log.starts_with("node 2 of 3, "), "{log}");
    let text = std::fs::read_to_string(status::status_path(dir.path(), 2)).unwrap();
    let status: status::Status = serde_json::from_str(&text).unwrap();
    assert_eq!((status.attempt, status.world, status.nodes, status.node), (3, 6, 3, 2));
    assert_eq!((status.state, status.exit_code), (status::State::Finished, Some(0)));
    let ranks: Vec<_> = status.ranks.iter().map(|rank| (rank.rank, rank.node, rank.step)).collect();
    assert_eq!(ranks, [(4, 2, 2), (5, 2, 2)]);
    assert_eq!(status.ranks[1].operation, "finished");
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    type Change = fn(&mut Options);
    let cases: [(Change, &str); 4] = [
        (|options| options.rendezvous = None, "4 ranks need a rendezvous"),
        (|options| options.nodes = 3, "4 ranks do not fill 3 nodes evenly"),
        (|options| options.node = 1, "rank 0 is not the first of node 1"),
        (|options| options.world = 2, "ranks 0 and up, 4 of them, are not among 2"),
    ];
    for (change, expected) in cases {
        let mut options = options(dir.path(), "ready", 4);
        change(&mut options);
        let error = options.build().err().unwrap();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn the_status_follows_the_ranks_while_they_run() {
    let run = start("ready steps=3 busy=reducing ignore", 1);
    run.wait_for(|event| match event {
        Event::Said { body: Body::Operation(_), .. } => Some(()),
        _ => None,
    });
    let end = Instant::now() + LIMIT;
    let doing = loop {
        assert!(Instant::now() < end, "the status is written");
        match status::read(run.dir.path()).unwrap().first() {
            Some(node) if node.ranks[0].step == 3 => break node.ranks[0].operation.clone(),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(doing, "reducing");
    run.handle.kill();
    let dir = run.dir.path().to_path_buf();
    let Run { shim, dir: keep, .. } = run;
    assert_eq!(shim.join().unwrap().unwrap().exit_code(), 130);
    let status = status::read(&dir).unwrap().remove(0);
    assert_eq!(status.state, status::State::Failed);
    assert!(status.reason.starts_with("killed before a checkpoint"), "{}", status.reason);
    drop(keep);
}
