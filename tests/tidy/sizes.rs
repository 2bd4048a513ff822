//! Files and functions stay small. `exceptions.txt` lists what is larger, with its exact size: the list may only shrink.

use crate::tree::{Finding, Tree, is_test, without_tests};
use std::collections::BTreeMap;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Lines of a Rust file, its inline tests aside. Test files have no limit.
const FILE_LINES: usize = 500;
/// Lines of code of a function's body; comments and blank lines are free.
const FUNCTION_LINES: usize = 70;
/// Bytes of any file.
const FILE_BYTES: usize = 1 << 20;
const EXCEPTIONS: &str = "tests/tidy/exceptions.txt";

/// Everything too large that is not listed, and everything listed that is not as it says.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut large = BTreeMap::new();
    for path in tree.files.iter().filter(|p| p.ends_with(".rs")) {
        let text = tree.text(path).unwrap_or_default();
        let lines = without_tests(&text).lines().count();
        if lines > FILE_LINES && !is_test(path) {
            large.insert(path.clone(), lines);
        }
        for (function, lines) in functions(path, &text) {
            if lines > FUNCTION_LINES {
                large.insert(format!("{path}::{function}"), lines);
            }
        }
    }
    compare(&large, &tree.text(EXCEPTIONS).expect("exceptions.txt is a text"))
}

/// Files that do not belong into git.
pub(crate) fn check_bytes(tree: &Tree) -> Vec<Finding> {
    let large =
        tree.files.iter().map(|p| (p, tree.bytes(p).len())).filter(|(_, n)| *n > FILE_BYTES);
    large
        .map(|(path, bytes)| {
            let what = format!("{bytes} bytes, the limit is {FILE_BYTES}");
            Finding::new(path, 0, what, "generate it, shrink it, or download it when it is needed")
        })
        .collect()
}

/// Name and lines of code of every function with a body.
fn functions(path: &str, text: &str) -> Vec<(String, usize)> {
    let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut found = Functions { lines: text.lines().collect(), found: Vec::new() };
    found.visit_file(&file);
    found.found
}

struct Functions<'t> {
    lines: Vec<&'t str>,
    found: Vec<(String, usize)>,
}

impl Functions<'_> {
    fn add(&mut self, name: &syn::Ident, body: &syn::Block) {
        let (first, last) = (body.span().start().line, body.span().end().line);
        let inside = &self.lines[first.min(last - 1)..last - 1];
        let is_code = |l: &&&str| !l.trim().is_empty() && !l.trim_start().starts_with("//");
        self.found.push((name.to_string(), inside.iter().filter(is_code).count()));
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig.ident, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig.ident, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(body) = &function.default {
            self.add(&function.sig.ident, body);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

/// The list has lines `path lines` and `path::function lines`; `#` begins a comment.
fn compare(large: &BTreeMap<String, usize>, exceptions: &str) -> Vec<Finding> {
    let mut listed = BTreeMap::new();
    let mut findings = Vec::new();
    for (number, line) in exceptions.lines().enumerate() {
        let Some((what, lines)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        listed.insert(what, number + 1);
        let mut complain = |message: String, instead| {
            findings.push(Finding::new(EXCEPTIONS, number + 1, message, instead));
        };
        match (large.get(what), lines.parse::<usize>()) {
            (_, Err(_)) => complain(format!("`{lines}` is no number"), "write `path lines`"),
            (None, _) => complain(format!("{what} is small or gone"), "remove the line"),
            (Some(&now), Ok(then)) if now > then => {
                complain(format!("{what} grew from {then} to {now} lines"), "split it");
            }
            (Some(&now), Ok(then)) if now < then => {
                complain(
                    format!("{what} shrank from {then} to {now} lines"),
                    "write the new number",
                );
            }
            _ => {}
        }
    }
    for (what, lines) in large.iter().filter(|(what, _)| !listed.contains_key(what.as_str())) {
        let (limit, instead) = if what.contains("::") {
            (FUNCTION_LINES, "give its steps names")
        } else {
            (FILE_LINES, "split it along its concepts")
        };
        findings.push(Finding::new(
            what,
            0,
            format!("{lines} lines, the limit is {limit}"),
            instead,
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_counted_without_comments_and_blank_lines() {
        let text = "trait T {\n    fn none();\n}\nimpl T {\n    fn a() {\n        // no\n\n        b();\n        \
                    fn b() { c() }\n    }\n}\nfn d() {}\n";
        let named: Vec<(String, usize)> = functions("x.rs", text);
        let expected = [("a", 2), ("b", 0), ("d", 0)];
        assert_eq!(named, expected.map(|(name, lines)| (name.to_owned(), lines)));
    }

    #[test]
    fn the_list_may_only_shrink() {
        let large = BTreeMap::from([("a.rs".to_owned(), 600), ("a.rs::f".to_owned(), 80)]);
        let found = |list: &str| -> Vec<String> {
            compare(&large, list).into_iter().map(|f| format!("{}:{}", f.path, f.line)).collect()
        };
        assert!(found("# sizes\na.rs 600\na.rs::f 80\n").is_empty());
        assert_eq!(found("a.rs 600\n"), ["a.rs::f:0"]);
        assert_eq!(found("a.rs 599\na.rs::f 80\n"), ["tests/tidy/exceptions.txt:1"]);
        assert_eq!(found("a.rs 601\na.rs::f 80\n"), ["tests/tidy/exceptions.txt:1"]);
        assert_eq!(found("a.rs 600\na.rs::f 80\nb.rs 700\n"), ["tests/tidy/exceptions.txt:3"]);
        assert_eq!(found("a.rs 600\na.rs::f many\n"), ["tests/tidy/exceptions.txt:2"]);
    }
}
