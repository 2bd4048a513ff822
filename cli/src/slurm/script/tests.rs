//! Scripts made from the worst values there are, read as sbatch reads them and run by the real bash with programs that only
//! note what they are given.

use super::super::lines::sbatch_words;
use super::super::pilot::{self, Pilot};
use super::super::settings::{SlurmArgs, SlurmConfig};
use super::*;
use lampyris_plan::visible;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Pieces of names: whatever the shell or sbatch gives a meaning.
const PIECES: &[&str] = &[
    "'",
    "''",
    "\"",
    "$",
    "${HOME}",
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED;",
    "\\",
    "\\\\",
    " ",
    "  ",
    "-",
    "--",
    "-rf",
    "%",
    "%j",
    "%%",
    "#",
    " #",
    "é",
    "界",
    "🦀",
    "e\u{301}",
    ";",
    "&",
    "&&",
    "|",
    "*",
    "?",
    "[a]",
    "{1,2}",
    "~",
    "!",
    "!!",
    "=",
    "(",
    ")",
    "<",
    ">",
    ">PWNED",
    "a",
    "b",
    "\\n",
    "EOF",
    "--array=0-2",
    "#SBATCH",
    ":",
    ",",
];

/// Pieces that no script may hold.
const HIDDEN: &[&str] = &[
    "\n",
    "\r",
    "\t",
    "\u{1b}[2J",
    "\u{7f}",
    "\u{9b}",
    "\u{202e}",
    "\u{200b}",
    "\u{2028}",
    "\n#SBATCH --array=0-9\n",
];

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn name(&mut self) -> String {
        (0..=self.below(6)).map(|_| PIECES[self.below(PIECES.len())]).collect()
    }

    /// A name with a hidden piece somewhere in it.
    fn hidden(&mut self) -> String {
        self.name() + HIDDEN[self.below(HIDDEN.len())] + &self.name()
    }
}

fn settings() -> Settings {
    Settings::new(&SlurmArgs::default(), &SlurmConfig::default()).unwrap()
}

fn job(program: &Path, run_dir: &Path, name: &str) -> Result<String, CliError> {
    let layout = Layout { nodes: 2, ranks_per_node: 2 };
    render(&Job { run_dir, program, name, layout }, &settings())
}

fn lent(program: &Path, folder: &Path, worker: &[String]) -> Result<String, CliError> {
    pilot::render(&Pilot { folder, program, nodes: 2, worker }, &settings())
}

/// A folder with stand-ins for the programs that a script calls.
struct Cluster {
    root: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Cluster {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("bin")).unwrap();
        let cluster = Cluster { root };
        cluster.program(&cluster.path("bin/srun"), "printf '%s\\0' \"$@\" >\"$SAID/srun\"");
        cluster.program(&cluster.path("bin/scontrol"), "touch \"$SAID/scontrol\"");
        cluster
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn program(&self, path: &Path, line: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("#!/bin/bash\n{line}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a script in an empty folder. Gives what `srun` and `lampyris` were given, after checking that nothing else
    /// has come of it.
    fn run(&self, script: &str) -> (Vec<String>, Vec<String>) {
        for folder in ["said", "work"] {
            fs::remove_dir_all(self.path(folder)).ok();
            fs::create_dir(self.path(folder)).unwrap();
        }
        fs::write(self.path("job.sbatch"), script).unwrap();
        let output = Command::new("bash")
            .arg(self.path("job.sbatch"))
            .current_dir(self.path("work"))
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()))
            .env("SAID", self.path("said"))
            .env("SLURM_JOB_ID", "7")
            .env("SLURM_CPUS_ON_NODE", "3")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}\n{script}");
        assert_eq!(said, "", "{script}");
        assert_eq!(fs::read_dir(self.path("work")).unwrap().count(), 0, "{script}");
        (self.said("srun"), self.said("lampyris"))
    }

    fn said(&self, program: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path("said").join(program)).unwrap_or_default();
        text.split_terminator('\0').map(str::to_string).collect()
    }
}

/// Words of all #SBATCH lines.
fn options(script: &str) -> Vec<String> {
    let lines = script.lines().filter_map(|line| line.strip_prefix("#SBATCH"));
    lines.flat_map(sbatch_words).collect()
}

/// Every line is one of the template; `value` says which may differ.
fn assert_same_lines(script: &str, plain: &str, value: impl Fn(&str) -> bool) {
    assert_eq!(script.lines().count(), plain.lines().count(), "{script}");
    for (line, expected) in script.lines().zip(plain.lines()) {
        assert!(line == expected || value(expected), "{line}\n{script}");
    }
}

