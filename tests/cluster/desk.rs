//! A scheduler and workers as processes of their own, which a test kills, stops and starts again.

use lampyris_tests::{program, repository};
use serde_json::Value;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest time anything may take on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Between two looks.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// Leases of 2 s, and everything else as quick.
const POLICY: &str = "lease_ms = 2000\nstop_grace_ms = 500\nmargin_ms = 300\nmin_quantum_ms = 0\n\
    suspend_grace_ms = 20000\nbackoff_ms = 100\nmax_backoff_ms = 1000\nunfit_ms = 500\n\
    start_deadline_ms = 20000\n";

/// A folder with everything of one cluster. Its processes end with it.
pub(crate) struct Desk {
    pub(crate) dir: TempDir,
    environment: Vec<(String, String)>,
    /// Jobs that were accepted.
    submitted: RefCell<Vec<String>>,
    pub(crate) scheduler: Option<Child>,
    pub(crate) workers: Vec<Option<Child>>,
}

impl Desk {
    /// With a steady rank of `pace` (see `steady_rank.rs`); nothing runs yet.
    pub(crate) fn new(pace: &str) -> Desk {
        let mut desk = Desk::of_real_ranks();
        let steady = program("lampyris-steady-rank").display().to_string();
        desk.set("LAMPYRIS_RANK", &steady);
        desk.set("STEADY_RANK", pace);
        desk
    }

    /// With the ranks that a person has; nothing runs yet.
    pub(crate) fn of_real_ranks() -> Desk {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        let submitted = RefCell::default();
        let mut desk =
            Desk { dir, environment: Vec::new(), submitted, scheduler: None, workers: Vec::new() };
        desk.set("USER", "ann");
        desk
    }

    /// Adds a variable to the environment of all that is started from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("lampyris"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_remove("LAMPYRIS_FAIL_POINT")
            .env_remove("LAMPYRIS_RANK")
            .env_remove("LAMPYRIS_SCHEDULER")
            .env("LAMPYRIS_CACHE", self.path("cache"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end; its stdout.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}\n{errors}\n{}", self.logs());
        out
    }

    /// Starts a daemon whose output goes to `NAME.log`, with further environment.
    fn daemon(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Child {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied());
        self.spawn(name, command)
    }

