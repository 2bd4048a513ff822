//! Finds `lampyris-rank`, the program that links libtorch, and makes sure that both speak the same words.

use crate::error::CliError;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Environment variable that names the rank program.
pub(crate) const VARIABLE: &str = "LAMPYRIS_RANK";

/// Build id of this program; the rank program must have the same.
pub(crate) fn build_id() -> String {
    lampyris_proto::build_id(lampyris_plan::train_plan::SCHEMA)
}

/// The rank program: `named` (from [`VARIABLE`]) or the one beside this program. It has been started once and has
/// answered with this program's build id.
pub(crate) fn find(named: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let path = locate(named)?;
    let theirs = ask_build_id(&path)?;
    let ours = build_id();
    if theirs == ours { Ok(path) } else { Err(CliError::BuildId { path, theirs, ours }) }
}

/// Where it is, not started: enough where nodes start their own, whose build ids are asked for there. Starting it takes
/// a third of a second.
pub(crate) fn locate(named: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let path = match named {
        Some(path) => path,
        None => std::env::current_exe()
            .map_err(|source| CliError::OwnPath { source })?
            .with_file_name("lampyris-rank"),
    };
    if path.exists() { Ok(path) } else { Err(CliError::NoRankProgram { path }) }
}

fn ask_build_id(path: &Path) -> Result<String, CliError> {
    let broken = |what: String| CliError::RankProgram { path: path.to_path_buf(), what };
    let output = Command::new(path)
        .arg("--build-id")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| broken(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Err(broken(format!("{}: {last}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
