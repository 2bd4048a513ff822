//! What happens to jobs on a real cluster.

use crate::cluster::{Cluster, wait_until};
use crate::job::{Job, NODES, RANKS_PER_NODE};
use lampyris_tests::program;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn refused(cluster: &Cluster, name: &str, more: &[&str]) -> String {
    let words = Job::submission(name, more);
    let output = cluster.lampyris(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

pub(crate) fn wrong_partition(cluster: &Cluster) {
    let said = refused(cluster, "partition", &["--partition", "nope"]);
    for part in [
        "invalid partition specified: nope",
        "hint: `sinfo -s` lists",
        "lampyris resume partition --cluster slurm",
    ] {
        assert!(said.to_lowercase().contains(&part.to_lowercase()), "{part:?} in\n{said}");
    }
}

/// This cluster has no accounting, so another program says what Slurm says with it.
pub(crate) fn wrong_account(cluster: &Cluster) {
    let bin = cluster.desk().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let says = "#!/bin/sh\necho 'sbatch: error: Batch job submission failed: Invalid account or \
                account/partition combination specified' >&2\nexit 1\n";
    std::fs::write(bin.join("sbatch"), says).unwrap();
    std::fs::set_permissions(bin.join("sbatch"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let words = Job::submission("account", &["--account", "nope"]);
    let output =
        cluster.command(program("lampyris")).args(words).env("PATH", path).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    for part in ["Invalid account or account/partition combination", "sacctmgr show associations"] {
        assert!(said.contains(part), "{part:?} in\n{said}");
    }
}

pub(crate) fn preempted(cluster: &Cluster) {
    let job = Job::submit(cluster, "preempted", &["--partition", "low"]);
    job.wait_for_training(1);
    job.hold_until("SIGTERM: checkpointing at the next step boundary", || {
        cluster.slurm("sbatch -p high -N4 --exclusive -o /dev/null --wrap 'sleep 1'");
    });
    cluster.lift_requeue_delay(job.number);
    job.finishes_as_undisturbed();
    assert_eq!(job.attempt(), 2);
    assert_eq!(cluster.field_of(job.number, "Restarts"), "1");
}

/// The limit is shortened while the ranks train: Slurm looks at limits twice a minute, and with 55 seconds of grace the next
/// look is the one that announces it. Sent before the ranks are there, its signal would reach nobody.
pub(crate) fn time_limit(cluster: &Cluster) {
    std::fs::write(cluster.desk().join("config.toml"), "[cluster.slurm]\ngrace_s = 55\n").unwrap();
    let job = Job::submit(cluster, "limit", &["--time", "30"]);
    std::fs::remove_file(cluster.desk().join("config.toml")).unwrap();
    job.wait_for_training(1);
    job.hold_until("SIGUSR2: checkpointing at the next step boundary", || {
        cluster.slurm(&format!("scontrol update jobid={} timelimit=1", job.number));
    });
    cluster.lift_requeue_delay(job.number);
    cluster.slurm(&format!("scontrol update jobid={} timelimit=30", job.number));
    job.finishes_as_undisturbed();
    assert_eq!(job.attempt(), 2);
}

/// `list`, `show`, `logs` and `resume` know the job as well, by its directory and by its number.
pub(crate) fn suspended(cluster: &Cluster) {
    let job = Job::submit(cluster, "suspended", &[]);
    job.wait_for_training(1);
    let named = format!("slurm:{}", job.number);
    let shown = cluster.json(&["show", &named]);
    assert_eq!(shown["phase"], "running");
    assert_eq!(shown["ranks"].as_array().unwrap().len(), NODES * RANKS_PER_NODE);
    let listed = cluster.json(&["list", "--cluster", "slurm", "--local", "."]);
    assert!(listed.as_array().unwrap().iter().any(|row| row["phase"] == "running"), "{listed}");
    cluster.said(&["suspend", &named]);
    job.wait_for("FAILED");
    assert_eq!(cluster.field_of(job.number, "ExitCode"), "86:0");
    assert_eq!(cluster.json(&["show", "suspended"])["phase"], "suspended");
    let again = Job::of(cluster, "suspended", &cluster.said(&["resume", "suspended"]));
    assert_ne!(again.number, job.number);
    again.finishes_as_undisturbed();
    assert_eq!(again.attempt(), 2);
    assert_eq!(cluster.json(&["show", "suspended"])["phase"], "succeeded");
    let log = std::fs::read_to_string(job.run.join("logs/rank-1.attempt-1.log")).unwrap();
    assert_eq!(cluster.said(&["logs", &named, "--rank", "1", "--attempt", "1"]), log);
}

/// A job that has not started is taken out of the queue, and can still go on.
pub(crate) fn stopped_in_the_queue(cluster: &Cluster) {
    let job = Job::submit(cluster, "waiting", &["--sbatch=--begin=now+1hour"]);
    let shown = cluster.json(&["show", "waiting"]);
    assert_eq!((&shown["phase"], &shown["reason"]), (&"queued".into(), &"waits: BeginTime".into()));
    cluster.said(&["stop", "waiting"]);
    job.wait_for("CANCELLED");
    assert_eq!(cluster.json(&["show", "waiting"])["phase"], "cancelled");
    // With a flag the script is written anew, and begins at once.
    let again = cluster.said(&["resume", "waiting", "--cluster", "slurm", "--partition", "low"]);
    Job::of(cluster, "waiting", &again).wait_for_training(1);
}

pub(crate) fn cancelled(cluster: &Cluster) {
    let job = Job::submit(cluster, "cancelled", &[]);
    job.wait_for_training(1);
    let running = cluster.lampyris(&["resume", "cancelled", "--cluster", "slurm"]);
    let said = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(
        said.contains(&format!("job {} of this run is still in the queue", job.number)),
        "{said}"
    );
    cluster.slurm(&format!("scancel {}", job.number));
    job.wait_for("CANCELLED");
    assert_eq!(cluster.field_of(job.number, "Restarts"), "0");
    assert_eq!(cluster.field_of(job.number, "ExitCode"), "85:0");
    let list = cluster.lampyris(&["checkpoint", "list", "cancelled"]);
    assert!(String::from_utf8_lossy(&list.stdout).lines().count() > 1, "it is checkpointed");
}

pub(crate) fn killed_rank(cluster: &Cluster) {
    let job = Job::submit(cluster, "killed", &[]);
    job.wait_for_training(1);
    let nodes = job.nodes();
    let culprit = nodes.last().unwrap().ranks.last().unwrap();
    cluster.slurm(&format!("kill -KILL {}", culprit.pid));
    job.finishes_as_undisturbed();
    assert_eq!(job.attempt(), 2);
    let expected = format!("rank {} was killed by SIGKILL", culprit.rank);
    for part in [expected.as_str(), "starting again from the last checkpoint"] {
        assert!(job.log().contains(part), "{part:?} in\n{}", job.log());
    }
}

pub(crate) fn vanished_node(cluster: &Cluster) {
    let job = Job::submit(cluster, "vanished", &[]);
    job.wait_for_training(1);
    let lost = NODES as u32;
    assert!(job.nodes().last().unwrap().host == format!("n{lost}"), "{:?}", job.nodes());
    cluster.link(lost, "down");
    cluster.lift_requeue_delay(job.number);
    job.finishes_as_undisturbed();
    assert!(job.nodes().iter().all(|node| node.host != format!("n{lost}")), "{:?}", job.nodes());
    cluster.link(lost, "up");
}

/// The variables of the outer allocation, which pin and place what inherits them, are not handed on.
pub(crate) fn from_inside(cluster: &Cluster) {
    let words = Job::submission("inside", &["--partition", "low"]);
    let output = cluster
        .command("srun")
        .args(["-p", "side", "-N1", "-n1", "--exclusive"])
        .arg(program("lampyris"))
        .args(words)
        .env("SBATCH_PARTITION", "nope")
        .env("SLURM_CPU_BIND", "map_cpu:99")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let job = Job::of(cluster, "inside", &String::from_utf8_lossy(&output.stdout));
    job.finishes_as_undisturbed();
    let script = job.run.join("job.sbatch");
    checked(&script);
}

/// A request to checkpoint that comes while the controller is away leads to a requeue when it is back; `lampyris suspend`
/// and `show` need no controller.
pub(crate) fn controller_away(cluster: &Cluster) {
    let job = Job::submit(cluster, "away", &[]);
    job.wait_for_training(1);
    cluster.controller_down();
    let shims: Vec<String> = job.nodes().iter().map(|node| node.pid.to_string()).collect();
    cluster.slurm(&format!("kill -USR2 {}", shims.join(" ")));
    wait_until("the ranks have checkpointed", || {
        job.nodes().iter().all(|node| node.exit_code == Some(85))
    });
    cluster.controller_up();
    cluster.lift_requeue_delay(job.number);
    job.wait_for_training(2);
    cluster.controller_down();
    cluster.said(&["suspend", "away"]);
    wait_until("the ranks have stopped", || {
        job.nodes().iter().all(|node| node.exit_code == Some(86))
    });
    let shown = cluster.json(&["show", "away"]);
    assert_eq!(shown["attempt"], 2);
    let reason = shown["reason"].as_str().unwrap();
    assert!(reason.contains("the queue does not answer"), "{reason}");
    cluster.controller_up();
    job.wait_for("FAILED");
    assert_eq!(cluster.field_of(job.number, "ExitCode"), "86:0");
}

/// shellcheck has nothing to say about the script, where it is installed.
fn checked(script: &Path) {
    let Ok(output) = std::process::Command::new("shellcheck").arg(script).output() else {
        return println!("slurm: shellcheck is not installed");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
