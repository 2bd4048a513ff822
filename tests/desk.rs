//! A folder with runs of the debug recipes.

use crate::{program, repository};
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::{Reader, Run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long any command of this suite may take.
const LIMIT: Duration = Duration::from_secs(240);

/// The folder.
#[derive(Debug)]
pub struct Desk {
    /// It is removed with this value.
    pub dir: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Desk {
    /// An empty one.
    #[allow(clippy::new_without_default, reason = "a folder is made")]
    pub fn new() -> Desk {
        Desk { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `lampyris` with these arguments, run in it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("lampyris"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("LAMPYRIS_CACHE", self.path("cache"))
            .env_remove("LAMPYRIS_RANK")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `lampyris` to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().expect("lampyris runs");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Trains `recipe` into folder `name`; `sets` are overrides.
    pub fn train(&self, recipe: &str, name: &str, sets: &[&str]) -> Ended {
        self.train_with(recipe, name, sets, &[])
    }

    /// The same with more arguments.
    pub fn train_with(&self, recipe: &str, name: &str, sets: &[&str], more: &[&str]) -> Ended {
        let arguments = arguments(&["train", &path_of(recipe), "--run-dir", name], sets, more);
        self.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Trains in the background.
    pub fn start(&self, recipe: &str, name: &str, sets: &[&str]) -> Child {
        self.spawn(&arguments(&["train", &path_of(recipe), "--run-dir", name], sets, &[]))
    }

    /// The same with more arguments.
    pub fn start_with(&self, recipe: &str, name: &str, sets: &[&str], more: &[&str]) -> Child {
        self.spawn(&arguments(&["train", &path_of(recipe), "--run-dir", name], sets, more))
    }

    /// Continues run `name` under other values of `recipe`, in the background.
    pub fn resume(&self, recipe: &str, name: &str, sets: &[&str], more: &[&str]) -> Child {
        self.spawn(&arguments(&["resume", name, "--recipe", &path_of(recipe)], sets, more))
    }

    /// The command that trains, its output captured.
    pub fn train_command(&self, recipe: &str, name: &str, sets: &[&str]) -> Command {
        let arguments = arguments(&["train", &path_of(recipe), "--run-dir", name], sets, &[]);
        self.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn spawn(&self, arguments: &[String]) -> Child {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.command(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("lampyris starts")
    }

    /// Every validation of a run as it was recorded, by step.
    pub fn validation(&self, name: &str) -> BTreeMap<u64, Value> {
        let text = std::fs::read_to_string(self.path(name).join("metrics.jsonl"));
        let lines = text.unwrap_or_default();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| !line["validation"].is_null())
            .filter_map(|line| Some((line["step"].as_u64()?, line["validation"].clone())))
            .collect()
    }

    /// Loss of every step as it was last recorded, with all its digits.
    pub fn losses(&self, name: &str) -> BTreeMap<u64, f64> {
        let text = std::fs::read_to_string(self.path(name).join("metrics.jsonl"));
        let text = text.unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?)))
            .collect()
    }

    /// Waits until `name` has recorded step `step`.
    pub fn wait_for_step(&self, name: &str, step: u64) {
        self.wait(&format!("step {step} of {name}"), || {
            self.losses(name).keys().next_back().is_some_and(|last| *last >= step)
        });
    }

    /// Waits for `condition`.
    ///
    /// # Panics
    /// If it does not come true in time.
    pub fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < LIMIT, "{what} did not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The newest checkpoint of `name`.
    pub fn newest(&self, name: &str) -> Reader {
        newest(&self.path(name))
    }

    /// Every tensor of the newest checkpoint of both runs has the same bits.
    pub fn assert_same_state(&self, a: &str, b: &str) {
        assert_same_state(&self.path(a), &self.path(b));
    }
}

/// The newest checkpoint of the run in `run_dir`.
pub fn newest(run_dir: &Path) -> Reader {
    let run = Run::open_read_only(Arc::new(RealDisk), run_dir);
    let id = *run.candidates().expect("lineage").first().expect("a checkpoint");
    Reader::open(Arc::clone(run.disk()), &run.path(id)).expect("a good checkpoint")
}

/// Every tensor of the newest checkpoint of both runs has the same bits.
///
/// # Panics
/// If one has not.
pub fn assert_same_state(a: &Path, b: &Path) {
    let (a, b) = (newest(a), newest(b));
    assert_eq!(a.manifest().id.step, b.manifest().id.step);
    assert_eq!(a.manifest().state, b.manifest().state);
    assert_eq!(a.manifest().tensors, b.manifest().tensors);
    for tensor in &a.manifest().tensors {
        for &kind in &tensor.kinds {
            let read = |reader: &Reader| {
                let mut values = vec![0f32; tensor.shape.iter().product()];
                reader.read(&tensor.name, kind, 0, &mut values).expect("readable");
                values.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            };
            assert!(read(&a) == read(&b), "{} {kind} differs", tensor.name);
        }
    }
}

fn path_of(recipe: &str) -> String {
    repository(&format!("recipes/{recipe}.toml")).display().to_string()
}

fn arguments(command: &[&str], sets: &[&str], more: &[&str]) -> Vec<String> {
    let mut out: Vec<String> = command.iter().chain(more).map(|s| (*s).to_string()).collect();
    // One thread: what is tested here must not depend on how many cores the machine has.
    let common = ["parallel.threads_per_rank=1", "output.tensorboard=false"];
    for set in common.iter().chain(sets) {
        out.extend(["--set".to_string(), (*set).to_string()]);
    }
    out
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("the process lives");
}

/// Rank programs that process `parent` has started.
pub fn rank_pids(parent: u32) -> Vec<u32> {
    let parent = format!("PPid:\t{parent}\n");
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("procfs").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if status.starts_with("Name:\tlampyris-rank") && status.contains(&parent) {
            pids.push(pid);
        }
    }
    pids
}
