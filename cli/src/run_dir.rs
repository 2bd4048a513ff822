//! A run directory: the truth of a run. `plan.toml` is all that its ranks compute, `recipe.toml` what a person wrote,
//! `dataset.json` names the prepared text, `tokenizer/` turns tokens back into text wherever the text is; logs, metrics,
//! checkpoints and requests lie beside them.

use crate::error::CliError;
use crate::imported::Imported;
use jiff::Zoned;
use lampyris_checkpoint::Run;
use lampyris_checkpoint::disk::{RealDisk, regular};
use lampyris_data::{Dataset, Tokenizer};
use lampyris_plan::validate::validate;
use lampyris_plan::{TrainPlan, visible};
use lampyris_worker::run_file;
use lampyris_worker::shim::status::status_path;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PLAN: &str = "plan.toml";
const DATASET: &str = "dataset.json";
const IMPORTED: &str = "imported.json";
const TOKENIZER: &str = "tokenizer";

/// Runs of one name that may start in the same second.
const MAX_SAME_NAME: u32 = 10_000;

/// Largest `plan.toml`: one has a few kilobytes.
const MAX_PLAN_BYTES: u64 = 16 << 20;

/// Largest `dataset.json`: it holds one fingerprint.
const MAX_DATASET_BYTES: u64 = 1 << 20;

/// An existing run directory.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    path: PathBuf,
}

/// Held while a program on this machine runs the ranks; others are refused. What a program on another machine does is
/// fenced by attempts, not by this.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

/// Which text a run reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatasetRecord {
    /// Equal fingerprints give equal batches.
    pub(crate) fingerprint: String,
}

