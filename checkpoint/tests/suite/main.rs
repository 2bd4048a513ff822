//! What the crate promises to its users, through its public interface only.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "the helpers of tests are tests")]

mod crash;
mod crash_disk;
mod faults;
mod fixture;
mod fuzz;
mod golden;
mod hf_config;
mod hf_export;
mod hf_folder;
mod hf_fuzz;
mod hooked_disk;
mod kill;
mod large;
mod lost;
mod peers;
mod ranks;
mod replica;
mod saver;
mod snapshot;

use std::path::{Path, PathBuf};

/// A parity case of the repository.
fn oracle(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/oracle").join(case)
}

/// All parity cases.
const CASES: [&str; 4] = ["llama_gqa", "deepseek_v3", "deepseek_v3_noqlora", "deepseek_v3_yarn"];
