//! Which checkpoint a person means: a checkpoint folder, or a run directory with or without a step.

use crate::error::CliError;
use crate::run_dir::RunDir;
use lampyris_checkpoint::{CheckpointId, Run};
use std::path::{Path, PathBuf};

/// The folder of the checkpoint that `path` and `step` mean: `path` itself if it is one; else, of the run at `path`, the
/// newest of its lineage or the one after `step`.
pub(crate) fn select(path: &Path, step: Option<u64>) -> Result<PathBuf, CliError> {
    if step.is_none() && path.join("manifest.json").exists() {
        return Ok(path.to_path_buf());
    }
    let run = RunDir::open(path)?.checkpoints_read_only();
    Ok(run.path(newest(&run, step)?))
}

fn newest(run: &Run, step: Option<u64>) -> Result<CheckpointId, CliError> {
    let candidates = run.to_load()?;
    let wanted = |id: &&CheckpointId| step.is_none_or(|step| id.step.0 == step);
    let found = candidates.iter().find(wanted).copied();
    found.ok_or_else(|| CliError::NoCheckpoint { run: run.dir().to_path_buf(), step })
}
