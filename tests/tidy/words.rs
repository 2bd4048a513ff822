//! Words that may not stand in a file, or must.

use crate::tree::{Finding, is_test, without_tests};

/// Promises instead of code. Joined here so that this file does not contain them.
const PROMISES: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Code that computes from its arguments alone. In recipes, `lib.rs` reads the file and the rest parses.
const PURE: &[&str] = &["plan/src/", "recipes/src/", "scheduler/src/core"];
const SHELLS: &[&str] = &["recipes/src/lib.rs"];
/// What such code does not know of.
const IMPURE: &[&str] = &[
    "std::time::Instant",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "tokio",
    "rand::",
];

/// Programs whose users see text of others, and the modules that alone may write to their terminal.
const PROGRAMS: &[&str] = &["cli/src/", "trainer/src/"];
const SCREENS: &[&str] = &["cli/src/screen", "trainer/src/screen"];
/// How else it could be reached; `println!` and its like are clippy's.
const STREAMS: &[&str] = &["stdout()", "stderr()", "ProgressBar::"];

/// Code that works with parameters. What a parameter is stands in the inventory, as data; its name is for people and files.
const OF_PARAMETERS: &[&str] = &["plan/src/", "trainer/src/"];
/// Meaning that is read out of a name.
const READS_A_NAME: &[&str] = &[
    "name.contains(",
    "name.starts_with(",
    "name.ends_with(",
    "name.strip_prefix(",
    "name.strip_suffix(",
    "name.split(",
];
/// The name of a run, which has rules of its own.
const OTHER_NAMES: &[&str] = &["plan.name."];

/// Files in which whitespace is a matter of style.
const STYLED: &[&str] = &["rs", "toml", "md", "sh", "py", "proto", "cpp", "h", "sbatch"];

/// All rules on the words of one file.
pub(crate) fn check(path: &str, text: &str) -> Vec<Finding> {
    let extension = path.rsplit_once('.').map_or("", |(_, e)| e);
    let mut findings = Vec::new();
    if STYLED.contains(&extension) {
        findings.extend(check_whitespace(path, text));
        findings.extend(check_promises(path, text));
    }
    if extension == "rs" {
        findings.extend(check_name(path));
        findings.extend(check_head(path, text));
        findings.extend(check_unsafe(path, text));
        findings.extend(check_pure(path, text));
        findings.extend(check_parameter_names(path, text));
        findings.extend(check_terminal(path, text));
    }
    findings
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line))
}

fn check_whitespace(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in lines(text) {
        if line.contains('\t') {
            findings.push(Finding::new(path, number, "a tab", "use spaces"));
        }
        if line.ends_with([' ', '\t', '\r']) {
            findings.push(Finding::new(
                path,
                number,
                "a space at the end of the line",
                "remove it",
            ));
        }
    }
    if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
        let last = text.lines().count();
        findings.push(Finding::new(
            path,
            last,
            "the file must end with one newline",
            "add or remove",
        ));
    }
    findings
}

fn check_promises(path: &str, text: &str) -> Vec<Finding> {
    let promised = lines(text).filter_map(|(number, line)| {
        PROMISES.iter().find(|p| line.contains(**p)).map(|promise| (number, promise))
    });
    promised
        .map(|(number, promise)| {
            Finding::new(path, number, format!("`{promise}`"), "do it now or open an issue")
        })
        .collect()
}

fn check_name(path: &str) -> Vec<Finding> {
    let vague = ["util", "utils", "helper", "helpers", "misc"];
    let is_vague = |part: &str| vague.contains(&part.trim_end_matches(".rs"));
    let found = path.split('/').any(is_vague);
    let instead = "name it after what it holds";
    found.then(|| Finding::new(path, 0, "a name that says nothing", instead)).into_iter().collect()
}

fn check_head(path: &str, text: &str) -> Vec<Finding> {
    let found = path.contains("src/") && !is_test(path) && !text.starts_with("//!");
    let instead = "say what it is, which paper section, what it does not do";
    found.then(|| Finding::new(path, 1, "no `//!` head", instead)).into_iter().collect()
}

fn check_unsafe(path: &str, text: &str) -> Vec<Finding> {
    let all: Vec<&str> = text.lines().collect();
    let is_block = |line: &str| {
        let code = line.split("//").next().unwrap_or(line);
        ["unsafe {", "unsafe impl "].iter().any(|word| code.contains(word)) && !code.contains('"')
    };
    // The comment stands above the statement, which may have begun some lines before its block.
    let explained = |at: usize| {
        let above = all[..at].iter().rev().take(12);
        all[at].contains("// SAFETY:")
            || above
                .take_while(|line| !line.trim().is_empty())
                .any(|line| line.trim_start().starts_with("// SAFETY:"))
    };
    (0..all.len())
        .filter(|&at| is_block(all[at]) && !explained(at))
        .map(|at| {
            Finding::new(
                path,
                at + 1,
                "unsafe without a reason",
                "write `// SAFETY:` and why it is sound",
            )
        })
        .collect()
}

