//! The batch script of a Slurm job, word for word, and what is refused before anything is submitted. What happens on a
//! cluster is in tests/slurm.

use crate::desk::{Desk, shipped};
use lampyris_tests::{assert_golden, program};
use std::process::Command;

/// The script that `--dry-run` prints, with the places of this machine taken out.
fn script(desk: &Desk, more: &[&str]) -> String {
    let recipe = shipped("debug_moe");
    let mut words = vec!["submit", &recipe, "--cluster", "slurm", "--dry-run", "--run-dir", "run"];
    words.extend(more);
    let ended = desk.run(&words);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!desk.dir.path().join("run").exists(), "nothing is made");
    let desk = desk.dir.path().canonicalize().unwrap();
    let program = program("lampyris").canonicalize().unwrap();
    ended
        .stdout
        .replace(desk.to_str().unwrap(), "/desk")
        .replace(program.to_str().unwrap(), "/bin/lampyris")
        .replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

fn configured() -> Desk {
    let desk = Desk::new("");
    desk.file(
        "config.toml",
        "[cluster.slurm]\npartition = \"gpu\"\naccount = \"ml\"\ntime = \"1-00:00:00\"\n\
         gpus_per_node = 8\ncpus_per_node = 96\ngrace_s = 300\nmax_requeues = 7\nmax_retries = 2\n\
         sbatch = [\"--constraint=ib\"]\nsetup = [\"module load cuda\"]\nexport = [\"HTTP_PROXY\"]\n",
    );
    desk.with("LAMPYRIS_CONFIG", "config.toml")
}

#[test]
fn scripts_are_as_committed() {
    let plain = Desk::new("").with("LAMPYRIS_CONFIG", "none.toml");
    assert_golden("tests/cli/golden/job.sbatch", &script(&plain, &[]));
    let flags = ["--partition", "debug", "--qos", "short", "--sbatch=--nice=100"];
    assert_golden("tests/cli/golden/job_configured.sbatch", &script(&configured(), &flags));
}

/// CI has shellcheck; elsewhere it may be missing.
#[test]
fn shellcheck_has_nothing_to_say() {
    let desk = configured();
    let path = desk.file("job.sbatch", &script(&desk, &[]));
    match Command::new("shellcheck").arg(&path).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        Err(error) => {
            let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!in_ci, "CI has no shellcheck: {error}");
            eprintln!("shellcheck is not installed: not checked");
        }
    }
}

#[test]
fn without_slurm_the_run_is_kept_and_named() {
    let desk = Desk::new("").with("PATH", "/nowhere").with("LAMPYRIS_CONFIG", "none.toml");
    let recipe = shipped("debug_moe");
    let ended = desk.run(&["submit", &recipe, "--cluster", "slurm", "--run-dir", "run"]);
    assert_eq!(ended.code, 1);
    for part in [
        "error: sbatch is not on this machine",
        "hint: submit on a login node of the cluster",
        "not submitted; `lampyris resume run --cluster slurm` tries again",
    ] {
        assert!(ended.stderr.contains(part), "{part:?} in\n{}", ended.stderr);
    }
    assert!(desk.dir.path().join("run/job.sbatch").exists());
}

#[test]
fn what_belongs_into_a_job_is_refused_outside() {
    let desk = Desk::new("");
    desk.run(&["submit", &shipped("debug_moe"), "--cluster", "slurm", "--run-dir", "run"]);
    let mut command = desk.command(&["slurm", "claim", "run"]);
    let output = command.env_remove("SLURM_JOB_ID").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("SLURM_JOB_ID is not set"), "{said}");
    let ended = desk.run(&["slurm", "hosts", "n[3-1]"]);
    assert!(
        ended.stderr.contains("\"3-1\" is no range of numbers in \"n[3-1]\""),
        "{}",
        ended.stderr
    );
}
