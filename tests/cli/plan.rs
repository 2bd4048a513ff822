//! `lampyris plan` of shipped recipes, word for word, and the figures of published models in JSON.

use crate::desk::{Desk, shipped};
use lampyris_tests::assert_golden;

/// Plans a copy of a shipped recipe on the desk, whose path is short and taken out of the output.
fn plan(desk: &Desk, name: &str, arguments: &[&str]) -> String {
    let copy = format!("{name}.toml");
    desk.file(&copy, &std::fs::read_to_string(shipped(name)).unwrap());
    let ended = desk.run(&[&["plan", copy.as_str()], arguments].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended.stdout.replace(desk.dir.path().to_str().unwrap(), "DESK")
}

/// Digests cover absolute paths, so they differ from place to place: here only their shape is compared.
fn without_digests(text: &str) -> String {
    let hide = |line: &str| match line.contains("numerics ") && line.contains("  plan ") {
        true => "digests      numerics ................   plan ................".to_string(),
        false => line.to_string(),
    };
    text.lines().map(|line| hide(line) + "\n").collect()
}

#[test]
fn tables_are_as_committed() {
    let desk = Desk::new("");
    let names = ["debug_llama", "debug_moe", "deepseek_v2", "deepseek_v3"];
    let tables: Vec<String> =
        names.iter().map(|name| without_digests(&plan(&desk, name, &[]))).collect();
    assert_golden("tests/cli/golden/plan.txt", &tables.join("\n----------\n\n"));
}

#[test]
fn json_is_as_committed() {
    let json = plan(&Desk::new(""), "debug_moe", &["--json", "--set", "seed=2"]);
    let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
    for digest in ["numerics", "plan"] {
        let text = value["digests"][digest].as_str().unwrap();
        assert!(text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit()), "{text}");
        value["digests"][digest] = "".into();
    }
    let text = serde_json::to_string_pretty(&value).unwrap() + "\n";
    assert_golden("tests/cli/golden/plan.json", &text);
}

/// DeepSeek-V3 (2412.19437) and DeepSeek-V2 (2405.04434): 671 B, 236 B and 15.7 B parameters.
#[test]
fn published_models_have_their_published_sizes() {
    let desk = Desk::new("");
    let figures = |name: &str| -> serde_json::Value {
        serde_json::from_str(&plan(&desk, name, &["--json"])).unwrap()
    };
    let billions = |value: &serde_json::Value| value.as_f64().unwrap() / 1e9;
    for (name, main) in
        [("deepseek_v3", 671.03), ("deepseek_v2", 235.74), ("deepseek_v2_lite", 15.71)]
    {
        let found = billions(&figures(name)["parameters"]["main"]);
        assert!((found - main).abs() < 0.005, "{name}: {found}");
    }
    let v3 = figures("deepseek_v3");
    assert!((billions(&v3["parameters"]["mtp"]) - 11.61).abs() < 0.005);
    let flops = &v3["flops_per_token"];
    assert!((billions(&flops["forward"]) - 83.48).abs() < 0.005, "{flops}");
    assert!((billions(&flops["training"]) - 250.4).abs() < 0.05, "{flops}");
}

#[test]
fn speeds_give_the_least_time_of_a_step() {
    let desk = Desk::new("");
    let layout = ["--nodes", "2", "--set", "parallel.data=2", "--set", "parallel.expert=2"];
    let least = |gflops: &str, gbit: &str| -> f64 {
        let speeds = ["--gflops", gflops, "--gbit", gbit, "--json"];
        let json = plan(&desk, "debug_moe", &[&layout[..], &speeds].concat());
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        value["step_bound"]["step_s"].as_f64().unwrap()
    };
    let slow = least("1", "1");
    assert!(least("2", "1") < slow && least("1", "10") < slow);
    let table = plan(&desk, "debug_moe", &[&layout[..], &["--gflops", "1"]].concat());
    assert!(table.contains("critical path") && table.contains("10.00 Gbit/s a node"), "{table}");
    for (arguments, says) in [
        (&["--gflops", "0"][..], "must be greater than 0"),
        (&["--gflops", "fast"], "not a number"),
        (&["--gbit", "1"], "--gflops"),
    ] {
        let ended = desk.run(&[&["plan", "debug_moe.toml"], arguments].concat());
        assert!(ended.code != 0 && ended.stderr.contains(says), "{arguments:?}: {}", ended.stderr);
    }
}
