//! Licences and origins of all dependencies, and the notices made from them. This is what `cargo deny` would check; here
//! it needs no further program and no network.

use crate::tree::Finding;
use serde_json::Value;
use spdx::{Expression, ParseMode};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::Command;

/// Licences under which the programs may be given to anyone, with attribution at most.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that must not come in, and why.
const BANNED: &[(&str, &str)] = &[
    ("bindgen", "it needs libclang at build time"),
    ("openssl-sys", "it needs the system's OpenSSL; use rustls"),
    ("protobuf-src", "it compiles protoc; use protox"),
    ("pyo3", "there is no Python at run time"),
];

/// The target whose dependencies are listed, on every machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A package that is not ours.
#[derive(Debug)]
pub(crate) struct Package {
    name: String,
    version: String,
    licence: String,
    source: String,
    /// Whether it is part of a program or of its build, not only of tests.
    shipped: bool,
}

/// All packages that `cargo metadata` resolves.
pub(crate) fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET])
        .current_dir(lampyris_tests::repository(""))
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    parse(&serde_json::from_slice(&output.stdout).expect("cargo writes JSON"))
}

fn parse(metadata: &Value) -> Vec<Package> {
    let shipped = shipped(metadata);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("packages are a list");
    packages
        .iter()
        .filter(|package| !text(&package["name"]).starts_with("lampyris-"))
        .map(|package| Package {
            name: text(&package["name"]),
            version: text(&package["version"]),
            licence: normal(&text(&package["license"])),
            source: text(&package["source"]),
            shipped: shipped.contains(package["id"].as_str().unwrap_or_default()),
        })
        .collect()
}

/// One spelling for one meaning: `/` is the `OR` of old packages, and alternatives have no order.
fn normal(licence: &str) -> String {
    let licence = licence.replace(" / ", " OR ").replace('/', " OR ");
    if licence.contains(" AND ") {
        return licence;
    }
    let mut alternatives: Vec<&str> = licence.split(" OR ").collect();
    alternatives.sort_unstable();
    alternatives.join(" OR ")
}

/// The packages reached from the programs over normal and build dependencies.
fn shipped(metadata: &Value) -> BTreeSet<&str> {
    let nodes = metadata["resolve"]["nodes"].as_array().expect("nodes are a list");
    let edges: BTreeMap<&str, Vec<&str>> = nodes
        .iter()
        .filter_map(|node| {
            let dependencies = node["deps"].as_array()?.iter();
            let kept = dependencies.filter(|dependency| {
                let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
                kinds.into_iter().any(|kind| kind["kind"] != "dev")
            });
            Some((node["id"].as_str()?, kept.filter_map(|d| d["pkg"].as_str()).collect()))
        })
        .collect();
    let members = metadata["workspace_members"].as_array().into_iter().flatten();
    let mut open: Vec<&str> =
        members.filter_map(Value::as_str).filter(|id| !id.contains("lampyris-tests")).collect();
    let mut seen = BTreeSet::new();
    while let Some(package) = open.pop() {
        if seen.insert(package) {
            open.extend(edges.get(package).into_iter().flatten());
        }
    }
    seen
}

/// Licences that are not permissive, packages that are banned, and packages from elsewhere than crates.io.
pub(crate) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Package { name, version, licence, source, .. } in packages {
        let mut complain = |what: String, instead| {
            findings.push(Finding::new(
                "Cargo.lock",
                0,
                format!("{name} {version} {what}"),
                instead,
            ));
        };
        let permissive = Expression::parse_mode(licence, ParseMode::LAX).is_ok_and(|expression| {
            expression.evaluate(|requirement| {
                requirement.license.id().is_some_and(|id| PERMISSIVE.contains(&id.name))
            })
        });
        if !permissive {
            complain(
                format!("has the licence `{licence}`"),
                "use another package, or add a permissive licence to tests/tidy/licences.rs",
            );
        }
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| banned == name) {
            complain(format!("is banned: {why}"), "find who pulls it in with `cargo tree -i`");
        }
        if !source.starts_with("registry+") {
            complain(format!("comes from `{source}`"), "use a release from crates.io");
        }
    }
    findings
}

/// THIRD_PARTY.md.
pub(crate) fn notices(packages: &[Package]) -> String {
    let mut by_licence: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages.iter().filter(|p| p.shipped) {
        by_licence.entry(&package.licence).or_default().insert(&package.name);
    }
    let mut text = HEAD.to_owned();
    for (licence, names) in by_licence {
        writeln!(text, "\n## {licence}\n").expect("strings can be written");
        for name in names {
            writeln!(text, "- {name}").expect("strings can be written");
        }
    }
    text
}

const HEAD: &str = "# Third-party software

The programs of Lampyris contain or are built with the Rust packages below, by licence; versions are in Cargo.lock, sources
and licence texts on crates.io. `lampyris-rank` links libtorch (PyTorch, BSD-3-Clause, with notices of its own beside it).

This file is generated: `UPDATE_GOLDEN=1 cargo test -p lampyris-tests --test tidy` writes it after a change of dependencies.
";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, licence: &str, source: &str) -> Package {
        let metadata = json!({
            "packages": [{ "name": name, "version": "1.0.0", "license": licence, "source": source, "id": name }],
            "resolve": { "nodes": [] },
        });
        parse(&metadata).pop().unwrap()
    }

    #[test]
    fn licences_are_evaluated() {
        let found = |licence: &str| check(&[package("a", licence, "registry+x")]).len();
        for licence in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(found(licence), 0, "{licence}");
        }
        for licence in ["", "GPL-3.0-only", "MIT AND GPL-3.0-only", "LGPL-2.1 OR MPL-2.0"] {
            assert_eq!(found(licence), 1, "{licence}");
        }
    }

    #[test]
    fn bans_and_origins_are_checked() {
        assert_eq!(check(&[package("bindgen", "MIT", "registry+x")]).len(), 1);
        assert_eq!(check(&[package("a", "MIT", "git+https://x.org/a")]).len(), 1);
    }

    #[test]
    fn notices_leave_out_what_only_tests_use() {
        let of = |id: &str| json!({ "name": id, "version": "1.0.0", "license": "MIT", "source": "r", "id": id });
        let dependency =
            |pkg: &str, kind: Value| json!({ "pkg": pkg, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "workspace_members": ["lampyris-cli", "lampyris-tests"],
            "packages": [of("lampyris-cli"), of("lampyris-tests"), of("a"), of("b"), of("c"), of("d")],
            "resolve": { "nodes": [
                { "id": "lampyris-cli", "deps": [dependency("a", Value::Null), dependency("b", json!("dev"))] },
                { "id": "lampyris-tests", "deps": [dependency("c", Value::Null)] },
                { "id": "a", "deps": [dependency("d", json!("build"))] },
            ] },
        });
        assert_eq!(normal("MIT/Apache-2.0"), "Apache-2.0 OR MIT");
        assert!(notices(&parse(&metadata)).ends_with("\n## MIT\n\n- a\n- d\n"));
    }
}
