//! The files that a pattern of `data.sources` means.
//!
//! Matching is the `glob` crate's, one name of the path after the other; the walk is our own, because text comes with
//! company: folders with brackets in their names, copies that editors leave, links that lead round in circles.
//!
//! - A name with brackets that exists as it is written stands for itself; `[[]`, `[*]` and `[?]` are these characters.
//! - A wildcard meets neither hidden files and folders nor backup copies, unless it is written for them (`.*`, `*~`).
//! - `**` enters every folder once, by whatever links it is reached.

use super::LeftOut;
use crate::error::Error;
use glob::Pattern;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What characters make a name a pattern.
const SPECIAL: [char; 3] = ['*', '?', '['];

/// The files of a glob pattern, or the one file of a plain path, as (name, path) by rising path; the name is the path
/// below the folder in which the pattern begins.
pub(super) fn match_files(
    pattern: &str,
    left_out: &mut LeftOut,
) -> Result<Vec<(String, PathBuf)>, Error> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let Some(first) = pattern.find(SPECIAL) else {
        let path = PathBuf::from(pattern);
        let name = text(Path::new(path.file_name().unwrap_or(path.as_os_str())));
        return Ok(vec![(name, path)]);
    };
    let mut walk = Walk::default();
    let root = if pattern.starts_with('/') { Path::new("/") } else { Path::new("") };
    walk.folder(root, &parts(pattern)?)?;
    let Walk { mut found, hidden, .. } = walk;
    if found.is_empty() {
        let pattern = pattern.to_owned();
        return Err(match hidden.into_iter().min() {
            Some(first) => Error::OnlyHidden { pattern, first },
            None => Error::NoMatch { pattern },
        });
    }
    hidden.into_iter().for_each(|path| left_out.hidden.add(path));
    found.sort();
    found.dedup();
    let fixed = pattern[..first].rfind('/').map_or("", |slash| &pattern[..=slash]);
    Ok(found
        .into_iter()
        .map(|path| (text(path.strip_prefix(fixed).unwrap_or(&path)), path))
        .collect())
}

/// One name of a pattern's path.
#[derive(Debug)]
enum Part {
    /// A name without anything special.
    Name(String),
    /// `**`: this folder and all below it.
    Folders,
    /// A name with wildcards.
    Wild {
        pattern: Pattern,
        /// The name that it spells, where only brackets make it a pattern.
        exact: Option<String>,
    },
}

fn parts(pattern: &str) -> Result<Vec<Part>, Error> {
    let bad = |e: glob::PatternError| Error::BadPattern {
        pattern: pattern.to_owned(),
        message: e.to_string(),
    };
    Pattern::new(pattern).map_err(bad)?;
    let mut parts = Vec::new();
    for name in pattern.split('/').filter(|name| !name.is_empty()) {
        parts.push(match name {
            "**" => Part::Folders,
            _ if !name.contains(SPECIAL) => Part::Name(name.to_owned()),
            _ => Part::Wild { pattern: Pattern::new(name).map_err(bad)?, exact: exact(name) },
        });
    }
    if pattern.ends_with('/') {
        // Only folders end like this, and a folder is no file.
        parts.push(Part::Name(String::new()));
    }
    Ok(parts)
}

