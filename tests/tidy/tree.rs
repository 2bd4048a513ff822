//! The files of the repository as git knows them, and what a rule finds in them.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// Something to change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) path: String,
    /// From 1; 0 for the whole file.
    pub(crate) line: usize,
    pub(crate) what: String,
    pub(crate) instead: &'static str,
}

impl Finding {
    pub(crate) fn new(
        path: &str,
        line: usize,
        what: impl Into<String>,
        instead: &'static str,
    ) -> Self {
        Self { path: path.to_owned(), line, what: what.into(), instead }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}, {}", self.path, self.line, self.what, self.instead)
    }
}

/// The files of the repository.
pub(crate) struct Tree {
    root: PathBuf,
    /// Paths from the root, rising: tracked files, and new ones that git does not ignore.
    pub(crate) files: Vec<String>,
}

impl Tree {
    pub(crate) fn of_repository() -> Self {
        let root = lampyris_tests::repository("");
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root)
            .output()
            .expect("git is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed = String::from_utf8(output.stdout).expect("paths are UTF-8");
        let mut files: Vec<String> = listed
            .split_terminator('\0')
            .filter(|f| root.join(f).is_file())
            .map(str::to_owned)
            .collect();
        files.sort();
        files.dedup();
        assert!(files.iter().any(|f| f == "Cargo.toml"), "{} is no checkout", root.display());
        Self { root, files }
    }

    /// Whether a path from the root is a file or folder of the tree.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        path.is_empty() || self.files.iter().any(|f| f == path || f.starts_with(&folder))
    }

    pub(crate) fn bytes(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Whether a script of the tree may be executed; none if that file is no script or is not there.
    pub(crate) fn is_program(&self, path: &str) -> Option<bool> {
        let script = path.ends_with(".sh") || path.ends_with(".py");
        (script && self.files.iter().any(|file| file == path)).then(|| {
            let metadata = std::fs::metadata(self.root.join(path));
            metadata.is_ok_and(|metadata| metadata.permissions().mode() & 0o100 != 0)
        })
    }

    /// The text of a file, if it is one.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        String::from_utf8(self.bytes(path)).ok()
    }

    /// Applies a rule to every text file.
    pub(crate) fn each_text(&self, rule: fn(&str, &str) -> Vec<Finding>) -> Vec<Finding> {
        self.files
            .iter()
            .filter_map(|path| Some((path, self.text(path)?)))
            .flat_map(|(path, text)| rule(path, &text))
            .collect()
    }
}

/// Whether a file holds tests only.
pub(crate) fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// The lines of a Rust file before its inline test module.
pub(crate) fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |at| &text[..at + 1])
}