    /// Starts a program whose output goes to `NAME.log`.
    pub(crate) fn spawn(&self, name: &str, mut command: Command) -> Child {
        let path = self.path(&format!("{name}.log"));
        let log = File::options().create(true).append(true).open(path).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Starts the scheduler; `extra` are further arguments.
    pub(crate) fn start_scheduler(&mut self, extra: &[&str]) {
        let mut arguments = vec!["scheduler", "--policy", "policy.toml"];
        arguments.extend(extra);
        self.scheduler = Some(self.daemon("scheduler", &arguments, &[]));
        self.wait_for("the scheduler", |desk| desk.json(&["nodes", "--json"]).map(|_| true));
    }

    /// Starts worker `index`, with further environment.
    pub(crate) fn start_worker(&mut self, index: usize, variables: &[(&str, &str)]) {
        let name = format!("n{index}");
        let worker = self.daemon(&name, &["worker", "--name", &name], variables);
        self.add_worker(index, worker);
    }

    pub(crate) fn add_worker(&mut self, index: usize, worker: Child) {
        self.workers.resize_with(self.workers.len().max(index + 1), || None);
        self.workers[index] = Some(worker);
    }

    /// A scheduler and `workers` workers, all registered.
    pub(crate) fn up(pace: &str, workers: usize) -> Desk {
        let mut desk = Desk::new(pace);
        desk.start_all(workers);
        desk
    }

    /// The same on a desk where nothing runs yet.
    pub(crate) fn start_all(&mut self, workers: usize) {
        self.start_scheduler(&[]);
        for index in 0..workers {
            self.start_worker(index, &[]);
        }
        self.wait_online(workers);
    }

    /// Starts `up` and waits until it takes jobs.
    pub(crate) fn start_up(&self, nodes: usize) -> Up {
        let number = nodes.to_string();
        let mut command = self.command(&["up", "--nodes", &number, "--policy", "policy.toml"]);
        let log = File::options().create(true).append(true).open(self.path("up.log")).unwrap();
        let mut up = Up(command.stdout(Stdio::piped()).stderr(log).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(up.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&format!("a cluster of {nodes} nodes")), "{line}\n{}", self.logs());
        up
    }

    pub(crate) fn wait_online(&self, workers: usize) {
        self.wait_for("all nodes to be online", |desk| Some(desk.online()? == workers));
    }

    fn online(&self) -> Option<usize> {
        let nodes = self.json(&["nodes", "--json"])?;
        Some(nodes.as_array()?.iter().filter(|node| node["state"] == "online").count())
    }

    /// What a command prints as JSON; none while the scheduler is not there.
    pub(crate) fn json(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.command(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    /// Submits debug_llama with `steps` steps; its number.
    pub(crate) fn submit(&self, name: &str, steps: u64, more: &[&str]) -> String {
        let recipe = repository("recipes/debug_llama.toml").display().to_string();
        let tokens = format!("schedule.total_tokens={}", steps * 512);
        let mut arguments =
            vec!["submit", &recipe, "--run-dir", name, "--name", name, "--set", &tokens, "--json"];
        arguments.extend(more);
        let said = self.run(&arguments);
        let job: Value = serde_json::from_str(&said).unwrap();
        let id = job["id"].as_str().unwrap().to_string();
        self.submitted.borrow_mut().push(id.clone());
        id
    }

    /// Jobs that were accepted and that the scheduler does not know, each as a problem in words.
    pub(crate) fn lost_jobs(&self) -> Vec<String> {
        let submitted = self.submitted.borrow();
        if submitted.is_empty() {
            return Vec::new();
        }
        let known: Value = serde_json::from_str(&self.run(&["list", "--all", "--json"])).unwrap();
        let knows = |id: &&String| known.as_array().unwrap().iter().any(|job| job["id"] == **id);
        submitted.iter().filter(|id| !knows(id)).map(|id| format!("job {id} is lost")).collect()
    }

    pub(crate) fn show(&self, job: &str) -> Option<Value> {
        self.json(&["show", job, "--json"])
    }

    pub(crate) fn phase(&self, job: &str) -> Option<String> {
        Some(self.show(job)?["phase"].as_str()?.to_string())
    }

    /// Waits until a job is in `phase`; ends at once if it has ended otherwise.
    pub(crate) fn wait_phase(&self, job: &str, phase: &str) {
        self.wait_for(&format!("job {job} to be {phase}"), |desk| {
            let now = desk.show(job)?;
            let is = now["phase"].as_str()?;
            let ended = ["succeeded", "failed", "cancelled"].contains(&is);
            assert!(is == phase || !ended, "job {job} has {is}: {now}\n{}", desk.logs());
            Some(is == phase)
        });
    }

    /// Waits until a job has completed `step` steps.
    pub(crate) fn wait_step(&self, job: &str, step: u64) {
        self.wait_for(&format!("step {step} of job {job}"), |desk| {
            Some(desk.show(job)?["step"].as_u64()? >= step)
        });
    }

    /// Waits for something, with a limit.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&Desk) -> Option<bool>) {
        let until = Instant::now() + LIMIT;
        while holds(self) != Some(true) {
            assert!(Instant::now() < until, "waited for {what}\n{}", self.logs());
            std::thread::sleep(LOOK_PERIOD);
        }
    }

    /// All logs, for a failure.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = fs::read_to_string(&path).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(25).collect();
                text.push_str(&format!("--- {}\n", path.display()));
                tail.iter().rev().for_each(|line| text.push_str(&format!("{line}\n")));
            }
        }
        text
    }

    /// Processes of shims or ranks of one worker, by what their command lines contain.
    pub(crate) fn processes(&self, contains: &str) -> Vec<u32> {
        let own = self.dir.path().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&own) && line.contains(contains) {
                found.push(pid);
            }
        }
        found
    }
}

/// `lampyris up`, which ends with its test at the latest.
pub(crate) struct Up(Child);

impl Up {
    /// Ends it as Ctrl-C does.
    pub(crate) fn stop(mut self, desk: &Desk) {
        signal(self.0.id(), rustix::process::Signal::INT);
        assert_eq!(self.0.wait().unwrap().code(), Some(0), "{}", desk.logs());
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let daemons = self.workers.iter_mut().chain([&mut self.scheduler]).flatten();
        for daemon in daemons {
            daemon.kill().ok();
            daemon.wait().ok();
        }
        for pid in self.processes(" shim ").into_iter().chain(self.processes("--socket-fd")) {
            signal(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Sends a signal; a process that is gone is as good.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).ok();
}

/// Says, past the capture of tests that pass, that a test was not run; CI can run all.
pub(crate) fn skip(why: &str) {
    use std::io::Write;
    assert!(std::env::var_os("CI").is_none(), "CI runs everything: {why}");
    writeln!(std::io::stderr(), "skipped: {why}").unwrap();
}

/// `kill -9`, and waits for the end.
pub(crate) fn kill(daemon: &mut Option<Child>) {
    let mut child = daemon.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Waits until a daemon has killed itself at its fail point.
pub(crate) fn wait_death(daemon: &mut Option<Child>, logs: &dyn Fn() -> String) {
    let mut child = daemon.take().unwrap();
    let until = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            child.kill().ok();
            panic!("the fail point was never reached\n{}", logs());
        }
        std::thread::sleep(LOOK_PERIOD);
    }
}
