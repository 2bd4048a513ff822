//! How runs stand: what `list`, `show` and `ranks` say of runs that were killed, and of run directories that are damaged.

use crate::desk::{Desk, Ended, Started, shipped};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn kill(started: &Started, signal: Signal) {
    kill_process(Pid::from_raw(started.pid() as i32).unwrap(), signal).unwrap();
}

/// A run of that name that has taken two steps and goes on.
fn running(desk: &Desk, name: &str) -> Started {
    let run_dir = format!("runs/{name}");
    let mut started = desk.start(&["train", &shipped("debug_llama"), "--run-dir", &run_dir]);
    started.wait_for("step 1/1000");
    started
}

/// A run of that name that has finished.
fn finished(desk: &Desk, name: &str) {
    let run_dir = format!("runs/{name}");
    let mut command = desk.command(&["train", &shipped("debug_llama"), "--run-dir", &run_dir]);
    let output = command.env("FAKE_RANK", "ready steps=1 finish").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn list(desk: &Desk) -> Ended {
    let ended = desk.run(&["list", "--local", "runs", "--all"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended
}

#[test]
fn a_killed_run_is_nowhere_said_to_run() {
    let desk = Desk::new("ready steps=2 wait");
    let started = running(&desk, "a");
    let row = list(&desk).stdout;
    assert!(row.contains("running") && row.contains("runs on"), "{row}");
    kill(&started, Signal::KILL);
    started.end();
    let looks: [&[&str]; 5] = [
        &["list", "--local", "runs"],
        &["show", "runs/a"],
        &["ranks", "runs/a"],
        &["show", "runs/a", "--json"],
        &["ranks", "runs/a", "--json"],
    ];
    for look in looks {
        let said = desk.run(look);
        assert_eq!(said.code, 0, "{}", said.stderr);
        assert!(!said.stdout.contains("running"), "{look:?}: {}", said.stdout);
        for word in ["lost", "it was killed or crashed"] {
            assert!(said.stdout.contains(word), "{look:?}: {}", said.stdout);
        }
    }
    // Following a dead run ends.
    assert_eq!(desk.run(&["ranks", "runs/a", "--follow"]).code, 0);
    assert_eq!(desk.run(&["logs", "runs/a", "--follow"]).code, 0);
}

#[test]
fn a_run_of_another_boot_of_this_machine_is_lost() {
    let desk = Desk::new("");
    finished(&desk, "a");
    let path = desk.dir.path().join("runs/a/status.json");
    let mut status: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    status["state"] = "running".into();
    status["exit_code"] = serde_json::Value::Null;
    status["process"]["boot_id"] = "another".into();
    status["pid"] = 1.into();
    status["written_ms"] = 5.into();
    fs::write(&path, status.to_string()).unwrap();
    let row = list(&desk).stdout;
    assert!(row.contains("lost") && row.contains("the machine was started again"), "{row}");
}

#[test]
fn one_broken_run_hides_no_other() {
    let desk = Desk::new("");
    finished(&desk, "good");
    let runs = desk.dir.path().join("runs");
    let copy = |name: &str| {
        finished(&desk, name);
        runs.join(name)
    };
    fs::write(copy("plan").join("plan.toml"), "[").unwrap();
    let replace = |run: &Path, name: &str, make: &dyn Fn(&Path)| {
        fs::remove_file(run.join(name)).unwrap();
        make(&run.join(name));
    };
    let folder = |path: &Path| fs::create_dir(path).unwrap();
    let pipe = |path: &Path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    replace(&copy("plan-folder"), "plan.toml", &folder);
    replace(&copy("plan-pipe"), "plan.toml", &pipe);
    replace(&copy("status-pipe"), "status.json", &pipe);
    fs::write(copy("status").join("status.json"), "{\"attempt\":1").unwrap();
    let many = copy("many").join("status.json");
    let text = fs::read_to_string(&many).unwrap();
    assert!(text.contains("\"nodes\":1,"), "{text}");
    fs::write(&many, text.replace("\"nodes\":1,", "\"nodes\":99999999999,")).unwrap();

    let rows = list(&desk).stdout;
    let row_of = |name: &str| {
        let id = format!("runs/{name} ");
        rows.lines().find(|row| row.starts_with(&id)).unwrap_or_else(|| panic!("{name}:\n{rows}"))
    };
    assert!(row_of("good").contains("succeeded"), "{rows}");
    for (name, why) in [
        ("plan", "its plan.toml is damaged"),
        ("plan-folder", "a regular file is expected"),
        ("plan-pipe", "a regular file is expected"),
        ("status", "cannot read runs/status/status.json"),
        ("status-pipe", "status.json: it is no regular file"),
        ("many", "99999999999 nodes"),
    ] {
        let row = row_of(name);
        assert!(row.contains("unknown") && row.contains(why), "{name}: {row}");
    }
    for look in ["show", "ranks"] {
        let said = desk.run(&[look, "runs/many"]);
        assert_eq!(said.code, 1);
        assert!(said.stderr.contains("runs/many/status.json"), "{}", said.stderr);
    }
}

#[test]
fn a_closed_terminal_checkpoints_unless_it_is_to_be_ignored() {
    let desk = Desk::new("ready steps=2 wait");
    let mut started = running(&desk, "a");
    kill(&started, Signal::HUP);
    started.wait_for("SIGHUP: checkpointing at the next step boundary");
    // The shell may send a second one.
    let ended = started.end();
    assert_eq!(ended.code, 85, "{}", ended.stderr);

    let mut nohup = Command::new("nohup");
    let plain = desk.command(&["train", &shipped("debug_llama"), "--run-dir", "runs/b"]);
    nohup.arg(plain.get_program()).args(plain.get_args()).current_dir(desk.dir.path());
    nohup.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut started = Started::of(nohup.process_group(0));
    started.wait_for("step 1/1000");
    kill(&started, Signal::HUP);
    kill(&started, Signal::TERM);
    started.wait_for("SIGTERM: checkpointing");
    assert_eq!(started.end().code, 85);
}

#[test]
fn a_daemon_takes_a_closed_terminal_as_a_request_to_stop() {
    let desk = Desk::new("");
    let mut up = desk.start(&["up"]);
    up.wait_for("registered");
    let process = pidfd_open(Pid::from_raw(up.pid() as i32).unwrap(), PidfdFlags::empty()).unwrap();
    kill(&up, Signal::HUP);
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "it has ended");
    assert_eq!(up.end().code, 0);
}
