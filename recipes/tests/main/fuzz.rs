//! Fuzzing of recipes and of `--set`: whatever a person writes gives a plan or problems.

use crate::defaults;
use lampyris_fuzz::fuzz;
use lampyris_plan::TrainPlan;
use lampyris_recipes::{RecipeError, parse, shipped};
use std::path::Path;
use std::time::Duration;

fn read(parser: &str, input: &[u8]) {
    let text = String::from_utf8_lossy(input).into_owned();
    let (text, sets) = match parser {
        "recipe" => (text, vec![]),
        "set" => (shipped("debug_moe").expect("a shipped recipe").to_string(), vec![text]),
        other => panic!("no parser {other}: corpus files are named PARSER-anything"),
    };
    match parse(&text, Path::new("run.toml"), &sets, &defaults()) {
        Ok(plan) => {
            let written = toml::to_string(&plan).expect("a plan is TOML");
            assert_eq!(toml::from_str::<TrainPlan>(&written).as_ref(), Ok(&plan));
        }
        Err(RecipeError::Invalid { problems, .. }) => assert!((1..=20).contains(&problems.len())),
        Err(other) => panic!("{other}"),
    }
}

fn run(time: Duration, seed: Option<u64>) {
    fuzz(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"), time, seed, read);
}

#[test]
fn whatever_is_written_gives_a_plan_or_problems() {
    run(Duration::from_millis(1500), Some(0x5eed));
}

#[test]
#[ignore = "long: ten minutes of mutations"]
fn whatever_is_written_gives_a_plan_or_problems_for_ten_minutes() {
    run(Duration::from_secs(600), None);
}
