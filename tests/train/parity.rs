//! `lampyris parity` on the golden cases that `transformers` computed.

use lampyris_tests::desk::Desk;
use lampyris_tests::repository;
use serde_json::Value;

fn case(name: &str) -> (String, String) {
    let folder = repository(&format!("tests/data/oracle/{name}"));
    let golden = folder.join("golden.safetensors");
    (folder.display().to_string(), golden.display().to_string())
}

#[test]
fn golden_cases_agree_to_1e_4() {
    let desk = Desk::new();
    let cases = [
        ("llama_gqa", 32),
        ("deepseek_v3", 91),
        ("deepseek_v3_noqlora", 85),
        ("deepseek_v3_yarn", 91),
    ];
    for (name, tensors) in cases {
        let (folder, golden) = case(name);
        let ended = desk.run(&["parity", &folder, &golden, "--json"]);
        assert_eq!(ended.code, 0, "{name}: {}{}", ended.stdout, ended.stderr);
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert_eq!(report["passed"], true);
        assert_eq!(report["compared"], tensors, "{name}");
        for (kind, worst) in report["worst"].as_object().expect("kinds") {
            assert!(worst["error"].as_f64().expect("a number") < 1e-5, "{name} {kind}: {worst}");
        }
    }
}

#[test]
fn bf16_is_close_and_a_tolerance_can_fail() {
    let desk = Desk::new();
    let (folder, golden) = case("llama_gqa");
    let ended = desk.run(&["parity", &folder, &golden, "--compute", "bf16", "--tolerance", "0.05"]);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let ended = desk.run(&["parity", &folder, &golden, "--tolerance", "1e-9"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("parity FAILED"), "{}", ended.stdout);
}

#[test]
fn one_changed_weight_is_found() {
    let desk = Desk::new();
    let (folder, golden) = case("deepseek_v3");
    let copy = desk.path("changed");
    std::fs::create_dir(&copy).expect("creates");
    for file in ["config.json", "model.safetensors"] {
        let from = std::path::Path::new(&folder).join(file);
        std::fs::copy(from, copy.join(file)).expect("copies");
    }
    let path = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("reads");
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&3.5f32.to_le_bytes());
    std::fs::write(&path, bytes).expect("writes");
    let ended = desk.run(&["parity", &copy.display().to_string(), &golden]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
}

#[test]
fn an_unsupported_class_is_refused_by_name() {
    let desk = Desk::new();
    let (folder, golden) = case("deepseek_v3");
    let copy = desk.path("v2");
    std::fs::create_dir(&copy).expect("creates");
    let config = std::fs::read_to_string(std::path::Path::new(&folder).join("config.json"));
    let config = config.expect("reads").replace("DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM");
    let config = config.replace("\"deepseek_v3\"", "\"deepseek_v2\"");
    std::fs::write(copy.join("config.json"), config).expect("writes");
    let from = std::path::Path::new(&folder).join("model.safetensors");
    std::fs::copy(from, copy.join("model.safetensors")).expect("copies");
    let ended = desk.run(&["parity", &copy.display().to_string(), &golden]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("deepseek_v2"), "{}", ended.stderr);
}
