//! What is read of a run, and when a shim that says it runs is believed.

use super::*;

fn here() -> Place {
    Place { boot_id: "boot".into(), namespace: "pid:[1]".into(), started: 9 }
}

/// A node that says it runs, of process 7, written now.
fn status(node: u64, attempt: u64) -> Status {
    Status {
        attempt,
        world: 4,
        nodes: 2,
        node,
        host: host_name(),
        pid: std::process::id(),
        process: Some(Place::of_this_process()),
        state: State::Running,
        exit_code: None,
        reason: String::new(),
        written_ms: 5,
        ranks: Vec::new(),
    }
}

fn write(run_dir: &Path, status: &Status) {
    let text = serde_json::to_string(status).unwrap();
    fs::write(status_path(run_dir, status.node), text).unwrap();
}

#[test]
fn nodes_of_the_same_attempt_are_read_together() {
    let run = tempfile::tempdir().unwrap();
    assert_eq!(read(run.path()).unwrap(), []);
    write(run.path(), &status(0, 2));
    write(run.path(), &status(1, 1));
    assert_eq!(read(run.path()).unwrap(), [status(0, 2)]);
    write(run.path(), &status(1, 2));
    assert_eq!(read(run.path()).unwrap(), [status(0, 2), status(1, 2)]);
}

#[test]
fn a_file_that_is_broken_or_impossible_is_named() {
    let run = tempfile::tempdir().unwrap();
    let first = status_path(run.path(), 0);
    let error = || read(run.path()).unwrap_err().to_string();
    fs::write(&first, "{").unwrap();
    assert!(error().starts_with(&format!("cannot read {}: ", first.display())), "{}", error());
    for (key, value) in
        [("nodes", 99_999_999_999_u64), ("nodes", 0), ("world", 1 << 40), ("node", 2)]
    {
        let mut json = serde_json::to_value(status(0, 1)).unwrap();
        json[key] = value.into();
        fs::write(&first, json.to_string()).unwrap();
        assert!(error().contains("impossible"), "{}", error());
    }
    write(run.path(), &status(0, 1));
    let second = status_path(run.path(), 1);
    fs::create_dir(&second).unwrap();
    assert!(error().contains(&second.display().to_string()), "{}", error());
    assert!(error().contains("it is no regular file"), "{}", error());
}

#[test]
fn a_file_of_an_earlier_release_is_read() {
    let run = tempfile::tempdir().unwrap();
    let mut json = serde_json::to_value(status(0, 1)).unwrap();
    json.as_object_mut().unwrap().remove("process").unwrap();
    json["written_ms"] = unix_ms().into();
    fs::write(status_path(run.path(), 0), json.to_string()).unwrap();
    assert_eq!(read(run.path()).unwrap()[0].state, State::Running);
    json["written_ms"] = 5.into();
    fs::write(status_path(run.path(), 0), json.to_string()).unwrap();
    assert_eq!(read(run.path()).unwrap()[0].state, State::Silent);
}

#[test]
fn a_shim_runs_only_while_its_process_lives() {
    let judged = |change: &dyn Fn(&mut Status), now_ms: u64, alive: bool| {
        let mut status = status(0, 1);
        status.process = Some(here());
        change(&mut status);
        status.judge(&here(), now_ms, |process| {
            assert_eq!(process, Process { pid: status_pid(), started: 9 });
            alive
        });
        status.state
    };
    let keep = |_: &mut Status| {};
    let late = 5 + SILENT_MS + 1;
    // Here the process decides, however old the file is.
    assert_eq!(judged(&keep, late, true), State::Running);
    assert_eq!(judged(&keep, 5, false), State::Lost);
    let suspending = |status: &mut Status| status.state = State::Suspending;
    assert_eq!(judged(&suspending, 5, false), State::Lost);
    // After an end nothing is looked up.
    let finished = |status: &mut Status| {
        (status.state, status.exit_code) = (State::Finished, Some(0));
    };
    assert_eq!(judged(&finished, late, false), State::Finished);
    let moved = |change: fn(&mut Place)| {
        move |status: &mut Status| change(status.process.as_mut().unwrap())
    };
    // Another boot of this machine, or another machine of its name whose file is fresh.
    let rebooted = moved(|place| place.boot_id = "other".into());
    assert_eq!(judged(&rebooted, late, true), State::Lost);
    assert_eq!(judged(&rebooted, 6, false), State::Running);
    // A container, and another machine.
    let container = moved(|place| place.namespace = "pid:[2]".into());
    assert_eq!(judged(&container, late, true), State::Silent);
    assert_eq!(judged(&container, 6, false), State::Running);
    let elsewhere = |status: &mut Status| {
        status.host = "another".into();
        rebooted(status);
    };
    assert_eq!(judged(&elsewhere, late, true), State::Silent);
    // A clock that was set back does not make a dead run live for years.
    let future = |status: &mut Status| {
        container(status);
        status.written_ms = 1 << 50;
    };
    assert_eq!(judged(&future, 6, true), State::Silent);
}

fn status_pid() -> u32 {
    std::process::id()
}
