//! Helpers shared by the test suites: where the built programs are, and text that is compared with a committed file.

pub mod fake_checkpoint;
pub mod steady;

use std::path::{Path, PathBuf};

pub mod desk;

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

/// A file of this repository, by its path from the root.
pub fn repository(path: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the repository").join(path)
}

/// Compares `actual` with the committed text at `path` (from the root of the repository); with `UPDATE_GOLDEN=1` in the
/// environment writes it there instead, to be read before it is committed.
///
/// # Panics
/// If they differ.
pub fn assert_golden(path: &str, actual: &str) {
    let file = repository(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return std::fs::write(&file, actual).expect("golden files can be written");
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        expected == actual,
        "{path} differs; UPDATE_GOLDEN=1 rewrites it\n--- committed\n{expected}\n--- now\n{actual}"
    );
}
