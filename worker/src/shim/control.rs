//! `control/suspend.json` of a run directory: the request to checkpoint and stay stopped until resumed. It is a file so
//! that anyone who can write the run directory can ask, on any node and without knowing where the run lives.

use crate::run_file;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The request, below a run directory.
const SUSPEND: &str = "control/suspend.json";

/// Path of the request of `run_dir`.
pub fn suspend_path(run_dir: &Path) -> PathBuf {
    run_dir.join(SUSPEND)
}

/// Asks the run to checkpoint and stay stopped. Written to a temporary name and renamed, so that no reader sees a part.
///
/// # Errors
/// When the folder cannot be written.
pub fn request_suspend(run_dir: &Path, reason: &str) -> io::Result<()> {
    fs::create_dir_all(run_dir.join("control"))?;
    let request = serde_json::json!({ "stay_stopped": true, "reason": reason });
    run_file::write(run_dir, SUSPEND, 0o666, format!("{request}\n").as_bytes())
}

/// Whether a suspend is requested.
pub fn suspend_requested(run_dir: &Path) -> bool {
    suspend_path(run_dir).exists()
}

/// Takes the request back; a resume does this before it starts.
///
/// # Errors
/// When the file exists and cannot be removed.
pub fn clear_suspend(run_dir: &Path) -> io::Result<()> {
    match fs::remove_file(suspend_path(run_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_whole_and_cleared_once() {
        let run = tempfile::tempdir().unwrap();
        assert!(!suspend_requested(run.path()));
        request_suspend(run.path(), "maintenance \"tonight\"").unwrap();
        assert!(suspend_requested(run.path()));
        let text = fs::read_to_string(suspend_path(run.path())).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["reason"], "maintenance \"tonight\"");
        assert_eq!(fs::read_dir(run.path().join("control")).unwrap().count(), 1);
        clear_suspend(run.path()).unwrap();
        assert!(!suspend_requested(run.path()));
        clear_suspend(run.path()).unwrap();
    }
}