fn check_pure(path: &str, text: &str) -> Vec<Finding> {
    let pure =
        PURE.iter().any(|p| path.starts_with(p)) && !SHELLS.contains(&path) && !is_test(path);
    if !pure {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in lines(without_tests(text)) {
        let code = line.split("//").next().unwrap_or(line);
        for word in IMPURE.iter().filter(|word| code.contains(**word)) {
            let what = format!("`{word}` in a module that decides");
            findings.push(Finding::new(path, number, what, "pass the value in, act in the shell"));
        }
    }
    findings
}

/// Names and texts of others are escaped on their way to a terminal, by the one module that writes there.
fn check_terminal(path: &str, text: &str) -> Vec<Finding> {
    let of_program = PROGRAMS.iter().any(|program| path.starts_with(program));
    if !of_program || SCREENS.iter().any(|screen| path.starts_with(screen)) || is_test(path) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in lines(without_tests(text)) {
        let code = line.split("//").next().unwrap_or(line);
        if let Some(word) = STREAMS.iter().find(|word| calls(code, word)) {
            let what = format!("`{word}` outside the module that prints");
            findings.push(Finding::new(path, number, what, "print through `screen`"));
        }
    }
    findings
}

/// Whether `code` has `word` as a function of the standard library, not as the end of a name or of a type's path.
fn calls(code: &str, word: &str) -> bool {
    let within = |c: char| c.is_alphanumeric() || "_:".contains(c);
    code.match_indices(word).any(|(at, _)| {
        let before = &code[..at];
        before.ends_with("io::") || !before.ends_with(within)
    })
}

fn check_parameter_names(path: &str, text: &str) -> Vec<Finding> {
    if !OF_PARAMETERS.iter().any(|p| path.starts_with(p)) || is_test(path) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in lines(without_tests(text)) {
        let code = line.split("//").next().unwrap_or(line);
        let reads = READS_A_NAME.iter().find(|word| code.contains(**word));
        if let Some(word) = reads.filter(|_| !OTHER_NAMES.iter().any(|name| code.contains(name))) {
            let what = format!("`{word}..)` reads meaning out of a name");
            let instead = "say it in the inventory, as a field of the parameter";
            findings.push(Finding::new(path, number, what, instead));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_found(path: &str, text: &str) -> Vec<usize> {
        check(path, text).into_iter().map(|f| f.line).collect()
    }

    #[test]
    fn clean_files_are_clean() {
        assert!(check("plan/src/a.rs", "//! Head.\n\nfn f() {}\n").is_empty());
        assert!(check("data/a.txt", "trailing \t\n").is_empty());
    }

    #[test]
    fn whitespace_is_found() {
        assert_eq!(lines_found("a.md", "a \n\tb\nc\n"), [1, 2]);
        assert_eq!(lines_found("a.toml", "a"), [1]);
        assert_eq!(lines_found("a.toml", "a\n\n"), [2]);
    }

    #[test]
    fn promises_are_found() {
        for promise in PROMISES {
            assert_eq!(lines_found("a.py", &format!("x\n# {promise}\n")), [2], "{promise}");
        }
    }

    #[test]
    fn vague_names_and_missing_heads_are_found() {
        assert_eq!(lines_found("comm/src/util.rs", "//! Head.\n"), [0]);
        assert_eq!(lines_found("comm/src/utils/a.rs", "//! Head.\n"), [0]);
        assert_eq!(lines_found("comm/src/a.rs", "fn f() {}\n"), [1]);
        assert!(lines_found("comm/src/a/tests.rs", "fn f() {}\n").is_empty());
    }

    #[test]
    fn unsafe_without_a_reason_is_found() {
        let block = concat!("uns", "afe { f() };\n");
        assert_eq!(lines_found("comm/tests/a.rs", &format!("let a =\n    {block}")), [2]);
        assert!(
            lines_found("comm/tests/a.rs", &format!("// SAFETY: f is.\nlet a =\n    {block}"))
                .is_empty()
        );
        assert_eq!(lines_found("comm/tests/a.rs", &format!("// SAFETY: f is.\n\n{block}")), [3]);
    }

    #[test]
    fn terminals_are_written_to_in_one_place() {
        let text = "//! Head.\nuse std::io;\nlet out = io::stdout();\n// stderr()\nlog_to_stderr();\n\
                    Log::stdout();\n";
        assert_eq!(lines_found("cli/src/commands/a.rs", text), [3]);
        assert_eq!(lines_found("trainer/src/a.rs", text), [3]);
        for path in
            ["cli/src/screen.rs", "cli/src/screen/a.rs", "worker/src/a.rs", "cli/src/a/tests.rs"]
        {
            assert!(lines_found(path, text).is_empty(), "{path}");
        }
    }

    #[test]
    fn pure_modules_have_no_world() {
        let text =
            "//! Not tokio.\nuse std::fs;\n#[cfg(test)]\nmod tests {\n    use std::net;\n}\n";
        assert_eq!(lines_found("plan/src/a.rs", text), [2]);
        assert_eq!(lines_found("scheduler/src/core/a.rs", text), [2]);
        assert!(lines_found("recipes/src/lib.rs", text).is_empty());
        assert!(lines_found("worker/src/a.rs", text).is_empty());
    }

    #[test]
    fn meaning_read_out_of_names_is_found() {
        let text = "//! Head.\nlet shared = parameter.name.contains(\".shared.\");\n";
        assert_eq!(lines_found("plan/src/a.rs", text), [2]);
        assert_eq!(lines_found("trainer/src/a.rs", text), [2]);
        assert!(lines_found("cli/src/a.rs", text).is_empty());
        assert!(lines_found("plan/src/a/tests.rs", text).is_empty());
        let run = "//! Head.\nlet plain = plan.name.starts_with('a');\n";
        assert!(lines_found("plan/src/a.rs", run).is_empty());
    }
}
