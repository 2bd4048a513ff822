//! scripts/quickstart.sh on machines that lack something: it stops before any work and says what to install.

use lampyris_tests::repository;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Runs the script where only `programs` exist; its message.
fn run_with(programs: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    for program in ["bash", "date", "dirname"].iter().chain(programs) {
        let found = path.split(':').map(|dir| Path::new(dir).join(program)).find(|p| p.exists());
        symlink(found.expect("on this machine"), dir.path().join(program)).unwrap();
    }
    let output = Command::new(repository("scripts/quickstart.sh"))
        .env_clear()
        .env("PATH", dir.path())
        .env("HOME", dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn missing_programs_are_named_with_the_command_that_installs_them() {
    let said = run_with(&["cargo", "make"]);
    assert_eq!(said, "quickstart: missing: g++ python3; on Debian: apt-get install g++ python3\n");
    let said = run_with(&["make"]);
    assert!(said.contains("cargo is missing; install Rust from https://rustup.rs"), "{said}");
}
