//! Sharing a cluster: priorities, suspends, what a person sees of it.

use crate::desk::Desk;
use crate::history::check;
use lampyris_tests::repository;
use lampyris_tests::steady::read;
use rustix::process::Signal;
use std::cell::RefCell;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

#[test]
fn low_is_suspended_high_runs_and_low_ends_as_if_undisturbed() {
    let desk = Desk::up("20 10", 3);
    // One node of three is left for all three jobs.
    desk.run(&["drain", "n1"]);
    desk.run(&["drain", "n2"]);
    let low = desk.submit("low", 150, &["--priority", "low"]);
    desk.wait_step(&low, 20);
    let high = desk.submit("high", 20, &["--priority", "high"]);
    let normal = desk.submit("normal", 20, &["--priority", "normal"]);
    desk.wait_phase(&high, "succeeded");
    let at_high = desk.phase(&low);
    assert!(
        matches!(at_high.as_deref(), Some("suspended" | "starting" | "running")),
        "{at_high:?}"
    );
    for job in [&normal, &low] {
        desk.wait_phase(job, "succeeded");
    }
    check(&desk, "high", 20);
    check(&desk, "normal", 20);
    let low = check(&desk, "low", 150);
    assert!(low.iter().any(|line| line.what == "suspend"), "{low:?}");
    let first = |name| read(&desk.path(name))[0].clone();
    assert_eq!(first("high").attempt, 1, "high was never disturbed");
}

#[test]
fn a_person_suspends_resumes_watches_and_stops() {
    let desk = Desk::up("20 10", 1);
    let job = desk.submit("one", 400, &[]);
    desk.wait_step(&job, 5);
    let shown = desk.run(&["show", &job]);
    for part in ["running", "node", "n0", "steady", "one"] {
        assert!(part == "steady" || shown.contains(part), "{part} in\n{shown}");
    }
    assert!(desk.run(&["list"]).contains("running"));
    assert!(desk.run(&["nodes"]).contains("online"));
    assert!(desk.run(&["top", "--once"]).contains("n0"));
    assert!(desk.run(&["events"]).contains("placed on 1 nodes"));
    let log = desk.run(&["logs", &job]);
    assert!(log.contains("attempt 1 begins after step 0"), "{log}");
    desk.run(&["suspend", &job]);
    desk.wait_phase(&job, "suspended");
    desk.run(&["resume", &job]);
    desk.wait_phase(&job, "running");
    // By its run directory, as for a run of `train`.
    desk.run(&["suspend", "one"]);
    desk.wait_phase(&job, "suspended");
    desk.run(&["resume", "one"]);
    desk.wait_phase(&job, "running");
    desk.run(&["stop", &job]);
    desk.wait_phase(&job, "cancelled");
    let drained = desk.run(&["drain", "n0"]);
    assert!(drained.contains("draining"), "{drained}");
    assert!(!desk.run(&["drain", "n0", "--undo"]).contains("draining"));
}

#[test]
fn up_is_a_whole_cluster_that_stops_cleanly_and_goes_on_later() {
    let desk = Desk::new("20 10");
    let up = desk.start_up(3);
    let job = desk.submit("one", 200, &[]);
    desk.wait_step(&job, 5);
    up.stop(&desk);
    let lines = read(&desk.path("one"));
    assert_eq!(lines.last().unwrap().what, "suspend", "{lines:?}");
    assert!(desk.processes("--socket-fd").is_empty());
    let up = desk.start_up(3);
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", 200);
    up.stop(&desk);
}

#[test]
fn run_is_a_cluster_for_one_job() {
    let desk = Desk::new("5 10");
    let recipe = repository("recipes/debug_llama.toml").display().to_string();
    let tokens = "schedule.total_tokens=10240";
    let said = desk.run(&["run", &recipe, "--run-dir", "one", "--set", tokens]);
    assert!(said.contains("Trained to step 20, 1,280 tokens"), "{said}");
    check(&desk, "one", 20);
}

/// Ctrl-C leads to a checkpoint and to an end, without a second one.
#[test]
fn run_ends_by_itself_after_ctrl_c() {
    let desk = Desk::new("20 10");
    let recipe = repository("recipes/debug_llama.toml").display().to_string();
    let tokens = "schedule.total_tokens=512000";
    let words = ["run", &recipe, "--run-dir", "one", "--set", tokens];
    let run = RefCell::new(desk.spawn("run", desk.command(&words)));
    let log = |desk: &Desk| std::fs::read_to_string(desk.path("run.log")).ok();
    desk.wait_for("a step", |desk| Some(log(desk)?.contains("\nstep ")));
    crate::desk::signal(run.borrow().id(), Signal::INT);
    desk.wait_for("its end", |_| Some(run.borrow_mut().try_wait().unwrap().is_some()));
    let code = run.borrow_mut().wait().unwrap().code();
    assert_eq!(code, Some(86), "{}", desk.logs());
    assert!(log(&desk).unwrap().contains("stopped; `lampyris resume one` continues"));
    assert_eq!(read(&desk.path("one")).last().unwrap().what, "suspend");
}

#[test]
fn a_cluster_over_tls_lets_in_who_has_the_token() {
    let mut desk = Desk::new("5 10");
    let testdata =
        |name: &str| repository(&format!("scheduler/testdata/{name}")).display().to_string();
    let private = |name: &str, text: &[u8]| {
        std::fs::write(desk.path(name), text).unwrap();
        std::fs::set_permissions(desk.path(name), Permissions::from_mode(0o600)).unwrap();
    };
    private("token", b"0123456789abcdef\n");
    private("server.key", &std::fs::read(testdata("server.key")).unwrap());
    let mut command = desk.command(&["scheduler", "--listen", "127.0.0.1:0"]);
    command.args(["--policy", "policy.toml", "--token-file", "token"]);
    command.args(["--tls-certificate", &testdata("server.pem")]);
    command.args(["--tls-key", "server.key"]);
    desk.scheduler = Some(desk.spawn("scheduler", command));
    let port = || {
        let log = std::fs::read_to_string(desk.path("scheduler.log")).ok()?;
        let (_, rest) = log.split_once("127.0.0.1:")?;
        Some(rest.chars().take_while(char::is_ascii_digit).collect::<String>())
    };
    desk.wait_for("the scheduler's port", |_| port().map(|port| !port.is_empty()));
    let address = format!("https://127.0.0.1:{}", port().unwrap());
    desk.set("LAMPYRIS_SCHEDULER", &address);
    let authority = testdata("authority.pem");
    let proof = ["--ca", &authority, "--token-file", "token"];
    let worker = desk.command(&[&["worker", "--name", "n0"], &proof[..]].concat());
    desk.workers.push(Some(desk.spawn("n0", worker)));
    let recipe = repository("recipes/debug_llama.toml").display().to_string();
    let submit = ["submit", &recipe, "--run-dir", "one", "--set", "schedule.total_tokens=10240"];
    // Nothing is made before the scheduler lets in.
    for wrong in [&["--ca", &authority][..], &["--token-file", "token"][..], &[]] {
        let output = desk.command(&[&submit[..], wrong].concat()).output().unwrap();
        assert!(!output.status.success() && !desk.path("one").exists(), "{wrong:?}");
    }
    desk.set("LAMPYRIS_CA", &authority);
    desk.set("LAMPYRIS_TOKEN_FILE", "token");
    desk.run(&[&submit[..], &["--follow"]].concat());
    check(&desk, "one", 20);
}
