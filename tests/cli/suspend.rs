//! The suspend contract from the keyboard: signals, `lampyris suspend`, exit codes, and that no rank outlives its shim.

use crate::desk::{Desk, Started, shipped};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const SCRIPT: &str = "ready steps=2 wait";

fn train(desk: &Desk) -> Started {
    let mut started = desk.start(&["train", &shipped("debug_llama"), "--run-dir", "run"]);
    started.wait_for("step 1/1000");
    started
}

fn signal(started: &Started, signal: Signal) {
    let pid = Pid::from_raw(started.pid() as i32).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn signals_suspend_with_their_exit_codes() {
    for (name, number, code) in [
        ("SIGTERM", Signal::TERM, 85),
        ("SIGUSR2", Signal::USR2, 85),
        ("SIGHUP", Signal::HUP, 85),
        ("SIGINT", Signal::INT, 86),
    ] {
        let desk = Desk::new(SCRIPT);
        let mut started = train(&desk);
        signal(&started, number);
        started.wait_for(&format!("{name}: checkpointing at the next step boundary"));
        let ended = started.end();
        assert_eq!(ended.code, code, "{}", ended.stderr);
        let expected = "checkpointed after step 2 and stopped; `lampyris resume run` continues\n";
        assert_eq!(ended.stdout, expected);
    }
}

#[test]
fn lampyris_suspend_asks_through_the_run_directory() {
    let desk = Desk::new(SCRIPT);
    let started = train(&desk);
    let asked = desk.run(&["suspend", "run", "--reason", "maintenance"]);
    assert_eq!(asked.code, 0, "{}", asked.stderr);
    assert_eq!(started.end().code, 86);
    let request = desk.dir.path().join("run/control/suspend.json");
    assert!(std::fs::read_to_string(request).unwrap().contains("maintenance"));
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let desk = Desk::new("ready steps=2 ignore");
    let mut started = train(&desk);
    signal(&started, Signal::INT);
    started.wait_for("Ctrl-C again");
    signal(&started, Signal::INT);
    let ended = started.end();
    assert_eq!(ended.code, 130);
    assert!(ended.stderr.contains("killed before a checkpoint was complete"), "{}", ended.stderr);
}

#[test]
fn a_rank_dies_with_its_shim() {
    let desk = Desk::new("ready steps=2 ignore");
    let started = train(&desk);
    let children = format!("/proc/{0}/task/{0}/children", started.pid());
    let rank: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let rank = pidfd_open(Pid::from_raw(rank).unwrap(), PidfdFlags::empty()).unwrap();
    signal(&started, Signal::KILL);
    assert_eq!(started.end().code, 128 + 9);
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&rank, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "the rank has ended");
}
