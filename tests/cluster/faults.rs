//! Processes that stop instead of dying, clocks that jump, nodes that are cut off, ranks that hang.

use crate::desk::{Desk, kill, signal, skip};
use crate::history::check;
use rustix::process::Signal;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn a_worker_that_is_stopped_past_its_lease_has_no_ranks_when_it_wakes() {
    let desk = Desk::up("20 5", 2);
    let job = desk.submit("one", 150, &["--max-retries", "5"]);
    desk.wait_step(&job, 10);
    let node = desk.show(&job).unwrap()["node_names"][0].as_str().unwrap().to_string();
    let index: usize = node.trim_start_matches('n').parse().unwrap();
    let stopped = desk.workers[index].as_ref().unwrap().id();
    signal(stopped, Signal::STOP);
    // The shim holds the lease, worker alive or not: its ranks end, and the job goes on elsewhere.
    desk.wait_for("the job on the other node", |desk| {
        let now = desk.show(&job)?;
        Some(now["attempt"].as_u64()? >= 2 && now["node_names"][0].as_str()? != node)
    });
    signal(stopped, Signal::CONT);
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", 150);
}

#[test]
fn a_scheduler_that_is_stopped_past_the_lease_finds_its_jobs_again() {
    let desk = Desk::up("20 5", 1);
    let job = desk.submit("one", 150, &["--max-retries", "5"]);
    desk.wait_step(&job, 10);
    let scheduler = desk.scheduler.as_ref().unwrap().id();
    signal(scheduler, Signal::STOP);
    desk.wait_for("the lease to pass", |desk| Some(desk.processes("--socket-fd").is_empty()));
    signal(scheduler, Signal::CONT);
    desk.wait_phase(&job, "succeeded");
    let lines = check(&desk, "one", 150);
    assert!(lines.last().unwrap().attempt >= 2, "{lines:?}");
}

#[test]
fn a_scheduler_that_is_away_for_less_than_a_lease_disturbs_nothing() {
    let mut desk = Desk::up("20 5", 1);
    let job = desk.submit("one", 100, &[]);
    desk.wait_step(&job, 10);
    kill(&mut desk.scheduler);
    desk.start_scheduler(&[]);
    desk.wait_phase(&job, "succeeded");
    let lines = check(&desk, "one", 100);
    assert!(lines.iter().all(|line| line.attempt == 1), "{lines:?}");
}

#[test]
fn a_wall_clock_that_jumps_an_hour_changes_nothing() {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let library = folders.map(|folder| format!("{folder}/faketime/libfaketime.so.1"));
    let Some(library) = library.into_iter().find(|path| Path::new(path).exists()) else {
        return skip("libfaketime is not installed");
    };
    let mut desk = Desk::new("20 5");
    let offset = desk.path("offset");
    let jump = |to: &str| {
        // Whole at once: it is read at every look at the clock.
        std::fs::write(offset.with_extension("new"), to).unwrap();
        std::fs::rename(offset.with_extension("new"), &offset).unwrap();
    };
    jump("+0");
    // Scheduler, worker, and what the worker starts.
    desk.set("LD_PRELOAD", &library);
    desk.set("FAKETIME_TIMESTAMP_FILE", &offset.display().to_string());
    desk.set("FAKETIME_NO_CACHE", "1");
    desk.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    desk.start_all(1);
    let job = desk.submit("one", 250, &[]);
    desk.wait_step(&job, 20);
    jump("+1h");
    desk.wait_step(&job, 60);
    jump("-1h");
    desk.wait_step(&job, 100);
    // Those that start in another hour than the others take over what runs.
    kill(&mut desk.workers[0]);
    kill(&mut desk.scheduler);
    jump("+1h");
    desk.start_scheduler(&[]);
    desk.start_worker(0, &[]);
    desk.wait_phase(&job, "succeeded");
    let lines = check(&desk, "one", 250);
    assert!(lines.iter().all(|line| line.attempt == 1), "{lines:?}");
}

/// A host of its own for one worker: a network namespace with one link, which can be cut.
struct Island(String);

