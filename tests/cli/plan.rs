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
