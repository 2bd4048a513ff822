//! Nodes of Slurm that are lent to a scheduler of ours.

use crate::cluster::{Cluster, wait_until};
use crate::job::{recipe, same_as_undisturbed};
use lampyris_tests::program;
use std::net::TcpListener;
use std::process::Child;

/// A scheduler that the nodes reach; it ends with this.
struct Scheduler {
    child: Child,
    address: String,
}

impl Scheduler {
    fn start(cluster: &Cluster) -> Scheduler {
        let host = format!("{}.254", cluster.net());
        let free = TcpListener::bind((host.as_str(), 0)).unwrap().local_addr().unwrap();
        let child = cluster
            .command(program("lampyris"))
            .args(["scheduler", "--insecure", "--state-dir", "scheduler", "--listen"])
            .arg(free.to_string())
            .env("LAMPYRIS_LOG", "error")
            .spawn()
            .unwrap();
        let scheduler = Scheduler { child, address: format!("http://{free}") };
        wait_until("the scheduler answers", || {
            cluster.lampyris(&["nodes", "--scheduler", &scheduler.address]).status.success()
        });
        scheduler
    }

    /// Lends one node to it; gives Slurm's number of the job.
    fn pilot(&self, cluster: &Cluster) -> String {
        let said = cluster.said(&["pilot", "--scheduler", &self.address, "--time", "30"]);
        said.trim().strip_prefix("slurm:").unwrap().to_string()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Slurm takes the node back: the job is suspended, and goes on when another node is lent.
pub(crate) fn lent_and_taken_back(cluster: &Cluster) {
    let scheduler = Scheduler::start(cluster);
    let at = ["--scheduler", scheduler.address.as_str()];
    let first = scheduler.pilot(cluster);
    let mut words: Vec<String> = vec!["submit".into()];
    words.extend(recipe());
    words.extend(["--run-dir", "lent"].into_iter().chain(at).map(String::from));
    cluster.said(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let shown = || cluster.json(&[&["show", "lent"], at.as_slice()].concat());
    wait_until("the job trains", || shown()["step"].as_u64().unwrap() >= 2);
    // What Slurm does itself at the time limit.
    cluster.slurm(&format!("scancel --signal=USR2 {first}"));
    wait_until("the pilot has left", || cluster.state_of(first.parse().unwrap()) == "COMPLETED");
    let left = shown();
    assert!(["queued", "suspended"].contains(&left["phase"].as_str().unwrap()), "{left}");
    assert!(left["saved_step"].as_u64().unwrap() > 0, "{left}");
    let second = scheduler.pilot(cluster);
    wait_until("the job is complete", || shown()["phase"] == "succeeded");
    assert_eq!(shown()["attempt"], 2);
    same_as_undisturbed(cluster, &cluster.desk().join("lent"));
    cluster.slurm(&format!("scancel {second}"));
}