impl Island {
    /// With its address 10.213.X.2, and the other end 10.213.X.1 here; none without root.
    fn new() -> Option<Island> {
        let id = std::process::id();
        let name = format!("lampyris-{id}");
        let (here, there) = (format!("lp{id}a"), format!("lp{id}b"));
        let island = Island(name.clone());
        let subnet = format!("10.213.{}", id % 250 + 1);
        let (near, far) = (format!("{subnet}.1/30"), format!("{subnet}.2/30"));
        let made = ip(&["netns", "add", &name])
            && ip(&["link", "add", &here, "type", "veth", "peer", "name", &there])
            && ip(&["link", "set", &there, "netns", &name])
            && ip(&["addr", "add", &near, "dev", &here])
            && ip(&["link", "set", &here, "up"])
            && ip(&["-n", &name, "addr", "add", &far, "dev", &there])
            && ip(&["-n", &name, "link", "set", &there, "up"])
            && ip(&["-n", &name, "link", "set", "lo", "up"]);
        made.then_some(island)
    }

    fn scheduler(&self) -> String {
        format!("10.213.{}.1:7137", std::process::id() % 250 + 1)
    }

    /// Cuts the link or mends it. No connection is closed: it goes quiet.
    fn cut(&self, cut: bool) {
        let there = format!("lp{}b", std::process::id());
        let state = if cut { "down" } else { "up" };
        assert!(ip(&["-n", &self.0, "link", "set", &there, state]), "{there}");
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        ip(&["link", "del", &format!("lp{}a", std::process::id())]);
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_worker_that_is_cut_off_has_no_ranks_past_its_lease() {
    let Some(island) = Island::new() else { return skip("network namespaces need root") };
    let mut desk = Desk::new("20 5");
    let address = island.scheduler();
    desk.set("LAMPYRIS_SCHEDULER", &format!("http://{address}"));
    desk.start_scheduler(&["--listen", &address, "--insecure"]);
    let log = std::fs::read_to_string(desk.path("scheduler.log")).unwrap();
    assert!(log.contains("insecure: anybody who can reach"), "{log}");
    let mut outside = Command::new("ip");
    let inside = desk.command(&["worker", "--name", "n0"]);
    outside.args(["netns", "exec", &island.0]).arg(inside.get_program()).args(inside.get_args());
    outside.current_dir(desk.dir.path()).stdin(Stdio::null());
    for (name, value) in inside.get_envs() {
        match value {
            Some(value) => outside.env(name, value),
            None => outside.env_remove(name),
        };
    }
    let worker = desk.spawn("n0", outside);
    desk.add_worker(0, worker);
    desk.wait_online(1);
    let job = desk.submit("one", 200, &["--max-retries", "5"]);
    desk.wait_step(&job, 10);
    desk.start_worker(1, &[]);
    desk.wait_online(2);
    let ranks = desk.processes("--socket-fd");
    island.cut(true);
    // The shim on the island ends them by itself; only then, by the scheduler's own clock, are others started.
    desk.wait_for("the job on the mainland", |desk| {
        let now = desk.show(&job)?;
        Some(now["attempt"].as_u64()? >= 2 && now["node_names"][0] == "n1")
    });
    let left: Vec<u32> =
        desk.processes("--socket-fd").into_iter().filter(|pid| ranks.contains(pid)).collect();
    assert!(left.is_empty(), "{left:?} live on\n{}", desk.logs());
    island.cut(false);
    desk.wait_online(2);
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", 200);
}

#[test]
fn a_hung_job_is_shown_with_who_has_not_come_and_is_started_again() {
    let desk = Desk::up("20 5 12", 2);
    let layout = ["--nodes", "2", "--ranks-per-node", "1", "--set", "batch.micro_batch=1"];
    let job = desk.submit("one", 60, &[&layout[..], &["--hang-timeout-s", "4"]].concat());
    desk.wait_for("rank 1 to be named", |desk| {
        let shown = desk.run(&["show", &job]);
        let late = shown.lines().find(|line| line.starts_with("behind"))?;
        let named = late.contains("rank 1 on n") && late.contains("has not entered");
        Some(named && late.contains("\"all-reduce\""))
    });
    desk.wait_phase(&job, "succeeded");
    let events = desk.run(&["events", "--job", &job]);
    assert!(events.contains("no rank made progress for 4.0 s after step 12"), "{events}");
    let lines = check(&desk, "one", 60);
    assert_eq!(lines.last().unwrap().attempt, 2, "{lines:?}");
}
