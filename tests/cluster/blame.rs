//! Whose fault it is: jobs that cannot start, text that is damaged, files that are not what they seem, drains, cores.

use crate::desk::{Desk, signal};
use crate::history::check;
use rustix::process::Signal;
use std::fs;

/// The only node, as `nodes` shows it.
fn node(desk: &Desk) -> serde_json::Value {
    desk.json(&["nodes", "--json"]).unwrap()[0].clone()
}

#[test]
fn a_job_whose_run_directory_is_gone_fails_and_its_node_serves_the_next() {
    let mut desk = Desk::new("5 10");
    desk.start_scheduler(&[]);
    let gone = desk.submit("gone", 20, &["--max-retries", "0"]);
    fs::remove_dir_all(desk.path("gone")).unwrap();
    desk.start_worker(0, &[]);
    desk.wait_phase(&gone, "failed");
    let why = desk.run(&["show", &gone]);
    assert!(why.contains("is no run directory on this node"), "{why}");
    let node = node(&desk);
    assert!(node["reason"].as_str().unwrap().starts_with("registered"), "{node}");
    let next = desk.submit("next", 20, &[]);
    desk.wait_phase(&next, "succeeded");
}

#[test]
fn damaged_text_fails_a_job_before_its_ranks_start_and_whole_text_is_read_once() {
    let mut desk = Desk::new("5 10");
    desk.start_scheduler(&[]);
    let damaged = desk.submit("damaged", 20, &[]);
    let data = fs::read_dir(desk.path("cache/data")).unwrap().flatten().map(|entry| entry.path());
    let shard = data.map(|folder| folder.join("training-00000.tokens")).find(|path| path.exists());
    let shard = shard.unwrap();
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, vec![0; whole.len()]).unwrap();
    desk.start_worker(0, &[]);
    desk.wait_phase(&damaged, "failed");
    let why = desk.run(&["show", &damaged]);
    assert!(why.contains("the checksum differs") && why.contains("lampyris adopt"), "{why}");
    assert!(!desk.path("damaged/history.jsonl").exists(), "a rank was started");
    fs::write(&shard, whole).unwrap();
    let next = desk.submit("next", 20, &[]);
    desk.wait_phase(&next, "succeeded");
    assert_eq!(fs::read_dir(desk.path("cache/verified")).unwrap().count(), 1);
}

#[test]
fn a_link_in_place_of_a_log_is_neither_written_nor_shown() {
    let mut desk = Desk::new("5 10");
    desk.start_scheduler(&[]);
    let job = desk.submit("one", 20, &["--max-retries", "0"]);
    let victim = desk.path("victim");
    fs::write(&victim, "as it was").unwrap();
    std::os::unix::fs::symlink(&victim, desk.path("one/logs/rank-0.attempt-1.log")).unwrap();
    desk.start_worker(0, &[]);
    desk.wait_phase(&job, "failed");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
    let output = desk.command(&["logs", &job]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(said.contains("is a link"), "{said}");
}

#[test]
fn an_up_that_was_killed_while_it_emptied_its_nodes_leaves_no_drain() {
    let desk = Desk::new("1000 1");
    let first = desk.start_up(2);
    let drained = |desk: &Desk, index: usize| {
        let nodes = desk.json(&["nodes", "--json"])?;
        nodes[index]["draining"].as_bool()
    };
    let job = desk.submit("one", 3, &["--set", "schedule.warmup_tokens=512"]);
    desk.wait_phase(&job, "running");
    // A person's drain is none of its business.
    let busy = desk.show(&job).unwrap()["node_names"][0].as_str().unwrap().to_string();
    let idle = if busy == "node-0" { "node-1" } else { "node-0" };
    desk.run(&["drain", idle]);
    signal(first.id(), Signal::INT);
    let index = usize::from(busy == "node-1");
    // Or it was quicker, and has gone.
    desk.wait_for("the drain", |desk| Some(drained(desk, index) != Some(false)));
    drop(first);
    let _second = desk.start_up(2);
    desk.wait_phase(&job, "succeeded");
    check(&desk, "one", 3);
    assert_eq!((drained(&desk, index), drained(&desk, 1 - index)), (Some(false), Some(true)));
}

#[test]
fn an_up_of_fewer_nodes_does_not_wait_for_the_one_that_has_left() {
    let desk = Desk::new("5 10");
    let first = desk.start_up(2);
    first.stop(&desk);
    let _second = desk.start_up(1);
    let nodes = desk.json(&["nodes", "--json"]).unwrap();
    assert_eq!(
        (&nodes[1]["state"], &nodes[1]["reason"]),
        (&"lost".into(), &"its worker was stopped".into())
    );
    let job = desk.submit("one", 20, &[]);
    desk.wait_phase(&job, "succeeded");
}

#[test]
fn ranks_stay_on_the_cores_of_their_worker_with_a_thread_for_each() {
    let mut desk = Desk::new("20 50");
    let core = lampyris_worker::cores::CoreList::allowed().iter().next().unwrap().to_string();
    desk.start_scheduler(&[]);
    let worker = desk.command(&["worker", "--name", "n0", "--cores", &core]);
    let worker = desk.spawn("n0", worker);
    desk.add_worker(0, worker);
    let job = desk.submit("one", 1000, &["--ranks-per-node", "2", "--set", "batch.micro_batch=1"]);
    desk.wait_step(&job, 2);
    let ranks = desk.processes("--socket-fd");
    assert_eq!(ranks.len(), 2);
    for rank in ranks {
        let status = fs::read_to_string(format!("/proc/{rank}/status")).unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{core}\n")), "{status}");
        let environment = fs::read(format!("/proc/{rank}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        for variable in ["OMP_NUM_THREADS=1\0", "RAYON_NUM_THREADS=1\0"] {
            assert!(environment.contains(variable), "{environment}");
        }
    }
    let other = desk.command(&["worker", "--name", "n1", "--cores", "9999"]).output().unwrap();
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(said.contains("is not a list of cores"), "{said}");
}
