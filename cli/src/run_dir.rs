//! A run directory: the truth of a run. `plan.toml` is all that its ranks compute, `recipe.toml` what a person wrote;
//! logs, metrics, checkpoints and requests lie beside them.

use crate::error::CliError;
use jiff::Zoned;
use lampyris_plan::TrainPlan;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// An existing run directory.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes a directory for a new run: `named`, or `NAME-YYYYMMDD-HHMMSS` (local time) below the plan's `runs_dir`.
    /// `recipe` is kept as written, with the `--set` values as comments.
    pub(crate) fn create(
        plan: &TrainPlan,
        named: Option<&Path>,
        now: &Zoned,
        recipe: &str,
    ) -> Result<RunDir, CliError> {
        let path = match named {
            Some(path) => path.to_path_buf(),
            None => plan.output.runs_dir.join(format!(
                "{}-{}",
                plan.name,
                now.strftime("%Y%m%d-%H%M%S")
            )),
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| CliError::write(parent, e))?;
        }
        fs::create_dir(&path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => CliError::RunExists { path: path.clone() },
            _ => CliError::write(&path, error),
        })?;
        let run = RunDir { path };
        for folder in ["control", "logs"] {
            let folder = run.path.join(folder);
            fs::create_dir(&folder).map_err(|e| CliError::write(&folder, e))?;
        }
        run.write("recipe.toml", recipe)?;
        let text = toml::to_string(plan).expect("a plan is plain data with string keys");
        run.write("plan.toml", &text)?;
        Ok(run)
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
        self.path.join("plan.toml")
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(|e| CliError::write(&path, e))
    }

    fn not_a_run(&self, what: &str) -> CliError {
        CliError::NotARun { path: self.path.clone(), what: what.into() }
    }
}
