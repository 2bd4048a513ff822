//! Helpers shared by the test suites: where the built programs are, how to run them.

use std::path::PathBuf;

/// A program of this workspace, built beside the running test: `cargo build --workspace --bins` makes it.
///
/// # Panics
/// If it is not built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    // target/debug/deps/suite-0123 -> target/debug/name
    let path = test.ancestors().nth(2).expect("tests run from target/*/deps").join(name);
    assert!(path.exists(), "{} is not built; `make build` does it", path.display());
    path
}
