//! The cluster: `scripts/slurm_local.sh` with names of its own, and what the tests ask of it.

use lampyris_tests::{program, repository};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);

/// Until a delay is lifted again that Slurm has put back.
const LIFT_PERIOD: Duration = Duration::from_secs(10);

pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    number: u32,
}

impl Cluster {
    /// Whether this machine can have one.
    pub(crate) fn possible() -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a cluster in network namespaces needs root".into());
        }
        for name in ["slurmctld", "slurmd", "munged", "sbatch", "ip"] {
            let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
            if !found.is_ok_and(|output| output.status.success()) {
                return Err(format!("no {name}; `scripts/slurm_local.sh install` installs it"));
            }
        }
        Ok(())
    }

    pub(crate) fn up() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster { dir, number: std::process::id() };
        let output = cluster.local("up").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        cluster
    }

    fn local(&self, word: &str) -> Command {
        let mut command = Command::new(repository("scripts/slurm_local.sh"));
        let net = self.net();
        command
            .arg(word)
            .env("SLURM_LOCAL_DIR", self.state())
            .env("SLURM_LOCAL_PORT", (20_000 + self.number % 10_000 * 2).to_string())
            .env("SLURM_LOCAL_PREFIX", self.prefix())
            .env("SLURM_LOCAL_NET", net)
            // Enough for a checkpoint on a loaded machine.
            .env("SLURM_LOCAL_GRACE_S", "30");
        command
    }

    /// The first three numbers of all addresses; .254 is this side, where slurmctld is.
    pub(crate) fn net(&self) -> String {
        format!("10.{}.{}", 64 + self.number % 128, self.number / 128 % 256)
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("slurm")
    }

    /// Two to six letters of its own, so that several suites run side by side.
    fn prefix(&self) -> String {
        let letters = (0..4).map(|place| self.number / 26_u32.pow(place) % 26);
        let letters = letters.map(|letter| char::from(b'a' + letter as u8));
        "l".chars().chain(letters).collect()
    }

    /// The folder in which tests make their runs; all nodes see it.
    pub(crate) fn desk(&self) -> &Path {
        self.dir.path()
    }

    /// A program, with the environment of a user of this cluster.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("SLURM_CONF", self.state().join("slurm.conf"))
            .env("LAMPYRIS_CACHE", self.desk().join("cache"))
            .env("LAMPYRIS_CONFIG", self.desk().join("config.toml"))
            .env_remove("LAMPYRIS_RANK")
            .current_dir(self.desk())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn lampyris(&self, arguments: &[&str]) -> Output {
        self.command(program("lampyris")).args(arguments).output().unwrap()
    }

    /// What `lampyris` prints, which must succeed.
    pub(crate) fn said(&self, arguments: &[&str]) -> String {
        let output = self.lampyris(arguments);
        let (stdout, stderr) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "lampyris {arguments:?}: {stderr}");
        String::from_utf8(stdout).unwrap()
    }

    /// The same with `--json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.said(&arguments)).unwrap()
    }

    /// The stdout of a program of Slurm that must succeed.
    pub(crate) fn slurm(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        let (stdout, stderr) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8(stdout).unwrap()
    }

    /// Slurm's word for a job: PENDING, RUNNING, ...
    pub(crate) fn state_of(&self, job: u64) -> String {
        self.slurm(&format!("squeue -h -t all -j {job} -o %T")).trim().to_string()
    }

    /// A field of `scontrol show job`.
    pub(crate) fn field_of(&self, job: u64, field: &str) -> String {
        let text = self.slurm(&format!("scontrol -o show job {job}"));
        let found = text.split_whitespace().find_map(|word| word.strip_prefix(field));
        found.and_then(|rest| rest.strip_prefix('=')).unwrap_or_default().to_string()
    }

    /// Waits until the job is requeued, and lifts the two minutes that Slurm lets it wait but for three seconds, until it
    /// runs again. Earlier, the end of the attempt before would be taken for its own, or nodes would still refuse it: they
    /// revoke credentials by the second.
    pub(crate) fn lift_requeue_delay(&self, job: u64) {
        wait_until("the job is requeued", || self.field_of(job, "Restarts") != "0");
        let mut lifted: Option<Instant> = None;
        wait_until("the job runs again", || {
            let state = self.state_of(job);
            let completing = || self.slurm("sinfo -h -t completing -o %N").trim().to_string();
            let again = lifted.is_none_or(|at| at.elapsed() > LIFT_PERIOD);
            if again && state == "PENDING" && completing().is_empty() {
                let line = format!("scontrol update jobid={job} starttime=now+3");
                let output = self.command("sh").args(["-c", &line]).output().unwrap();
                lifted = output.status.success().then(Instant::now);
            }
            ["RUNNING", "COMPLETED"].contains(&state.as_str())
        });
    }

    /// Cuts node `n<node>` off, or joins it again.
    pub(crate) fn link(&self, node: u32, word: &str) {
        self.slurm(&format!("ip link set {}v{node} {word}", self.prefix()));
    }

    /// Ends slurmctld; `up` starts it again.
    pub(crate) fn controller_down(&self) {
        let pid = std::fs::read_to_string(self.state().join("run/slurmctld.pid")).unwrap();
        self.slurm(&format!("kill -TERM {0}; while kill -0 {0} 2>/dev/null && ! grep -q Z /proc/{0}/stat; do sleep 0.1; done", pid.trim()));
    }

    fn controller_is_up(&self) -> bool {
        let ping = self.command("scontrol").arg("ping").output().unwrap();
        String::from_utf8_lossy(&ping.stdout).contains("is UP")
    }

    pub(crate) fn controller_up(&self) {
        let conf = self.state().join("slurm.conf");
        self.slurm(&format!("slurmctld -f {}", conf.display()));
        wait_until("the controller answers", || {
            self.command("squeue").output().unwrap().status.success()
        });
    }

    /// Ends all jobs, and waits until all nodes are idle. A case that failed may have left the controller away.
    pub(crate) fn clear(&self) {
        if !self.controller_is_up() {
            self.controller_up();
        }
        self.slurm("scancel -u root; true");
        wait_until("the nodes are idle", || {
            self.slurm("sinfo -h -N -p low -t idle -o %N | sort -u | wc -l").trim() == "4"
        });
    }

    /// What helps to understand a failure.
    pub(crate) fn show(&self) {
        let newest_log = "tail -n 40 $(ls -t */logs/slurm-*.log | head -n 1) /dev/null";
        let line =
            format!("sinfo; squeue -t all; tail -n 20 slurm/log/slurmctld.log; {newest_log}");
        eprintln!("{}", self.slurm(&line));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let output = self.local("down").output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("the cluster is not down: {output:?}");
        }
    }
}

/// Looks every 100 ms; the other side is another program.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "in {LIMIT:?} not: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
