//! Recipes as a person meets them: the shipped files, overrides, and the exact text of every error.

mod shipped;

use lampyris_recipes::Defaults;

/// Fixed folders, so that expected texts and digests are the same everywhere.
fn defaults() -> Defaults {
    Defaults {
        current_dir: "/here".into(),
        runs_dir: "/here/runs".into(),
        cache_dir: "/cache".into(),
    }
}
