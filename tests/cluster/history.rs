//! What must hold of a job's history whatever was killed: at most one live attempt, checkpoint steps that never go back, no
//! accepted step lost or done twice, and the same end as undisturbed.

use crate::desk::Desk;
use lampyris_tests::steady::{Line, read, state_after};

/// Checks the history of a finished run of `steps` steps.
#[track_caller]
pub(crate) fn check(desk: &Desk, name: &str, steps: u64) -> Vec<Line> {
    let lines = read(&desk.path(name));
    let problems = problems(&lines, steps);
    assert!(problems.is_empty(), "{name}: {problems:?}\n{lines:#?}\n{}", desk.logs());
    lines
}

fn problems(lines: &[Line], steps: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let (mut attempt, mut committed) = (0, 0);
    for line in lines {
        // Lines are appended as things happen: an older attempt that still writes lives beside a newer one.
        if line.attempt < attempt {
            problems.push(format!("attempt {} lives beside {attempt}", line.attempt));
        }
        if line.attempt > attempt && line.what != "start" {
            problems.push(format!("attempt {} has no start", line.attempt));
        }
        attempt = attempt.max(line.attempt);
        if line.state != state_after(line.step) {
            problems.push(format!("step {} is not what it is undisturbed", line.step));
        }
        match line.what.as_str() {
            // The commit's line comes before its rename, which a kill may prevent: one checkpoint at most is missing.
            "start" if line.step > committed => {
                problems.push(format!("starts after {}, committed {committed}", line.step));
            }
            "commit" | "suspend" if line.step < committed && !is_again(lines, line) => {
                problems.push(format!("commits go back from {committed} to {}", line.step));
            }
            _ => committed = committed.max(line.step),
        }
    }
    match lines.last() {
        Some(last) if last.what == "finish" && last.step == steps => {}
        last => problems.push(format!("the last line is {last:?}")),
    }
    if lines.iter().filter(|line| line.what == "finish").count() != 1 {
        problems.push("it finished more than once".into());
    }
    problems
}

/// Whether a commit repeats steps that the attempt before did not get committed: its own start says from where.
fn is_again(lines: &[Line], commit: &Line) -> bool {
    let start = lines.iter().find(|line| line.what == "start" && line.attempt == commit.attempt);
    start.is_some_and(|start| commit.step >= start.step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(what: &str, attempt: u64, step: u64) -> Line {
        Line { what: what.into(), attempt, step, state: state_after(step) }
    }

    #[test]
    fn a_good_history_has_no_problems_and_each_bad_one_has() {
        let good = [
            line("start", 1, 0),
            line("commit", 1, 5),
            line("start", 2, 5),
            line("commit", 2, 8),
            line("finish", 2, 8),
        ];
        assert_eq!(problems(&good, 8), Vec::<String>::new());
        let bad = |change: &dyn Fn(&mut Vec<Line>)| {
            let mut lines = good.to_vec();
            change(&mut lines);
            assert!(!problems(&lines, 8).is_empty(), "{lines:?}");
        };
        bad(&|lines| lines.insert(3, line("commit", 1, 6)));
        bad(&|lines| lines[2].step = 7);
        bad(&|lines| lines[3].step = 4);
        bad(&|lines| lines[3].state += 1);
        bad(&|lines| drop(lines.pop()));
        bad(&|lines| lines.push(line("finish", 2, 8)));
    }
}
