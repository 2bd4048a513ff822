//! Who gets in, and who can read what daemons keep.

use crate::desk::{Desk, kill};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[test]
fn a_second_worker_of_a_name_ends_with_an_error_that_names_both() {
    let mut desk = Desk::up("5 10", 1);
    let second = ["worker", "--name", "n0", "--state-dir", "elsewhere"];
    let output = desk.command(&second).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for named in ["node n0 is another worker", "worker-n0", "elsewhere", "--name"] {
        assert!(said.contains(named), "{named} in {said}");
    }
    // The first one has noticed nothing, and takes over at once when it starts again.
    kill(&mut desk.workers[0]);
    desk.start_worker(0, &[]);
    desk.wait_for("the registration of the second life", |desk| {
        let log = fs::read_to_string(desk.path("n0.log")).ok()?;
        Some(log.matches("registered").count() == 2)
    });
    desk.wait_online(1);
    let log = fs::read_to_string(desk.path("n0.log")).unwrap();
    assert!(!log.contains("no scheduler"), "{log}");
}

/// What others can read below `path`; a folder that they cannot enter hides what is in it.
fn readable(path: &Path) -> Vec<PathBuf> {
    let found = fs::symlink_metadata(path).unwrap();
    let open = found.permissions().mode() & 0o077 != 0;
    match (found.is_dir(), open) {
        (_, false) => Vec::new(),
        (false, true) => vec![path.to_path_buf()],
        (true, true) => {
            let entries = fs::read_dir(path).unwrap();
            entries.flat_map(|entry| readable(&entry.unwrap().path())).collect()
        }
    }
}

#[test]
fn state_is_its_owners_alone_and_run_directories_follow_the_umask() {
    let mut desk = Desk::new("5 10");
    let open = |desk: &Desk, name: &str, arguments: &[&str]| {
        let lampyris = desk.command(arguments);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "umask 000; exec \"$0\" \"$@\""]).arg(lampyris.get_program());
        command.args(lampyris.get_args()).current_dir(desk.path(""));
        let variables = lampyris.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(variables);
        desk.spawn(name, command)
    };
    desk.scheduler = Some(open(&desk, "scheduler", &["scheduler", "--policy", "policy.toml"]));
    desk.wait_for("the scheduler", |desk| desk.json(&["nodes", "--json"]).map(|_| true));
    let worker = open(&desk, "n0", &["worker", "--name", "n0"]);
    desk.add_worker(0, worker);
    desk.wait_online(1);
    let job = desk.submit("one", 100_000, &[]);
    desk.wait_step(&job, 2);
    let cluster = desk.path("cache/cluster");
    let attempts = fs::read_dir(cluster.join("worker-n0/attempts")).unwrap().count();
    assert!(cluster.join("scheduler/scheduler.db").exists() && attempts == 1);
    assert_eq!(readable(&cluster), Vec::<PathBuf>::new());
    let log = desk.path("one/logs/rank-0.attempt-1.log");
    assert_eq!(fs::metadata(log).unwrap().permissions().mode() & 0o777, 0o666);
    desk.run(&["stop", &job]);
}
