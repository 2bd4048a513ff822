//! One run of a small mixture of experts under Slurm, and the same run undisturbed.

use crate::cluster::{Cluster, wait_until};
use lampyris_tests::repository;
use lampyris_worker::shim::status::{self, State, Status};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Of every job.
pub(crate) const NODES: usize = 2;
pub(crate) const RANKS_PER_NODE: usize = 2;

/// The last step of a run; long enough to be disturbed in.
const STEPS: u64 = 300;

pub(crate) struct Job<'a> {
    cluster: &'a Cluster,
    pub(crate) run: PathBuf,
    pub(crate) number: u64,
}

/// What all runs compute.
pub(crate) fn recipe() -> Vec<String> {
    let recipe = repository("recipes/debug_moe.toml").display().to_string();
    let mut words = vec![recipe];
    let tokens = format!("schedule.total_tokens={}", STEPS * 8 * 64);
    for set in
        [&tokens, "parallel.threads_per_rank=1", "checkpoint.every_steps=10", "eval.every_steps=0"]
    {
        words.extend(["--set".to_string(), set.to_string()]);
    }
    words
}

impl<'a> Job<'a> {
    /// Submits the recipe as run `name`.
    pub(crate) fn submit(cluster: &'a Cluster, name: &str, more: &[&str]) -> Job<'a> {
        let output = cluster
            .lampyris(&Job::submission(name, more).iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        Job::of(cluster, name, &String::from_utf8_lossy(&output.stdout))
    }

    /// The words of a submission.
    pub(crate) fn submission(name: &str, more: &[&str]) -> Vec<String> {
        let mut words = vec!["submit".to_string()];
        words.extend(recipe());
        let (nodes, ranks) = (NODES.to_string(), RANKS_PER_NODE.to_string());
        let launch = [
            "--cluster",
            "slurm",
            "--run-dir",
            name,
            "--nodes",
            &nodes,
            "--ranks-per-node",
            &ranks,
        ];
        words.extend(launch.iter().chain(more).map(ToString::to_string));
        words
    }

    /// The job that a submission printed.
    pub(crate) fn of(cluster: &'a Cluster, name: &str, printed: &str) -> Job<'a> {
        let number = printed.trim().strip_prefix("slurm:").unwrap().parse().unwrap();
        Job { cluster, run: cluster.desk().join(name), number }
    }

    pub(crate) fn nodes(&self) -> Vec<Status> {
        status::read(&self.run).unwrap()
    }

    pub(crate) fn attempt(&self) -> u64 {
        self.nodes().first().map_or(0, |node| node.attempt)
    }

    /// Waits until every rank of `attempt` has completed a step of it.
    pub(crate) fn wait_for_training(&self, attempt: u64) {
        wait_until(&format!("attempt {attempt} trains"), || {
            let nodes = self.nodes();
            let trains = |node: &Status| {
                node.ranks.iter().all(|rank| rank.total_steps > 0 && rank.step >= 2)
            };
            self.attempt() == attempt && nodes.len() == NODES && nodes.iter().all(trains)
        });
        assert!(self.nodes().iter().all(|node| !node.ended()), "it is not over yet");
    }

    /// Stops all ranks while `cause` makes Slurm send a signal, until the log says so: they would finish before it.
    pub(crate) fn hold_until(&self, said: &str, cause: impl FnOnce()) {
        self.signal_ranks("STOP");
        cause();
        wait_until(said, || self.log().contains(said));
        self.signal_ranks("CONT");
    }

    /// Sends SIG`name` to every rank.
    fn signal_ranks(&self, name: &str) {
        let nodes = self.nodes();
        let pids = nodes.iter().flat_map(|node| &node.ranks).map(|rank| rank.pid.to_string());
        let pids: Vec<String> = pids.collect();
        assert_eq!(pids.len(), NODES * RANKS_PER_NODE);
        self.cluster.slurm(&format!("kill -{name} {}", pids.join(" ")));
    }

    /// Waits for Slurm's last word.
    pub(crate) fn wait_for(&self, state: &str) {
        wait_until(&format!("job {} is {state}", self.number), || {
            self.cluster.state_of(self.number) == state
        });
    }

    /// Waits for the end of training, and compares the weights with those of an undisturbed run.
    pub(crate) fn finishes_as_undisturbed(&self) {
        self.wait_for("COMPLETED");
        let nodes = self.nodes();
        assert!(nodes.iter().all(|node| node.state == State::Finished), "{nodes:?}");
        same_as_undisturbed(self.cluster, &self.run);
    }

    /// All that the job has written.
    pub(crate) fn log(&self) -> String {
        let path = self.run.join(format!("logs/slurm-{}.log", self.number));
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

/// The weights of `run` are those of an undisturbed run.
pub(crate) fn same_as_undisturbed(cluster: &Cluster, run: &Path) {
    let run = run.display().to_string();
    let output = cluster.lampyris(&["checkpoint", "diff", undisturbed(cluster), &run]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The run that nothing happened to: one rank, on this machine. Sums do not depend on the number of ranks.
fn undisturbed(cluster: &Cluster) -> &'static str {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let recipe = recipe();
        let words = ["train"].into_iter().chain(recipe.iter().map(String::as_str));
        let words: Vec<&str> = words.chain(["--run-dir", "undisturbed"]).collect();
        cluster.said(&words);
    });
    "undisturbed"
}
