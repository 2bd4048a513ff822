//! What no compiler checks: the conventions that a machine can hold, listed in docs/testing.md.
//!
//! Each rule is a function from text to findings with a test beside it that shows it firing; the tests here run all of
//! them over the files that git knows. A finding reads `path:line: what, do this instead`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test panics and prints")]

mod arrows;
mod commands;
mod licences;
mod links;
mod sizes;
mod tree;
mod words;

use tree::{Finding, Tree};

/// Fails with one line per finding.
#[track_caller]
fn assert_clean(findings: Vec<Finding>) {
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    assert_clean(arrows::check(&arrows::metadata()));
}

#[test]
fn files_and_functions_are_small() {
    assert_clean(sizes::check(&Tree::of_repository()));
}

#[test]
fn no_file_is_huge() {
    assert_clean(sizes::check_bytes(&Tree::of_repository()));
}

#[test]
fn words_are_where_they_belong() {
    let tree = Tree::of_repository();
    assert_clean(tree.each_text(words::check));
}

#[test]
fn documents_name_what_exists() {
    assert_clean(links::check(&Tree::of_repository()));
}

#[test]
fn commands_beside_results_run() {
    assert_clean(commands::check(&Tree::of_repository()));
}

#[test]
fn licences_of_dependencies_are_permissive() {
    assert_clean(licences::check(&licences::packages()));
}

#[test]
fn third_party_notices_are_complete() {
    lampyris_tests::assert_golden("THIRD_PARTY.md", &licences::notices(&licences::packages()));
}
