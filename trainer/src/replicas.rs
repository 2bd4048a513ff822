//! Where the snapshots lie that a rank keeps in memory (`checkpoint::Replica`).

use anyhow::{Context, Result, ensure};
use lampyris_checkpoint::HostMemory;
use lampyris_checkpoint::disk::RealDisk;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file system in memory, on every Linux.
const MEMORY: &str = "/dev/shm";

/// The memory of the run at `run_dir` on this host.
///
/// # Errors
/// The folder cannot be made, or belongs to somebody else: everybody may write beside it.
pub fn host_memory(run_dir: &Path) -> Result<HostMemory> {
    let user = rustix::process::geteuid().as_raw();
    let base = PathBuf::from(MEMORY).join(format!("lampyris-{user}"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&base)
        .with_context(|| format!("creating {}", base.display()))?;
    let found = base.symlink_metadata()?;
    let ours = found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0;
    ensure!(ours, "{} must be a folder that only this user can enter", base.display());
    Ok(HostMemory::of_run(Arc::new(RealDisk), &base, &run_dir.canonicalize()?))
}
