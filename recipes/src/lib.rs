//! Recipe files, and the crate that parses one into a [`TrainPlan`].
//!
//! Parsed once, in three steps: text to a tree that remembers lines (`tree`), the tree to a typed `RecipeFile`
//! (`read`, `recipe_file`), that to a plan in which nothing is left to default (`resolve`). `--set` values and presets
//! enter the tree, so every key behaves alike wherever it was given. All errors of a step are reported together, each
//! with its file and line, the key at fault and what to do.
//!
//! This crate reads the recipe file and nothing else: no environment, no data, no clock.

use lampyris_plan::TrainPlan;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

mod error;
mod read;
mod recipe_file;
mod resolve;
mod shipped;
mod tree;

pub use error::RecipeError;
pub use read::Key;
pub use recipe_file::keys;

pub use shipped::{SHIPPED, shipped};

use error::Problems;
use recipe_file::RecipeFile;
use tree::Sources;

/// What a recipe leaves to the program that reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Folder against which relative paths in `--set` are resolved, and relative recipe paths.
    pub current_dir: PathBuf,
    /// Parent of run directories if the recipe names none.
    pub runs_dir: PathBuf,
    /// Folder of tokenized shards if the recipe names none.
    pub cache_dir: PathBuf,
}

/// Reads the recipe at `path`, with `sets` (`key=value`) laid over it, later ones over earlier ones.
pub fn load(path: &Path, sets: &[String], defaults: &Defaults) -> Result<TrainPlan, RecipeError> {
    let text =
        read_text(path).map_err(|source| RecipeError::Read { path: path.to_path_buf(), source })?;
    parse(&text, path, sets, defaults)
}

/// The largest recipe that is read, in bytes: the largest shipped one has a few kilobytes.
const MAX_BYTES: u64 = 16 << 20;

/// The text of a recipe: a file, or a pipe.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        let message = format!("it has more than {} MiB, which no recipe has", MAX_BYTES >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// Like [`load`], on text: `origin` stands for its path in messages, and its folder is the one against which relative
/// paths in the text are resolved.
pub fn parse(
    text: &str,
    origin: &Path,
    sets: &[String],
    defaults: &Defaults,
) -> Result<TrainPlan, RecipeError> {
    // A plan is written as TOML and JSON, so its paths are text.
    let folders = [origin, &defaults.current_dir, &defaults.runs_dir, &defaults.cache_dir];
    if let Some(path) = folders.into_iter().find(|path| path.to_str().is_none()) {
        return Err(RecipeError::NotUtf8 { path: path.to_path_buf() });
    }
    let sources = Sources::new(origin, text, sets);
    let mut problems = Problems::default();
    let plan = read_plan(&sources, &mut problems, defaults);
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan),
        _ => Err(problems.into_error(&sources)),
    }
}

fn read_plan(sources: &Sources, problems: &mut Problems, defaults: &Defaults) -> Option<TrainPlan> {
    let tree = tree::merge(sources, problems)?;
    problems.remember_places(&tree);
    let recipe = RecipeFile::from_tree(&tree, problems).filter(|_| problems.is_empty())?;
    let paths = resolve::Paths::new(sources.origin(), defaults);
    let plan = resolve::plan(recipe, &paths, problems).filter(|_| problems.is_empty())?;
    if let Err(broken) = lampyris_plan::validate::validate(&plan) {
        for rule in broken {
            problems.at_key(rule.key(), rule.to_string(), rule.fix());
        }
    }
    Some(plan)
}
