//! Markdown names only files that exist: in links everywhere, in `code` in the README and under docs.

use crate::tree::{Finding, Tree};

/// Checks every Markdown file of the tree.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let exists = |path: &str| tree.has(path);
    tree.files
        .iter()
        .filter(|path| path.ends_with(".md"))
        .filter_map(|path| Some((path, tree.text(path)?)))
        .flat_map(|(path, text)| check_text(path, &text, &exists))
        .collect()
}

fn check_text(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let prose = path == "README.md" || path.starts_with("docs/");
    let mut findings = Vec::new();
    let mut in_block = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        for target in links(line) {
            let file = target.split('#').next().unwrap_or(target);
            if !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:") {
                let found = resolve(folder, file).is_some_and(|file| exists(&file));
                if !found {
                    let what = format!("a link to {target}, which does not exist");
                    findings.push(Finding::new(path, index + 1, what, "correct it"));
                }
            }
        }
        for name in code_spans(line).filter(|_| prose) {
            let name = name.split("::").next().unwrap_or(name);
            if is_path(name, exists) && !exists(name) {
                let what = format!("`{name}` does not exist");
                findings.push(Finding::new(path, index + 1, what, "name the file that is meant"));
            }
        }
    }
    findings
}

/// The targets of `[text](target)` in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.trim()))
}

/// What stands between backticks in a line.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Whether a word means a path of this repository: it goes into one of its folders.
fn is_path(word: &str, exists: &dyn Fn(&str) -> bool) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let inside =
        word.split_once('/').is_some_and(|(folder, _)| !folder.is_empty() && exists(folder));
    plain && inside
}

/// A relative path from a folder, as a path from the root; none above the root.
fn resolve(folder: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<usize> {
        let exists =
            |p: &str| ["", "README.md", "docs", "docs/a.md", "plan", "plan/src"].contains(&p);
        check_text(path, text, &exists).into_iter().map(|f| f.line).collect()
    }

    #[test]
    fn links_resolve() {
        assert!(
            found("docs/b.md", "[a](a.md#x) [b](../README.md) [c](https://x.org/y) [d](#e)")
                .is_empty()
        );
        assert_eq!(found("docs/b.md", "x\n[a](README.md)"), [2]);
        assert_eq!(found("README.md", "[a](../README.md) [b](docs/a.md)"), [1]);
        assert!(found("README.md", "```\n[a](none.md)\n```").is_empty());
    }

    #[test]
    fn code_names_what_exists() {
        assert!(
            found("docs/b.md", "`plan/src`, `a/b`, `x.toml`, `plan/src::f`, `plan/*.rs`")
                .is_empty()
        );
        assert_eq!(found("docs/b.md", "`plan/src` and\n`plan/lib`"), [2]);
        assert!(found("plan/b.md", "`plan/lib`").is_empty());
    }
}
