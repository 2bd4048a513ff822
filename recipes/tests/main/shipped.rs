//! The shipped recipes: each is a valid plan, and its report is known to the last letter.

use crate::{defaults, golden, shipped_plan};
use lampyris_plan::report::Report;
use lampyris_plan::validate::check_trainable;
use lampyris_recipes::{SHIPPED, load, parse, shipped};
use std::path::Path;

/// Recipes that only `lampyris plan` handles, each with the key that training refuses first.
const PLAN_ONLY: &[(&str, &str)] = &[
    ("shakespeare_char", "data.sources"),
    ("deepseek_llm_7b", "parallel.data"),
    ("deepseek_llm_67b", "parallel.data"),
    ("deepseek_moe_16b", "model.gate"),
    ("deepseek_v2_lite", "model.gate"),
    ("deepseek_v2", "model.gate"),
    ("deepseek_v3", "parallel.data"),
];

#[test]
fn reports_are_as_printed_before() {
    for (name, _) in SHIPPED {
        let text = Report::new(&shipped_plan(name)).to_string();
        golden::compare(&format!("reports/{name}.txt"), &text);
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{name}: more than 100 columns: {line}");
        }
    }
}

#[test]
fn reports_serialize_with_the_plan() {
    let report = Report::new(&shipped_plan("deepseek_v3"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["parameters"]["main"], report.parameters.main);
    assert_eq!(json["memory_per_rank"]["gradients"], report.memory_per_rank.kinds.gradients);
    assert_eq!(json["plan"]["model"]["hidden"], 7168);
}

/// The published sizes, in the units in which they are published.
#[test]
fn parameters_are_the_published_ones() {
    for (name, billions, mtp) in [
        ("deepseek_v3", "671.03", "11.61"),
        ("deepseek_v2", "235.74", "0.00"),
        ("deepseek_v2_lite", "15.71", "0.00"),
        ("deepseek_moe_16b", "16.38", "0.00"),
        ("deepseek_llm_67b", "67.43", "0.00"),
        ("deepseek_llm_7b", "6.91", "0.00"),
    ] {
        let parameters = Report::new(&shipped_plan(name)).parameters;
        let in_billions = |count: u64| format!("{:.2}", count as f64 / 1e9);
        assert_eq!(in_billions(parameters.main), billions, "{name}");
        assert_eq!(in_billions(parameters.mtp), mtp, "{name}");
    }
}

/// DeepSeek publishes 250 GFLOP per trained token for V3 and 155 for V2.
#[test]
fn flops_are_the_published_ones() {
    for (name, forward, training) in [
        ("deepseek_v3", "83.48", "250.45"),
        ("deepseek_v2", "51.77", "155.30"),
        ("deepseek_v2_lite", "5.47", "16.41"),
    ] {
        let flops = Report::new(&shipped_plan(name)).flops_per_token;
        assert_eq!(format!("{:.2}", flops.forward as f64 / 1e9), forward, "{name}");
        assert_eq!(format!("{:.2}", flops.training as f64 / 1e9), training, "{name}");
    }
    let v3 = Report::new(&shipped_plan("deepseek_v3")).flops_per_token;
    assert_eq!(format!("{:.2}", v3.forward_with_mtp as f64 / 1e9), "86.88");
}

#[test]
fn recipes_are_trainable_or_say_why_not() {
    for (name, _) in SHIPPED {
        let refused = check_trainable(&shipped_plan(name)).err().map(|reason| reason.key);
        let expected = PLAN_ONLY.iter().find(|(n, _)| n == name).map(|(_, key)| *key);
        assert_eq!(refused, expected, "{name}");
    }
}

#[test]
fn shakespeare_without_text_says_where_to_get_it() {
    let reason = check_trainable(&shipped_plan("shakespeare_char")).unwrap_err().to_string();
    assert!(reason.contains("--set data.path=FILE"), "{reason}");
    assert!(reason.contains("karpathy/char-rnn"), "{reason}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sets = ["data.path=input.txt".to_string()];
    let plan = load(&folder.join("shakespeare_char.toml"), &sets, &defaults()).unwrap();
    check_trainable(&plan).unwrap();
}

/// The list in the code is the folder.
#[test]
fn every_recipe_file_is_shipped() {
    let mut files: Vec<String> = std::fs::read_dir(env!("CARGO_MANIFEST_DIR"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_string))
        .filter(|name| name != "Cargo")
        .collect();
    files.sort();
    let mut listed: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    assert_eq!(files, listed);
}

/// No number in a recipe, however absurd, makes the parser or the report panic.
#[test]
fn absurd_numbers_are_refused_or_reported() {
    let absurd = ["0", "1", "3", "1000", "16777216", "1e18", "9223372036854775807", "-1", "nan"];
    let mut reported = 0;
    for name in ["debug_moe", "debug_llama", "deepseek_v2"] {
        let text = shipped(name).unwrap();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| line.contains(" = ")) {
            let (key, _) = line.split_once(" = ").unwrap();
            for number in absurd {
                let lines = text.lines().enumerate();
                let changed: Vec<String> = lines
                    .map(|(j, old)| if i == j { format!("{key} = {number}") } else { old.into() })
                    .collect();
                let plan = parse(&changed.join("\n"), Path::new("x.toml"), &[], &defaults());
                if let Ok(plan) = plan {
                    reported += usize::from(!Report::new(&plan).to_string().is_empty());
                }
            }
        }
    }
    assert!(reported > 100, "{reported}");
}
