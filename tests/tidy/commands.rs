//! Commands that stand beside results run as they are written, in a fresh clone: programs of this repository exist and may
//! be executed, and `lampyris` has the sub-commands and flags that are named, as its committed help texts say.

use crate::tree::{Finding, Tree};

/// The help texts of all sub-commands of `lampyris`.
const HELP: &str = "tests/cli/golden/help.txt";

/// Sub-commands whose flags `lampyris-rank` reads: their help texts are not those of `lampyris`.
const OF_RANK: &[&str] = &["generate", "parity", "validate", "verify", "bench step"];

/// Checks every document of results.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let help = tree.text(HELP).unwrap_or_default();
    let documents = tree.files.iter().filter(|path| path.starts_with("docs/results/"));
    let documents = documents.filter(|path| path.ends_with(".md"));
    documents
        .filter_map(|path| Some((path, tree.text(path)?)))
        .flat_map(|(path, text)| check_text(path, &text, &help, &|file| tree.is_program(file)))
        .collect()
}

fn check_text(
    path: &str,
    text: &str,
    help: &str,
    is_program: &dyn Fn(&str) -> Option<bool>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, command) in commands(text) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let what = match words.first() {
            Some(&"lampyris") => unknown_words(&words[1..], help),
            Some(file) if file.contains('/') => match is_program(file) {
                Some(false) => Some(format!("`{file}` may not be executed")),
                _ => None,
            },
            _ => None,
        };
        let instead = "make the command run as it is written";
        findings.extend(what.map(|what| Finding::new(path, line, what, instead)));
    }
    findings
}

/// What stands between backticks, also over several lines, with the number of its first line.
fn commands(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut line = 1;
    for (index, span) in text.split('`').enumerate() {
        if index % 2 == 1 {
            found.push((line, span));
        }
        line += span.matches('\n').count();
    }
    found
}

/// A sub-command or flag that the help texts do not have.
fn unknown_words(words: &[&str], help: &str) -> Option<String> {
    let first = words.first()?;
    let of_rank = OF_RANK.iter().any(|command| words.join(" ").starts_with(command));
    let list = help.split("\n----- ").next().unwrap_or_default();
    let known = list.lines().any(|line| line.split_whitespace().next() == Some(first));
    if !known {
        return Some(format!("`lampyris {first}` is not a sub-command"));
    }
    let sections = [words.iter().take(2).copied().collect::<Vec<_>>().join(" "), first.to_string()];
    let section = |name: &String| help.split_once(&format!("\n----- {name} -----\n"));
    let text = sections.iter().find_map(section)?.1;
    let text = text.split("\n----- ").next().unwrap_or_default();
    let flags = words.iter().filter(|word| word.starts_with("--") && !of_rank);
    let mut names = flags.map(|flag| flag.split('=').next().unwrap_or(flag));
    let has = |name: &&str| text.split(|c: char| c.is_whitespace() || c == ',').any(|w| w == *name);
    names.find(|name| !has(name)).map(|name| format!("`lampyris {first}` has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Commands:\n  plan   Show\n  train  Train\n  verify  Check\n\n----- train -----\n\
                        Options:\n      --set <KEY=VALUE>\n  -f, --follow\n\n----- plan -----\n      --json\n";

    fn found(text: &str) -> Vec<(usize, String)> {
        let is_program = |file: &str| match file {
            "scripts/good.sh" => Some(true),
            "scripts/bad.py" => Some(false),
            _ => None,
        };
        let findings = check_text("docs/results/a.md", text, HELP, &is_program);
        findings.into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn commands_that_run_are_clean() {
        let text = "`lampyris train r.toml --set a=1\n  --follow` and `scripts/good.sh --x`, `lampyris verify --fuzz 3`\n\
                    `lampyris-rank`, `plan.toml`, `lampyris`\n";
        assert_eq!(found(text), []);
    }

    #[test]
    fn commands_that_do_not_run_are_found() {
        let text = "`lampyris trian x`\n\n`lampyris train x\n--json`\n`scripts/bad.py rows`\n";
        let expected = [
            (1, "`lampyris trian` is not a sub-command".to_string()),
            (3, "`lampyris train` has no --json".to_string()),
            (5, "`scripts/bad.py` may not be executed".to_string()),
        ];
        assert_eq!(found(text), expected);
    }
}
