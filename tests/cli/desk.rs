//! A person's desk: an empty folder, an empty cache, `lampyris`, and a fake rank program with a script.

use lampyris_tests::{program, repository};
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use tempfile::TempDir;

pub(crate) struct Desk {
    pub(crate) dir: TempDir,
    script: String,
    environment: Vec<(String, String)>,
}

/// How a command ended and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code, or 128 + signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Desk {
    /// With a rank that does what `script` says (see `fake_rank.rs`).
    pub(crate) fn new(script: &str) -> Desk {
        let dir = tempfile::tempdir().unwrap();
        Desk { dir, script: script.into(), environment: Vec::new() }
    }

    pub(crate) fn with(mut self, variable: &str, value: &str) -> Desk {
        self.environment.push((variable.into(), value.into()));
        self
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("lampyris"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("LAMPYRIS_CACHE", self.dir.path().join("cache"))
            .env("LAMPYRIS_RANK", program("lampyris-fake-rank"))
            .env("FAKE_RANK", &self.script)
            .env_remove("COLUMNS")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().unwrap();
        Ended {
            code: code(output.status),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Started {
        Started::of(&mut self.command(arguments))
    }

    /// The only folder below `runs`.
    pub(crate) fn only_run(&self) -> PathBuf {
        let mut runs = fs::read_dir(self.dir.path().join("runs")).unwrap();
        let run = runs.next().unwrap().unwrap().path();
        assert!(runs.next().is_none(), "one run");
        run
    }
}

/// A command that runs. Its stderr is read line by line; the end of it is the end of the command.
pub(crate) struct Started {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Started {
    /// Starts `command`.
    pub(crate) fn of(command: &mut Command) -> Started {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Started { child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads on until a line contains `text`.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let mut seen = String::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        panic!("it ended without saying {text:?}; it said\n{seen}");
    }

    pub(crate) fn end(mut self) -> Ended {
        let stderr: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        let output = self.child.wait_with_output().unwrap();
        Ended {
            code: code(output.status),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: stderr.join("\n"),
        }
    }
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap()
}

/// Path of a shipped recipe.
pub(crate) fn shipped(name: &str) -> String {
    repository(&format!("recipes/{name}.toml")).to_str().unwrap().to_string()
}