impl RunDir {
    /// Makes a directory for a new run: `named`, or `NAME-YYYYMMDD-HHMMSS` (local time) below the plan's `runs_dir`, with
    /// `-2`, `-3` and so on where others start in the same second. `recipe` is kept as given.
    pub(crate) fn create(
        plan: &TrainPlan,
        named: Option<&Path>,
        now: &Zoned,
        recipe: &str,
    ) -> Result<RunDir, CliError> {
        let path = RunDir::path_for(plan, named, now);
        refuse_hidden(&path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| CliError::write(parent, e))?;
        }
        let run = match named {
            Some(_) => create_dir(&path).map(|()| RunDir { path })?,
            None => RunDir::create_beside(&path)?,
        };
        let filled = run.fill(plan, recipe);
        run.or_remove(filled)?;
        Ok(run)
    }

    /// Makes `path`, or `path-2`, `path-3` and so on where it exists: whoever makes a directory first has it.
    fn create_beside(path: &Path) -> Result<RunDir, CliError> {
        let numbered = |number: u32| {
            let mut name = path.as_os_str().to_os_string();
            name.push(format!("-{number}"));
            PathBuf::from(name)
        };
        let names = std::iter::once(path.to_path_buf()).chain((2..=MAX_SAME_NAME).map(numbered));
        for path in names {
            match create_dir(&path) {
                Err(CliError::RunExists { .. }) => {}
                other => return other.map(|()| RunDir { path }),
            }
        }
        Err(CliError::RunExists { path: path.to_path_buf() })
    }

    fn fill(&self, plan: &TrainPlan, recipe: &str) -> Result<(), CliError> {
        for folder in ["control", "logs", TOKENIZER] {
            create_dir(&self.path.join(folder))?;
        }
        self.write("recipe.toml", recipe)?;
        self.write_plan(plan)
    }

    /// Hands on how the first start of a new run went. If it failed before a rank had started, there is nothing to
    /// continue: the directory goes, so that the same command can be given again.
    pub(crate) fn or_remove<T>(&self, started: Result<T, CliError>) -> Result<T, CliError> {
        let failed_early =
            matches!(&started, Err(error) if !matches!(error, CliError::Rank { .. }));
        if failed_early && self.is_bare() {
            // What cannot be removed stays: the error that is told is the first one.
            fs::remove_dir_all(&self.path).ok();
        }
        started
    }

    /// Whether no rank has left anything here.
    fn is_bare(&self) -> bool {
        let committed = self.checkpoints_read_only().committed();
        let none = fs::symlink_metadata(self.path.join("checkpoints")).is_err()
            || committed.is_ok_and(|committed| committed.is_empty());
        none && fs::symlink_metadata(status_path(&self.path, 0)).is_err()
    }

    /// Where [`RunDir::create`] makes the directory.
    pub(crate) fn path_for(plan: &TrainPlan, named: Option<&Path>, now: &Zoned) -> PathBuf {
        let default = || format!("{}-{}", plan.name, now.strftime("%Y%m%d-%H%M%S"));
        named.map_or_else(|| plan.output.runs_dir.join(default()), Path::to_path_buf)
    }

    /// An existing one.
    pub(crate) fn open(path: &Path) -> Result<RunDir, CliError> {
        let run = RunDir { path: path.to_path_buf() };
        match run.plan_path().try_exists() {
            Ok(true) => Ok(run),
            Ok(false) if !path.exists() => Err(run.not_a_run("it does not exist")),
            Ok(false) => Err(run.not_a_run("it has no plan.toml")),
            Err(error) => Err(CliError::read(&run.plan_path(), error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn plan_path(&self) -> PathBuf {
        self.path.join(PLAN)
    }

    /// The plan of the next start.
    pub(crate) fn plan(&self) -> Result<TrainPlan, CliError> {
        let path = self.plan_path();
        let text =
            regular::read_text(&path, MAX_PLAN_BYTES).map_err(|e| CliError::read(&path, e))?;
        toml::from_str(&text)
            .map_err(|error| self.not_a_run(&format!("its plan.toml is damaged: {error}")))
    }

    /// The same for those who compute with it: a plan that breaks no rule.
    pub(crate) fn valid_plan(&self) -> Result<TrainPlan, CliError> {
        let plan = self.plan()?;
        validate(&plan).map_err(CliError::Invalid)?;
        Ok(plan)
    }

    /// Replaces the plan at once or not at all.
    pub(crate) fn write_plan(&self, plan: &TrainPlan) -> Result<(), CliError> {
        let text = toml::to_string(plan).expect("a plan is plain data with string keys");
        self.write(".plan.toml.tmp", &text)?;
        let (from, to) = (self.path.join(".plan.toml.tmp"), self.plan_path());
        fs::rename(from, &to).map_err(|e| CliError::write(&to, e))
    }

    /// The text that earlier starts read, none before the first.
    pub(crate) fn dataset(&self) -> Result<Option<DatasetRecord>, CliError> {
        let path = self.path.join(DATASET);
        match regular::read_text(&path, MAX_DATASET_BYTES) {
            Ok(text) => {
                let record: DatasetRecord = serde_json::from_str(&text).map_err(|error| {
                    self.not_a_run(&format!("its {DATASET} is damaged: {error}"))
                })?;
                // It names a folder of the cache, and must name no other one.
                if !record.fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(self.not_a_run(&format!("its {DATASET} holds no fingerprint")));
                }
                Ok(Some(record))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CliError::read(&path, error)),
        }
    }

    /// What an import left to later recipes; none for a run of its own.
    pub(crate) fn imported(&self) -> Result<Option<Imported>, CliError> {
        let path = self.path.join(IMPORTED);
        match regular::read_text(&path, MAX_DATASET_BYTES) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|error| self.not_a_run(&format!("its {IMPORTED} is damaged: {error}"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CliError::read(&path, error)),
        }
    }

    /// Notes that the run was imported, and under which recipe it goes on.
    pub(crate) fn record_imported(&self, imported: &Imported) -> Result<(), CliError> {
        let text = serde_json::to_string(imported).expect("sizes become JSON");
        self.write(IMPORTED, &(text + "\n"))
    }

    /// Notes which text the run reads, and keeps its tokenizer.
    pub(crate) fn record_dataset(&self, dataset: &Dataset) -> Result<(), CliError> {
        dataset.tokenizer().save(&self.path.join(TOKENIZER))?;
        let record = DatasetRecord { fingerprint: dataset.fingerprint().into() };
        let text = serde_json::to_string(&record).expect("a string becomes JSON");
        self.write(DATASET, &(text + "\n"))
    }

    /// The tokenizer of the run.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, CliError> {
        Ok(Tokenizer::load(&self.path.join(TOKENIZER))?)
    }

    /// Its checkpoints and attempts.
    pub(crate) fn checkpoints(&self) -> Result<Run, CliError> {
        Ok(Run::open(Arc::new(RealDisk), &self.path)?)
    }

    /// The same, on a disk that may be read-only.
    pub(crate) fn checkpoints_read_only(&self) -> Run {
        Run::open_read_only(Arc::new(RealDisk), &self.path)
    }

    /// Refuses if another program on this machine runs it.
    pub(crate) fn lock(&self) -> Result<RunLock, CliError> {
        let path = self.path.join("control/lock");
        // A copy of a run may have lost its empty folders.
        let control = self.path.join("control");
        fs::create_dir_all(&control).map_err(|e| CliError::write(&control, e))?;
        let file = regular::open_or_create(&path).map_err(|e| CliError::write(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(CliError::Running { path: self.path.clone() }),
            // A file system without locks: attempts still fence.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                Ok(RunLock { _file: file })
            }
            Err(TryLockError::Error(e)) => Err(CliError::write(&path, e)),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.path.join(name);
        run_file::write(&self.path, name, 0o666, text.as_bytes())
            .map_err(|e| CliError::write(&path, e))
    }

    pub(crate) fn not_a_run(&self, what: &str) -> CliError {
        CliError::NotARun { path: self.path.clone(), what: what.into() }
    }
}

/// A run's path stands in scripts, requests and messages: it has no character that cannot be seen.
fn refuse_hidden(path: &Path) -> Result<(), CliError> {
    let whole = std::path::absolute(path).map_err(|error| CliError::read(path, error))?;
    if whole.to_string_lossy().contains(visible::is_hidden) {
        return Err(CliError::HiddenInPath { path: whole });
    }
    Ok(())
}

fn create_dir(path: &Path) -> Result<(), CliError> {
    fs::create_dir(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => CliError::RunExists { path: path.to_path_buf() },
        _ => CliError::write(path, error),
    })
}