/// `name` with its escapes resolved, if nothing but brackets makes it a pattern.
fn exact(name: &str) -> Option<String> {
    let mut exact = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let escaped = ["[[]", "[*]", "[?]"].into_iter().find(|escape| rest.starts_with(escape));
        match escaped {
            Some(escape) => {
                exact.push_str(&escape[1..2]);
                rest = &rest[escape.len()..];
            }
            None if c == '*' || c == '?' => return None,
            None => {
                exact.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    Some(exact)
}

/// Whether a wildcard passes over this name: files that programs keep for themselves, copies that editors leave. `[.]*`
/// and `*[~]` count as written for them.
fn is_passed_over(name: &str, pattern: &str) -> bool {
    let hidden = name.starts_with('.') && !pattern.starts_with('.') && !pattern.starts_with("[.]");
    let ends = |end: &str| name.ends_with(end) && !pattern.trim_end_matches(']').ends_with(end);
    let saved = name.len() > 1 && name.starts_with('#') && ends("#");
    hidden || saved || ["~", ".bak", ".swp", ".swo"].into_iter().any(ends)
}

/// A walk through the folders of one pattern.
#[derive(Default)]
struct Walk {
    found: Vec<PathBuf>,
    /// Files and folders that a wildcard passed over.
    hidden: HashSet<PathBuf>,
    /// Folders that a `**` has entered: device, number, and how much of the pattern was left.
    entered: HashSet<(u64, u64, usize)>,
}

impl Walk {
    /// Finds what matches `parts` below `folder`, which exists.
    fn folder(&mut self, folder: &Path, parts: &[Part]) -> Result<(), Error> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        match part {
            Part::Name(name) => self.path(folder.join(name), rest),
            Part::Folders => self.folders(folder, parts, rest),
            Part::Wild { exact: Some(name), .. }
                if folder.join(name).symlink_metadata().is_ok() =>
            {
                self.path(folder.join(name), rest)
            }
            Part::Wild { pattern, .. } => {
                let matching = entries(folder)?.into_iter();
                for entry in matching.filter(|entry| pattern.matches(&entry.name)) {
                    if !is_passed_over(&entry.name, pattern.as_str()) {
                        self.path(entry.path, rest)?;
                    } else if rest.is_empty() != entry.is_folder {
                        self.hidden.insert(entry.path);
                    }
                }
                Ok(())
            }
        }
    }

    /// `**`, which `parts` begins with, and `rest` behind it.
    fn folders(&mut self, folder: &Path, parts: &[Part], rest: &[Part]) -> Result<(), Error> {
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let metadata = std::fs::metadata(here).map_err(Error::read(here))?;
        if !self.entered.insert((metadata.dev(), metadata.ino(), rest.len())) {
            return Ok(());
        }
        self.folder(folder, rest)?;
        for entry in entries(folder)?.into_iter().filter(|entry| entry.is_folder) {
            if is_passed_over(&entry.name, "**") {
                self.hidden.insert(entry.path);
            } else {
                self.folder(&entry.path, parts)?;
            }
        }
        Ok(())
    }

    /// A path that matches so far.
    fn path(&mut self, path: PathBuf, rest: &[Part]) -> Result<(), Error> {
        let is_folder = path.is_dir();
        if is_folder {
            self.folder(&path, rest)
        } else if rest.is_empty() && path.symlink_metadata().is_ok() {
            self.found.push(path);
            Ok(())
        } else {
            Ok(())
        }
    }
}

struct Entry {
    name: String,
    path: PathBuf,
    /// A folder, or a link to one.
    is_folder: bool,
}

/// What lies in a folder, by name; nothing in what is none. A name that is not UTF-8 can match no pattern as a whole, so
/// its readable form stands for it.
fn entries(folder: &Path) -> Result<Vec<Entry>, Error> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let listed = match std::fs::read_dir(here) {
        Ok(listed) => listed,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::read(here)(e)),
    };
    let mut entries = Vec::new();
    for entry in listed {
        let entry = entry.map_err(Error::read(here))?;
        let kind = entry.file_type().map_err(Error::read(here))?;
        let path = folder.join(entry.file_name());
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_folder = kind.is_dir() || (kind.is_symlink() && path.is_dir());
        entries.push(Entry { name, path, is_folder });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder with these files, and what a pattern below it finds: names, and what was passed over.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[&str]) -> Tree {
            let dir = tempfile::tempdir().unwrap();
            for name in files {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, name).unwrap();
            }
            Tree(dir)
        }

        fn find(&self, pattern: &str) -> Result<(Vec<String>, u64), Error> {
            let mut left_out = LeftOut::default();
            let pattern = format!("{}/{pattern}", self.0.path().display());
            let found = match_files(&pattern, &mut left_out)?;
            Ok((found.into_iter().map(|(name, _)| name).collect(), left_out.hidden.count))
        }

        fn names(&self, pattern: &str) -> Vec<String> {
            self.find(pattern).unwrap().0
        }
    }

    #[test]
    fn patterns_give_names_below_their_fixed_folder_in_order() {
        let tree = Tree::new(&["b.txt", "a.txt", "x.md", "sub/c.txt", "sub/deep/d.txt"]);
        assert_eq!(tree.names("*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(tree.names("**/*.txt"), ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]);
        assert_eq!(tree.names("sub/c.txt"), ["c.txt"]);
        assert_eq!(tree.names("sub/**/[cd].txt"), ["c.txt", "deep/d.txt"]);
        assert_eq!(tree.names("*/c.txt"), ["sub/c.txt"]);
        assert_eq!(tree.names("**/**/d.*"), ["sub/deep/d.txt"]);
        for nothing in ["sub/**", "*/", "none/*.txt", "a.txt/*"] {
            assert!(matches!(tree.find(nothing), Err(Error::NoMatch { .. })), "{nothing}");
        }
    }

    /// The crate whose place the walk takes, on patterns that mean the same to both.
    #[test]
    fn the_walk_finds_what_the_glob_crate_finds() {
        let tree = Tree::new(&["a.txt", "b/a.txt", "b/b.txt", "b/c/a.txt", "d/a.md", "e/b/a.txt"]);
        symlink(tree.0.path().join("d"), tree.0.path().join("f")).unwrap();
        let root = tree.0.path().display();
        let patterns = [
            "*",
            "**/*",
            "**/*.txt",
            "b/*",
            "*/*",
            "**/b/*",
            "**/b/**/*.txt",
            "[ab].txt",
            "?/?.txt",
            "**/a.*",
            "./b/../*.txt",
            "f/*",
            "b//*.txt",
        ];
        for pattern in patterns {
            let whole = format!("{root}/{pattern}");
            let mut theirs: Vec<PathBuf> = glob::glob(&whole)
                .unwrap()
                .map(Result::unwrap)
                .filter(|path| !path.is_dir())
                .collect();
            theirs.sort();
            let ours = match_files(&whole, &mut LeftOut::default()).unwrap();
            let ours: Vec<PathBuf> = ours.into_iter().map(|(_, path)| path).collect();
            let same_file =
                |a: &PathBuf, b: &PathBuf| a.canonicalize().ok() == b.canonicalize().ok();
            let missing: Vec<_> =
                theirs.iter().filter(|p| !ours.iter().any(|q| same_file(p, q))).collect();
            assert!(missing.is_empty(), "{pattern}: {missing:?}");
            assert!(ours.iter().all(|p| theirs.iter().any(|q| same_file(p, q))), "{pattern}");
        }
    }

    #[test]
    fn names_with_brackets_that_exist_stand_for_themselves() {
        let tree = Tree::new(&["exp[1]/a.txt", "exp[1]/b[2].txt", "exp2/a.txt", "exp1/z.txt"]);
        assert_eq!(tree.names("exp[1]/a.txt"), ["exp[1]/a.txt"]);
        assert_eq!(tree.names("exp[1]/b[2].txt"), ["exp[1]/b[2].txt"]);
        assert_eq!(tree.names("exp[1]/*.txt"), ["exp[1]/a.txt", "exp[1]/b[2].txt"]);
        assert_eq!(tree.names("exp[[]1]/a.txt"), ["exp[1]/a.txt"]);
        assert_eq!(tree.names("exp[[]1]/b[[]2].txt"), ["exp[1]/b[2].txt"]);
        assert_eq!(tree.names("exp[2]/a.txt"), ["exp2/a.txt"]);
        assert_eq!(tree.names("exp[!2]/*"), ["exp1/z.txt"]);
        assert_eq!(tree.names("*/b[2].txt"), ["exp[1]/b[2].txt"]);
    }

    #[test]
    fn hidden_files_and_backup_copies_are_counted_not_found() {
        let tree = Tree::new(&[
            "a.txt",
            "a.txt~",
            ".a.txt.swp",
            "#a.txt#",
            "a.txt.bak",
            ".ipynb_checkpoints/a.txt",
            "sub/.hidden.txt",
            "sub/b.txt",
            ".git/objects/1",
        ]);
        symlink("user@host.123", tree.0.path().join(".#a.txt")).unwrap();
        assert_eq!(tree.find("*").unwrap(), (vec!["a.txt".to_owned()], 5));
        let both = vec!["a.txt".to_owned(), "sub/b.txt".to_owned()];
        assert_eq!(tree.find("**/*.txt").unwrap(), (both.clone(), 4));
        assert_eq!(tree.find("**/*").unwrap(), (both, 8));
        assert_eq!(tree.names("*.txt~"), ["a.txt~"]);
        assert_eq!(tree.names("*.bak"), ["a.txt.bak"]);
        assert_eq!(tree.names(".*.swp"), [".a.txt.swp"]);
        assert_eq!(tree.names(".git/**/*"), ["objects/1"]);
        let error = tree.find("sub/*.hidden.txt").unwrap_err();
        assert!(
            matches!(&error, Error::OnlyHidden { first, .. } if first.ends_with(".hidden.txt"))
        );
        assert!(error.to_string().contains("name it without a wildcard"), "{error}");
    }

    #[test]
    fn links_that_lead_round_are_entered_once() {
        let tree = Tree::new(&["a.txt", "sub/b.txt"]);
        for link in ["here", "sub/up", "sub/there"] {
            let target = if link == "here" { "." } else { ".." };
            symlink(target, tree.0.path().join(link)).unwrap();
        }
        assert_eq!(tree.names("**/*.txt"), ["a.txt", "sub/b.txt"]);
    }
}
