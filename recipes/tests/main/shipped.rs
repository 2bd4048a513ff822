//! The shipped recipes.

use crate::defaults;
use lampyris_recipes::{SHIPPED, parse};
use std::path::Path;

#[test]
fn every_shipped_recipe_is_a_valid_plan() {
    for (name, text) in SHIPPED {
        let origin = format!("/recipes/{name}.toml");
        if let Err(error) = parse(text, Path::new(&origin), &[], &defaults()) {
            panic!("{error}");
        }
    }
}
