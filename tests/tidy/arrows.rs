//! Which crate may depend on which: the table of docs/architecture.md, read from `cargo metadata`.

use crate::tree::Finding;
use serde_json::Value;
use std::process::Command;

/// Folder of a crate and the folders it may depend on. `tests` may depend on all.
const ARROWS: &[(&str, &[&str])] = &[
    ("plan", &[]),
    ("fuzz", &[]),
    ("recipes", &["plan"]),
    ("proto", &[]),
    ("comm", &[]),
    ("hfreduce", &["comm"]),
    ("bench", &["comm", "hfreduce"]),
    ("data", &[]),
    ("checkpoint", &["plan"]),
    ("torch", &[]),
    ("model", &["torch", "plan"]),
    (
        "trainer",
        &["plan", "recipes", "proto", "comm", "hfreduce", "data", "checkpoint", "torch", "model"],
    ),
    ("scheduler", &["proto"]),
    ("worker", &["proto", "comm"]),
    (
        "cli",
        &["plan", "recipes", "proto", "comm", "bench", "data", "checkpoint", "scheduler", "worker"],
    ),
];
/// The crates that link libtorch: the others build in seconds and start on a login node.
const LIBTORCH: &[&str] = &["torch", "model", "trainer", "tests"];

/// `cargo metadata` of the workspace, without its dependencies.
pub(crate) fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(lampyris_tests::repository(""))
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// Arrows that the table does not have.
pub(crate) fn check(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().expect("packages are a list") {
        let folder = folder(package);
        let path = format!("{folder}/Cargo.toml");
        let row = ARROWS.iter().find(|(name, _)| *name == folder);
        if row.is_none() && folder != "tests" {
            findings.push(Finding::new(
                &path,
                0,
                "an unknown crate",
                "add it to tests/tidy/arrows.rs and docs",
            ));
        }
        for dependency in package["dependencies"].as_array().expect("dependencies are a list") {
            let name = dependency["name"].as_str().expect("names are strings");
            let for_tests = dependency["kind"] == "dev";
            let links_torch = match name.strip_prefix("lampyris-") {
                Some(to) => {
                    let allowed = for_tests || row.is_none_or(|(_, may)| may.contains(&to));
                    if !allowed {
                        let what = format!("{folder} may not depend on {to}");
                        findings.push(Finding::new(
                            &path,
                            0,
                            what,
                            "turn the arrow round or move the code",
                        ));
                    }
                    LIBTORCH.contains(&to)
                }
                None => name == "tch" || name == "torch-sys",
            };
            if links_torch && !LIBTORCH.contains(&folder) {
                let what = format!("{name} links libtorch");
                findings.push(Finding::new(
                    &path,
                    0,
                    what,
                    "keep it in torch, model, trainer and their tests",
                ));
            }
        }
    }
    findings
}

/// The folder of a package.
fn folder(package: &Value) -> &str {
    let manifest = package["manifest_path"].as_str().expect("a path is a string");
    manifest.rsplit('/').nth(1).expect("a manifest lies in a folder")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(folder: &str, dependency: &str, kind: Option<&str>) -> usize {
        let package = json!({
            "manifest_path": format!("/x/{folder}/Cargo.toml"),
            "dependencies": [{ "name": dependency, "kind": kind }],
        });
        check(&json!({ "packages": [package] })).len()
    }

    #[test]
    fn arrows_that_are_not_in_the_table_are_found() {
        assert_eq!(found("hfreduce", "lampyris-comm", None), 0);
        assert_eq!(found("comm", "lampyris-hfreduce", None), 1);
        assert_eq!(found("scheduler", "lampyris-plan", None), 1);
        assert_eq!(found("scheduler", "lampyris-plan", Some("dev")), 0);
        assert_eq!(found("scheduler", "lampyris-plan", Some("build")), 1);
        assert_eq!(found("tests", "lampyris-trainer", None), 0);
        assert_eq!(found("attic", "serde", None), 1);
    }

    #[test]
    fn libtorch_is_kept_apart() {
        assert_eq!(found("trainer", "tch", None), 0);
        assert_eq!(found("data", "tch", None), 1);
        assert_eq!(found("cli", "lampyris-model", Some("dev")), 1);
        assert_eq!(found("cli", "lampyris-model", None), 2);
    }
}
