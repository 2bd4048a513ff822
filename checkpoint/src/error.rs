//! Everything that can go wrong with a checkpoint or a Hugging Face folder, with the path and what to do about it.

use crate::tensors::Kind;
use lampyris_plan::inventory::Optimizer;
use lampyris_plan::visible::shell_word;
use lampyris_plan::{Attempt, Rank};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk has no room.
    #[error(
        "no space left while {doing} {}: free some space (for instance `lampyris checkpoint prune`) or move the run \
         to another disk; earlier checkpoints are untouched", path.display()
    )]
    DiskFull {
        /// What was being done, e.g. `writing`.
        doing: &'static str,
        /// File or folder.
        path: PathBuf,
    },
    /// The folder cannot be written.
    #[error(
        "no permission while {doing} {}: make the folder writable for this user or choose another one; earlier \
         checkpoints are untouched", path.display()
    )]
    NotWritable {
        /// What was being done.
        doing: &'static str,
        /// File or folder.
        path: PathBuf,
    },
    /// Any other failure of the file system.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file or folder that must not exist is there.
    #[error("{} exists already; choose another name or remove it first", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A configuration asks for something this project does not compute.
    #[error("{}: `{key}` = {value} is not supported: {reason}", file.display())]
    Unsupported {
        /// The configuration file.
        file: PathBuf,
        /// Key, nested keys joined by dots.
        key: String,
        /// Its value as JSON.
        value: String,
        /// What is supported.
        reason: String,
    },
    /// A configuration lacks a key.
    #[error("{}: `{key}` is missing: it must be {wanted}", file.display())]
    MissingKey {
        /// The configuration file.
        file: PathBuf,
        /// Key, nested keys joined by dots.
        key: String,
        /// Type or meaning.
        wanted: &'static str,
    },
    /// A file is not what it should be.
    #[error("{}: {problem}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A Hugging Face folder does not hold what its configuration promises.
    #[error("{}: {problem}:{}", dir.display(), bullets(names))]
    Tensors {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
        /// Tensors concerned, with shapes where shapes are the problem.
        names: Vec<String>,
    },
    /// A checkpoint is not what was written.
    #[error("checkpoint {} is corrupt: {file}: {problem}", dir.display())]
    Corrupt {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// File in it.
        file: String,
        /// What is wrong: which chunk, which tensors.
        problem: String,
    },
    /// Every checkpoint that might be loaded is damaged.
    #[error(
        "run {} has no good checkpoint left: put one back, or start a new run:{}",
        dir.display(), bullets(problems)
    )]
    NoneGood {
        /// The run directory.
        dir: PathBuf,
        /// What is wrong with each.
        problems: Vec<String>,
    },
    /// The records of a run and its checkpoints do not fit together, so that nobody can say which of them go on.
    #[error(
        "run {}: {problem}; nothing was changed. `lampyris checkpoint repair {}` writes lineage.jsonl anew from the \
         checkpoints that are there (--dry-run only says how) and deletes nothing", dir.display(),
        shell_word(&dir.to_string_lossy())
    )]
    Lineage {
        /// The run directory.
        dir: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A name or a record with a number that no attempt has.
    #[error(
        "{} names attempt {number}, and attempts are numbered up to {}: rename or remove it", path.display(),
        crate::lineage::MAX_ATTEMPT
    )]
    AttemptNumber {
        /// The file or folder.
        path: PathBuf,
        /// The number in it.
        number: String,
    },
    /// A checkpoint of another format.
    #[error(
        "checkpoint {} has format {found}; this version reads format {} and older: use a newer version",
        dir.display(), crate::format::FORMAT
    )]
    NewerFormat {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A checkpoint does not hold what is asked for.
    #[error(
        "checkpoint {} does not hold elements {}..{} of {tensor} {kind}: it is of another model or was saved without it",
        dir.display(), range.start, range.end
    )]
    NotSaved {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Hugging Face name.
        tensor: String,
        /// What was asked for.
        kind: Kind,
        /// Elements not found.
        range: Range<u64>,
    },
    /// A checkpoint whose moments belong to another optimizer.
    #[error(
        "checkpoint {} holds optimizer state of {found} for {tensor}, and the plan updates it by {wanted}: put \
         optimizer.kind back, or start a new run", dir.display()
    )]
    OtherOptimizer {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Hugging Face name of the first such tensor.
        tensor: String,
        /// Of the checkpoint.
        found: Optimizer,
        /// Of the plan.
        wanted: Optimizer,
    },
    /// A checkpoint whose moments belong to an optimizer that this version does not have.
    #[error(
        "checkpoint {} holds optimizer state of {name:?} for {tensor}, an optimizer that this version does not know: use \
         the version that wrote it, or a newer one", dir.display()
    )]
    UnknownOptimizer {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Hugging Face name of the first such tensor.
        tensor: String,
        /// Its name in the manifest.
        name: String,
    },
    /// The ranks together did not write every element once; nothing was committed.
    #[error("the checkpoint was not committed: {problem}")]
    Incomplete {
        /// What is missing or stands twice.
        problem: String,
    },
    /// Another rank failed; nothing was committed or loaded on any.
    #[error("rank {rank}: {problem}")]
    OtherRank {
        /// Which.
        rank: Rank,
        /// Its message.
        problem: String,
    },
    /// The ranks could not talk to each other about a checkpoint.
    #[error("the ranks could not agree about a checkpoint: {source}")]
    Ranks {
        /// The error of the all-gather.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer attempt of this run has begun: this process must not write any more.
    #[error(
        "attempt {attempt} of this run was superseded by attempt {by}: nothing was committed; stop this process"
    )]
    Superseded {
        /// This process.
        attempt: Attempt,
        /// The newer one.
        by: Attempt,
    },
    /// Another process has this attempt number.
    #[error("attempt {attempt} of this run is taken: another process has claimed it")]
    AttemptTaken {
        /// The number.
        attempt: Attempt,
    },
    /// An attempt wants to commit but never said from where it began.
    #[error("attempt {attempt} is not in lineage.jsonl: it must be recorded before it commits")]
    NotRecorded {
        /// The attempt.
        attempt: Attempt,
    },
    /// A model that no Hugging Face class can express.
    #[error("this model cannot be exported: {reason}")]
    NotExportable {
        /// Why.
        reason: String,
    },
}

/// At most this many names are printed in one message.
const MAX_NAMES: usize = 20;

fn bullets(names: &[String]) -> String {
    let mut text: String = names.iter().take(MAX_NAMES).map(|n| format!("\n  {n}")).collect();
    if names.len() > MAX_NAMES {
        text.push_str(&format!("\n  ... and {} more", names.len() - MAX_NAMES));
    }
    text
}

impl Error {
    /// Classifies an operating-system error met while `doing` something (a participle, e.g. `writing`) with `path`.
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Error {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::DiskFull { doing, path }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Error::NotWritable { doing, path }
            }
            _ => Error::Io { doing, path, source },
        }
    }

    pub(crate) fn is_superseded(&self) -> bool {
        matches!(self, Error::Superseded { .. })
    }

    /// Whether a checkpoint was found damaged, so that an older one should be tried.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Error::Corrupt { .. })
    }

    pub(crate) fn corrupt(dir: &Path, file: &str, problem: String) -> Error {
        Error::Corrupt { dir: dir.to_path_buf(), file: file.to_string(), problem }
    }

    pub(crate) fn malformed(file: &Path, problem: impl Into<String>) -> Error {
        Error::Malformed { file: file.to_path_buf(), problem: problem.into() }
    }
}
