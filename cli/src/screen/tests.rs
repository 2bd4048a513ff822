//! Whatever others put into their names, paths and reasons: nothing but text reaches the terminal, and no line that is not
//! of the layout.

use super::*;
use crate::backend::{JobDetails, JobRow, Phase, RankRow};
use crate::ledger::{Document, Ledger, Sample};
use lampyris_checkpoint::report::{Diff, List, Verified};
use lampyris_data::PartSummary;
use lampyris_proto::v1;
use lampyris_worker::report::Report;
use lampyris_worker::shim::status::{RankStatus, State, Status};
use std::path::PathBuf;

/// Escape sequences of both kinds, a title, line breaks of all kinds, directions, characters without width.
const NASTY: &str = "a\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\r\nerror: forged\nhint: forged\t\u{8}\u{7f}\u{202e}\u{2066}\u{200e}\u{61c}\
                     \u{200b}\u{2028}\u{2029}\u{feff}b";

/// The text made with an innocent value and with the worst one: as many lines, and none of them harmful.
#[track_caller]
fn assert_safe(made: impl Fn(&str) -> String) {
    let (plain, nasty) = (made("innocent"), made(NASTY));
    let shown = visible::prose(&nasty);
    assert!(!shown.contains(|c| visible::is_hidden(c) && !"\n\t".contains(c)), "{shown:?}");
    assert_eq!(nasty.lines().count(), plain.lines().count(), "\n{plain}\n---\n{nasty}");
}

fn row(word: &str) -> JobRow {
    JobRow {
        id: word.into(),
        name: word.into(),
        user: word.into(),
        phase: Phase::Running,
        reason: word.into(),
        priority: word.into(),
        nodes: 1,
        attempt: 1,
        step: 5,
        total_steps: 20,
        loss: Some(2.5),
        tokens_per_s: Some(1.0),
        step_s: Some(4.0),
        run_dir: word.into(),
    }
}

fn details(word: &str) -> JobDetails {
    let rank = |rank, step| {
        let (node, operation) = (word.into(), word.into());
        RankRow { rank, node, step, operation, since_ms: 1 }
    };
    JobDetails {
        row: row(word),
        node_names: vec![word.into(), word.into()],
        saved_step: 1,
        failure: word.into(),
        ranks: vec![rank(0, 4), rank(1, 5)],
    }
}

fn node(word: &str) -> v1::Node {
    let text = word.to_string();
    v1::Node {
        name: word.into(),
        capacity: Some(v1::Capacity { group: word.into(), ..Default::default() }),
        reason: Some(v1::Reason { text, ..Default::default() }),
        ..Default::default()
    }
}

fn event(word: &str) -> v1::Event {
    let text = word.to_string();
    v1::Event {
        subject: Some(v1::event::Subject::Node(word.into())),
        reason: Some(v1::Reason { text, ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn tables_and_fields_of_jobs_and_nodes_hold_only_text() {
    assert_safe(|word| jobs::jobs(&[row(word)], usize::MAX));
    assert_safe(|word| jobs::jobs(&[row(word)], 60));
    assert_safe(|word| jobs::job(&details(word), usize::MAX));
    assert_safe(|word| jobs::nodes(&[node(word)], usize::MAX));
    assert_safe(|word| jobs::events(&[event(word)], usize::MAX));
    assert_safe(|word| jobs::event(&event(word)));
    assert_safe(|word| {
        let spec = Some(v1::JobSpec { name: word.into(), ..Default::default() });
        let reason = Some(v1::Reason { text: word.into(), ..Default::default() });
        jobs::submitted(&v1::Job { spec, reason, ..Default::default() })
    });
}

#[test]
fn what_status_files_and_checkpoints_name_holds_only_text() {
    assert_safe(|word| {
        let rank = RankStatus {
            rank: 0,
            node: 0,
            pid: 1,
            step: 1,
            total_steps: 2,
            operation: word.into(),
            since_ms: 0,
        };
        let status = Status {
            attempt: 1,
            world: 1,
            nodes: 1,
            node: 0,
            host: word.into(),
            pid: 1,
            process: None,
            state: State::Failed,
            exit_code: Some(1),
            reason: word.into(),
            written_ms: 0,
            ranks: vec![rank],
        };
        ranks(&[status], 0)
    });
    assert_safe(|word| {
        let (quarantined, problem) = (vec![word.into()], Some(word.into()));
        checkpoints::list(&List { checkpoints: Vec::new(), quarantined, problem })
    });
    assert_safe(|word| {
        let problems = vec![word.into()];
        checkpoints::verified(&[Verified { path: word.into(), bytes: 1, problems }])
    });
    assert_safe(|word| {
        let names = || vec![word.to_string()];
        checkpoints::diff(&Diff {
            tensors: Vec::new(),
            only_a: names(),
            only_b: names(),
            reshaped: names(),
            fields: names(),
            equal: 0,
        })
    });
    assert_safe(|word| {
        let document = Document {
            document: 1,
            source: 0,
            file: word.into(),
            line: None,
            tokens: [0, 1],
            text: None,
        };
        let sample =
            Sample { position: 0, micro_batch: 0, epoch: 0, window: 0, documents: vec![document] };
        ledger(&Ledger {
            step: 1,
            attempt: lampyris_plan::Attempt(1),
            dataset: "d".into(),
            sequence_length: 2,
            samples: vec![sample],
        })
    });
    assert_safe(|word| {
        let nothing = PartSummary { documents: 0, tokens: 0, bytes: 0 };
        report(Path::new(word), &Report::default(), &nothing, &[])
    });
}

/// Of an error only its own first lines begin at the margin.
#[track_caller]
fn assert_forges_nothing(text: &str, margin: &[&str]) {
    let shown = visible::block(text);
    assert!(!shown.contains(|c| visible::is_hidden(c) && c != '\n'), "{shown:?}");
    let found: Vec<&str> = shown.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(found.len(), margin.len(), "{shown}");
    for (line, start) in found.iter().zip(margin) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn errors_hints_and_notes_hold_only_text() {
    let path = PathBuf::from(NASTY);
    let exists = error_text(&CliError::RunExists { path: path.clone() });
    assert_forges_nothing(&exists, &["error: a", "hint: "]);
    assert_forges_nothing(&error_text(&CliError::HiddenInPath { path }), &["error: ", "hint: "]);
    assert_forges_nothing(&error_text(&CliError::Refused { what: NASTY.into() }), &["error: a"]);
    let (key, value) = (NASTY.to_string(), Some(NASTY.to_string()));
    let change = Change { key, before: value.clone(), after: value, numeric: true };
    let changed = error_text(&CliError::Changed { changes: vec![change] });
    assert_forges_nothing(&changed, &["error: ", "hint: "]);
    assert_forges_nothing(&indented(&format!("run directory {NASTY}")), &["run directory a"]);
}

#[test]
fn an_error_tells_its_causes_once() {
    let source = std::io::Error::other("the disk is on fire");
    let text = error_text(&CliError::write(Path::new("x"), source));
    assert_eq!(text, "error: cannot write x: the disk is on fire");
}

#[test]
fn a_path_in_a_command_to_type_is_one_word() {
    assert_eq!(word(Path::new("runs/first")), "runs/first");
    assert_eq!(word(Path::new("runs/$(id) x")), "'runs/$(id) x'");
}
