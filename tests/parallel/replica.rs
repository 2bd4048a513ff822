//! A virtual node is lost with all its processes and its memory: the run goes on from the snapshot that the memory of the
//! other node holds, newer than the newest checkpoint.

use lampyris_checkpoint::Run;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_tests::desk::{Desk, rank_pids, signal};
use rustix::process::Signal;
use std::path::PathBuf;
use std::sync::Arc;

/// 40 steps on two nodes of one rank each. A checkpoint after step 16 and none before step 32; memory keeps every step.
const SETS: [&str; 9] = [
    "batch.micro_batch=1",
    "batch.leaves=8",
    "schedule.total_tokens=20_480",
    "eval.every_steps=0",
    "output.sample_tokens=0",
    "checkpoint.every_steps=16",
    "checkpoint.replica_every_steps=1",
    "parallel.data=2",
    "parallel.zero=1",
];
const NODES: [&str; 2] = ["--nodes", "2"];

/// What the hosts keep in memory of run `name`.
fn memory(desk: &Desk, name: &str) -> PathBuf {
    let base = PathBuf::from(format!("/dev/shm/lampyris-{}", rustix::process::geteuid().as_raw()));
    let run = desk.path(name).canonicalize().expect("the run exists");
    lampyris_checkpoint::HostMemory::of_run(Arc::new(RealDisk), &base, &run).dir().to_path_buf()
}

/// Trains until memory is ahead of the disk, then kills all processes of node 1 and loses its memory. Returns the step that
/// the memory of node 0 holds.
fn lose_a_node(desk: &Desk) -> u64 {
    let mut child = desk.start_with("debug_moe", "run", &SETS, &NODES);
    let held = || {
        let names = std::fs::read_dir(memory(desk, "run").join("node-0/rank-1")).ok()?;
        let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids = names.filter_map(|name| name.parse::<lampyris_checkpoint::CheckpointId>().ok());
        ids.map(|id| id.step.0).max()
    };
    desk.wait("the run", || desk.path("run").exists());
    desk.wait("memory ahead of the disk", || held().is_some_and(|step| (17..25).contains(&step)));
    let ranks = rank_pids(child.id());
    // Which of the two it is, its arguments say.
    let of_node_1 = ranks.iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("--rank\u{0}1\u{0}")
    });
    signal(*of_node_1.expect("rank 1"), Signal::KILL);
    assert_ne!(child.wait().expect("waits").code(), Some(0));
    std::fs::remove_dir_all(memory(desk, "run").join("node-1")).expect("node 1 had memory");
    held().expect("node 0 holds node 1's shard")
}

fn newest_on_disk(desk: &Desk) -> u64 {
    desk.newest("run").manifest().id.step.0
}

fn goes_on_as_undisturbed(desk: &Desk) -> String {
    let ended = desk.run(&["resume", "run", NODES[0], NODES[1]]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let one = [&SETS[..7], &["parallel.data=1"]].concat();
    let whole = desk.train("debug_moe", "undisturbed", &one);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    assert_eq!(desk.losses("run"), desk.losses("undisturbed"));
    desk.assert_same_state("run", "undisturbed");
    for name in ["run", "undisturbed"] {
        assert!(!memory(desk, name).exists(), "a finished run leaves nothing in memory");
    }
    ended.stderr
}

/// The step from which attempt 2 began.
fn began_from(desk: &Desk) -> u64 {
    let run = Run::open_read_only(Arc::new(RealDisk), &desk.path("run"));
    let second = run.lineage().expect("lineage").records().nth(1).expect("two attempts");
    second.parent.expect("it loaded something").step.0
}

#[test]
fn a_lost_node_restarts_from_the_memory_of_the_other() {
    let desk = Desk::new();
    let held = lose_a_node(&desk);
    assert_eq!(newest_on_disk(&desk), 16);
    let told = goes_on_as_undisturbed(&desk);
    assert!(told.contains("from the memory of the nodes"), "{told}");
    assert_eq!(began_from(&desk), held);
}

#[test]
fn damage_in_memory_falls_back_to_the_disk() {
    let desk = Desk::new();
    lose_a_node(&desk);
    for entry in std::fs::read_dir(memory(&desk, "run").join("node-0/rank-1")).expect("lists") {
        let path = entry.expect("entry").path().join("rank-00001.data");
        if let Ok(mut bytes) = std::fs::read(&path) {
            bytes[5000] ^= 1;
            std::fs::write(&path, bytes).expect("writes");
        }
    }
    let told = goes_on_as_undisturbed(&desk);
    assert!(told.contains("a snapshot in memory is of no use"), "{told}");
    assert_eq!(began_from(&desk), 16);
}
