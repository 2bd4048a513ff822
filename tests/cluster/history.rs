//! What must hold of a job's history whatever was killed: never two processes of one rank, checkpoint steps that never go
//! back, no committed step lost, no accepted job lost, and the weights of an undisturbed run in the end.

use crate::desk::Desk;
use lampyris_tests::fake_checkpoint;
use lampyris_tests::steady::{Line, read, state_after};

/// Checks the history of a finished run of `steps` steps.
#[track_caller]
pub(crate) fn check(desk: &Desk, name: &str, steps: u64) -> Vec<Line> {
    let lines = read(&desk.path(name));
    let mut problems = problems(&lines, steps);
    // What is on disk in the end, read back element by element.
    let last = fake_checkpoint::load(&desk.path(name)).unwrap();
    if last.map(|(id, number)| (id.step.0, number)) != Some((steps, state_after(steps))) {
        problems.push(format!("the last checkpoint is {last:?}"));
    }
    problems.extend(desk.lost_jobs());
    assert!(problems.is_empty(), "{name}: {problems:?}\n{lines:#?}\n{}", desk.logs());
    lines
}

/// What a checker keeps of the lines so far.
#[derive(Default)]
struct Past {
    attempt: u64,
    /// Step of the newest checkpoint that is known to be committed.
    committed: u64,
    /// Step of a checkpoint that may be committed: a kill came between its rename and its line.
    perhaps: Option<u64>,
    /// The attempt has said its last word.
    over: bool,
}

impl Past {
    fn take(&mut self, line: &Line, problems: &mut Vec<String>) {
        let Line { what, attempt, step, state } = line;
        if *attempt < self.attempt {
            problems.push(format!("attempt {attempt} lives beside {}", self.attempt));
        }
        if *attempt > self.attempt && !["start", "beside"].contains(&what.as_str()) {
            problems.push(format!("attempt {attempt} has no start"));
        }
        self.attempt = self.attempt.max(*attempt);
        if *state != state_after(*step) {
            problems.push(format!("step {step} is not what it is undisturbed"));
        }
        if self.over && !["start", "beside"].contains(&what.as_str()) {
            problems.push(format!("{what} after the end of attempt {attempt}"));
        }
        self.over = ["suspend", "finish"].contains(&what.as_str());
        match what.as_str() {
            "beside" => problems.push(format!("attempt {attempt} began beside another")),
            "start" if *step == self.committed || Some(*step) == self.perhaps => {
                self.committed = *step;
                self.perhaps = None;
            }
            "start" => {
                problems.push(format!("starts after {step}, committed is {}", self.committed));
            }
            _ if *step < self.committed => {
                problems.push(format!("{what} goes back from {} to {step}", self.committed));
            }
            "saving" => self.perhaps = Some(*step),
            "commit" => (self.committed, self.perhaps) = (*step, None),
            _ if *step != self.committed => {
                problems.push(format!("{what} at {step}, committed is {}", self.committed));
            }
            _ => {}
        }
    }
}

fn problems(lines: &[Line], steps: u64) -> Vec<String> {
    let mut problems = Vec::new();
    let mut past = Past::default();
    for line in lines {
        past.take(line, &mut problems);
    }
    match lines.last() {
        Some(last) if last.what == "finish" && last.step == steps => {}
        last => problems.push(format!("the last line is {last:?}")),
    }
    problems
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
            line("saving", 1, 5),
            line("commit", 1, 5),
            line("start", 2, 5),
            line("saving", 2, 8),
            line("commit", 2, 8),
            line("finish", 2, 8),
        ];
        assert_eq!(problems(&good, 8), Vec::<String>::new());
        let bad = |change: &dyn Fn(&mut Vec<Line>)| {
            let mut lines = good.to_vec();
            change(&mut lines);
            assert!(!problems(&lines, 8).is_empty(), "{lines:?}");
        };
        // An older attempt that still writes, one that goes on from too early or too late, commits that go back.
        bad(&|lines| lines.insert(4, line("saving", 1, 6)));
        bad(&|lines| lines.insert(3, line("beside", 2, 0)));
        bad(&|lines| lines[3].step = 4);
        bad(&|lines| lines[3] = line("start", 2, 0));
        bad(&|lines| lines[3] = line("start", 2, 7));
        bad(&|lines| lines[5] = line("commit", 2, 4));
        bad(&|lines| lines[5].state += 1);
        bad(&|lines| drop(lines.pop()));
        bad(&|lines| lines.push(line("finish", 2, 8)));
        bad(&|lines| drop(lines.remove(5)));
    }

    #[test]
    fn a_kill_between_a_rename_and_its_line_is_no_problem() {
        let lines = |from| {
            [
                line("start", 1, 0),
                line("saving", 1, 5),
                line("start", 2, from),
                line("saving", 2, 8),
                line("commit", 2, 8),
                line("finish", 2, 8),
            ]
        };
        assert!(problems(&lines(5), 8).is_empty() && problems(&lines(0), 8).is_empty());
        assert!(!problems(&lines(3), 8).is_empty());
    }
}
