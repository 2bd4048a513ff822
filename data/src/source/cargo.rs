//! The Rust sources of a project's dependencies: real text on every machine that built the project.
//!
//! Of several versions of a package only the newest is taken, so that held-out files have no near-copies in the training
//! text. Packages without a source (the workspace's own) are left out.

use crate::error::Error;
use semver::Version;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Version,
    source: Option<String>,
    manifest_path: PathBuf,
}

/// All `*.rs` files as (`package-version/path`, path), by package name, then path.
pub(super) fn list(manifest: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut newest: BTreeMap<String, Package> = BTreeMap::new();
    for package in metadata(manifest)?.packages.into_iter().filter(|p| p.source.is_some()) {
        match newest.get(&package.name) {
            Some(other) if other.version >= package.version => {}
            _ => {
                newest.insert(package.name.clone(), package);
            }
        }
    }
    let mut files = Vec::new();
    for package in newest.values() {
        let root = package.manifest_path.parent().unwrap_or(Path::new("/"));
        let mut found = Vec::new();
        walk(root, &mut found)?;
        found.sort();
        files.extend(found.into_iter().map(|path| {
            let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            (format!("{}-{}/{below}", package.name, package.version), path)
        }));
    }
    Ok(files)
}

fn metadata(manifest: &Path) -> Result<Metadata, Error> {
    let failed = |message: String| Error::Cargo { manifest: manifest.to_owned(), message };
    if !manifest.is_file() {
        return Err(Error::MissingFile { path: manifest.to_owned() });
    }
    let host = run(Command::new(cargo()).arg("-vV")).map_err(failed)?;
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or_else(|| failed("`cargo -vV` names no host".to_owned()))?;
    let output = run(Command::new(cargo())
        .args(["metadata", "--format-version", "1", "--filter-platform", host, "--manifest-path"])
        .arg(manifest))
    .map_err(failed)?;
    serde_json::from_str(&output).map_err(|e| failed(e.to_string()))
}

/// The cargo that runs us, if one does.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Standard output of a command, or its complaint.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("cannot start cargo: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    String::from_utf8(output.stdout).map_err(|e| e.to_string())
}

/// Adds the `*.rs` files below `folder`, not through links and not into nested packages.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(Error::read(folder))? {
        let entry = entry.map_err(Error::read(folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::read(&path))?;
        if kind.is_dir() {
            if !path.join("Cargo.toml").exists() {
                walk(&path, files)?;
            }
        } else if kind.is_file() && path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Whether a file says in its first lines that a program wrote it (bindings, tables): megabytes of it would teach little.
pub(super) fn is_generated(text: &str) -> bool {
    let head = text[..text.floor_char_boundary(400)].to_ascii_lowercase();
    head.contains("@generated")
        || head.contains("do not edit")
        || (head.contains("generated") && head.contains("automatically"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_of_our_own_dependencies() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let files = list(&manifest).unwrap();
        let names: Vec<&str> = files.iter().map(|f| f.0.as_str()).collect();
        assert!(names.iter().any(|n| n.starts_with("blake3-1.") && n.ends_with("/src/lib.rs")));
        assert!(!names.iter().any(|n| n.starts_with("lampyris")));
        let packages: Vec<&str> = names
            .chunk_by(|a, b| a.split('/').next() == b.split('/').next())
            .map(|c| c[0])
            .collect();
        let mut unique: Vec<&str> = packages
            .iter()
            .filter_map(|p| p.split('/').next()?.rsplit_once('-'))
            .map(|p| p.0)
            .collect();
        assert!(unique.is_sorted());
        let count = unique.len();
        unique.dedup();
        assert_eq!(unique.len(), count, "a package in two versions");
        assert_eq!(list(&manifest).unwrap(), files);
    }

    #[test]
    fn cargo_complains_through_us() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("Cargo.toml");
        assert!(matches!(list(&manifest), Err(Error::MissingFile { .. })));
        std::fs::write(&manifest, "[package\n").unwrap();
        let error = list(&manifest).unwrap_err();
        assert!(
            matches!(&error, Error::Cargo { message, .. } if message.contains("expected")),
            "{error}"
        );
    }

    #[test]
    fn generated_files_say_so() {
        assert!(is_generated("/* automatically generated by rust-bindgen 0.71.1 */\n"));
        assert!(is_generated("// @generated by prost-build"));
        assert!(!is_generated("//! Generates things.\nfn main() {}\n"));
    }
}
