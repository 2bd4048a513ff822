//! A folder with runs of the debug recipes.

use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::{Reader, Run};
use lampyris_tests::{program, repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long any command of this suite may take.
const LIMIT: Duration = Duration::from_secs(240);

pub(crate) struct Desk {
    pub(crate) dir: TempDir,
}

pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Desk {
    pub(crate) fn new() -> Desk {
        Desk { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
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

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().expect("lampyris runs");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Trains `recipe` into folder `name`; `sets` are overrides.
    pub(crate) fn train(&self, recipe: &str, name: &str, sets: &[&str]) -> Ended {
        self.run(&self.arguments(recipe, name, sets).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same in the background.
    pub(crate) fn start(&self, recipe: &str, name: &str, sets: &[&str]) -> Child {
        let arguments = self.arguments(recipe, name, sets);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.command(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("lampyris starts")
    }

    fn arguments(&self, recipe: &str, name: &str, sets: &[&str]) -> Vec<String> {
        let recipe = repository(&format!("recipes/{recipe}.toml")).display().to_string();
        let mut out = vec!["train".into(), recipe, "--run-dir".into(), name.into()];
        // One thread: what is tested here must not depend on how many cores the machine has.
        let common = ["parallel.threads_per_rank=1", "output.tensorboard=false"];
        for set in common.iter().chain(sets) {
            out.extend(["--set".to_string(), set.to_string()]);
        }
        out
    }

    /// Loss of every step as it was last recorded, with all its digits.
    pub(crate) fn losses(&self, name: &str) -> BTreeMap<u64, f64> {
        let text = std::fs::read_to_string(self.path(name).join("metrics.jsonl"));
        let text = text.unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_f64()?)))
            .collect()
    }

    /// Waits until `name` has recorded step `step`.
    pub(crate) fn wait_for_step(&self, name: &str, step: u64) {
        self.wait(&format!("step {step} of {name}"), || {
            self.losses(name).keys().next_back().is_some_and(|last| *last >= step)
        });
    }

    pub(crate) fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < LIMIT, "{what} did not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn newest(&self, name: &str) -> Reader {
        let run = Run::open_read_only(Arc::new(RealDisk), &self.path(name));
        let id = *run.candidates().expect("lineage").first().expect("a checkpoint");
        Reader::open(Arc::clone(run.disk()), &run.path(id)).expect("a good checkpoint")
    }

    /// Every tensor of the newest checkpoint of both runs has the same bits.
    pub(crate) fn assert_same_state(&self, a: &str, b: &str) {
        let (a, b) = (self.newest(a), self.newest(b));
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
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("the process lives");
}

/// Rank programs that process `parent` has started.
pub(crate) fn rank_pids(parent: u32) -> Vec<u32> {
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