fn check_job(cluster: &Cluster, random: &mut Random) {
    let (folder, run, name) = (random.name(), random.name(), random.name());
    let program = cluster.path("programs").join(&folder).join("lampyris");
    let note = "printf '%s\\0' \"$@\" >\"$SAID/lampyris\"; echo \"$SAID/the launch\"";
    cluster.program(&program, note);
    let run_dir = cluster.path(&format!("runs-{run}"));
    let run = run_dir.to_str().unwrap();
    let script = job(&program, &run_dir, &name).unwrap();
    let plain = job(Path::new("/lampyris"), Path::new("/run"), "name").unwrap();
    assert_same_lines(&script, &plain, |line| {
        ["#SBATCH --job-name=", "#SBATCH --comment=", "#SBATCH --output=", "lampyris=", "run="]
            .iter()
            .any(|start| line.starts_with(start))
    });
    let (read, of_plain) = (options(&script), options(&plain));
    assert_eq!(read.len(), of_plain.len(), "{script}");
    for (word, plain) in read.iter().zip(&of_plain) {
        let expected = match plain.as_str() {
            "--job-name=name" => format!("--job-name={name}"),
            "--comment=lampyris:/run" => format!("--comment=lampyris:{run}"),
            "--output=/run/logs/slurm-%j.log" => {
                format!("--output={}/logs/slurm-%j.log", run.replace('%', "%%"))
            }
            other => other.to_string(),
        };
        assert_eq!(*word, expected, "{script}");
    }
    let (srun, claim) = cluster.run(&script);
    assert_eq!(claim, ["slurm", "claim", run]);
    let launch = cluster.path("said/the launch");
    let node = [program.to_str().unwrap(), "slurm", "node", run, launch.to_str().unwrap()];
    assert_eq!(srun[srun.len() - 5..], node, "{script}");
}

fn check_pilot(cluster: &Cluster, random: &mut Random) {
    let worker: Vec<String> = (0..=random.below(3)).map(|_| random.name()).collect();
    let folder = cluster.path(&random.name());
    let script = lent(Path::new("/opt/lampyris"), &folder, &worker).unwrap();
    let plain = lent(Path::new("/opt/lampyris"), Path::new("/f"), &["x".into()]).unwrap();
    assert_same_lines(&script, &plain, |line| {
        line.starts_with("#SBATCH --output=") || line.starts_with("worker=(")
    });
    let (srun, _) = cluster.run(&script);
    let start = ["/opt/lampyris".to_string(), "slurm".into(), "worker".into()];
    let expected: Vec<String> = start.into_iter().chain(worker).collect();
    assert_eq!(srun[srun.len() - expected.len()..], expected, "{script}");
}

fn check_refused(random: &mut Random) {
    let (good, bad) = (random.name(), random.hidden());
    let path = |name: &str| Path::new("/x").join(name);
    let errors = [
        job(&path(&bad), &path(&good), &good),
        job(&path(&good), &path(&bad), &good),
        job(&path(&good), &path(&good), &bad),
        lent(&path(&bad), &path(&good), std::slice::from_ref(&good)),
        lent(&path(&good), &path(&bad), std::slice::from_ref(&good)),
        lent(&path(&good), &path(&good), std::slice::from_ref(&bad)),
    ];
    for error in errors {
        let said = error.expect_err(&bad).to_string();
        assert!(said.contains("cannot stand in a batch script"), "{said}");
        assert!(!said.contains(visible::is_hidden), "{said:?}");
    }
}

fn fuzz(time: Duration) {
    let seed = u64::from(std::process::id()) << 20 | 1;
    let mut random = Random(seed);
    let cluster = Cluster::new();
    let until = Instant::now() + time;
    let mut rounds = 0;
    while Instant::now() < until || rounds < 10 {
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check_job(&cluster, &mut random);
            check_pilot(&cluster, &mut random);
            check_refused(&mut random);
        }));
        assert!(checked.is_ok(), "seed {seed}, round {rounds}");
        rounds += 1;
    }
}

#[test]
fn values_reach_sbatch_and_the_shell_as_they_are_and_do_nothing_else() {
    fuzz(Duration::from_secs(1));
}

#[test]
#[ignore = "long: five minutes of scripts"]
fn values_reach_sbatch_and_the_shell_for_five_minutes() {
    fuzz(Duration::from_secs(300));
}

#[test]
fn paths_are_quoted_for_slurm_and_for_the_shell() {
    let text = job(Path::new("/opt/lampyris"), Path::new("/home/me/it's 100% mine"), "quickstart")
        .unwrap();
    assert!(text.contains("\nrun='/home/me/it'\\''s 100% mine'\n"), "{text}");
    let output = "#SBATCH --output=\"/home/me/it's 100%% mine/logs/slurm-%j.log\"\n";
    assert!(text.contains(output), "{text}");
}

#[test]
fn a_path_that_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(b"/runs/\xff"));
    let error = job(Path::new("/opt/lampyris"), path, "x").unwrap_err().to_string();
    assert!(error.contains("expected a path in UTF-8"), "{error}");
}
