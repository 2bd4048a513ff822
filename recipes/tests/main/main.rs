//! Recipes as a person meets them: the shipped files, overrides, and the exact text of every error.

mod docs;
mod errors;
mod fuzz;
mod golden;
mod overrides;
mod shipped;

use lampyris_plan::TrainPlan;
use lampyris_recipes::{Defaults, parse, shipped};
use std::path::Path;

/// Fixed folders, so that expected texts and digests are the same everywhere.
fn defaults() -> Defaults {
    Defaults {
        current_dir: "/here".into(),
        runs_dir: "/here/runs".into(),
        cache_dir: "/cache".into(),
    }
}

/// The plan of a shipped recipe, as if it lay in `/recipes`.
fn shipped_plan(name: &str) -> TrainPlan {
    let text = shipped(name).expect("a shipped recipe");
    let origin = format!("/recipes/{name}.toml");
    parse(text, Path::new(&origin), &[], &defaults()).unwrap_or_else(|error| panic!("{error}"))
}
