//! One value a step, whatever attempts have written.

use super::*;
use std::fs;

fn lines(run: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join(name)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Steps `steps`, whose loss says which attempt took them.
fn train(run: &Path, attempt: u64, steps: std::ops::RangeInclusive<u64>) -> Metrics {
    let began = Began { attempt, step: steps.start() - 1 };
    let mut metrics = Metrics::open(run, began, false).expect("opens");
    for step in steps {
        write(&mut metrics, json!({ "step": step, "tokens": step * 64, "loss": attempt }));
    }
    metrics
}

fn write(metrics: &mut Metrics, line: Value) {
    let step = line["step"].as_u64().expect("a step");
    let Value::Object(line) = line else { panic!("an object") };
    metrics.write(step, line).expect("writes");
}

fn losses(run: &Path) -> Vec<(u64, u64)> {
    let lines = lines(run, "metrics.jsonl").into_iter();
    lines.filter_map(|line| Some((line["step"].as_u64()?, line["loss"].as_u64()?))).collect()
}

#[test]
fn a_resumed_run_has_one_value_a_step_and_says_from_where() {
    let run = tempfile::tempdir().expect("a folder");
    let run = run.path();
    let mut first = train(run, 1, 1..=4);
    // Told late: of a step that stays.
    write(&mut first, json!({ "step": 2, "saved": { "bytes": 5 } }));
    write(&mut first, json!({ "step": 4, "validation": { "nats_per_token": 1.0 } }));
    train(run, 2, 3..=5);
    assert_eq!(losses(run), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]);
    let told = lines(run, "metrics.jsonl");
    assert_eq!(told[2], json!({ "step": 2, "saved": { "bytes": 5 } }));
    let resumed = json!({ "attempt": 2, "next_step": 3, "superseded_lines": 3 });
    assert_eq!(told[3], json!({ "step": 2, "resumed": resumed }));
    assert_eq!(lines(run, "metrics.superseded.jsonl").len(), 3);
    // An attempt that was thought dead changes nothing any more.
    write(&mut first, json!({ "step": 5, "tokens": 320, "loss": 1 }));
    assert_eq!(losses(run).last(), Some(&(5, 2)));
    // From the beginning: everything is superseded.
    train(run, 3, 1..=1);
    assert_eq!(losses(run), [(1, 3)]);
    assert_eq!(lines(run, "metrics.superseded.jsonl").len(), 3 + 7);
}

#[test]
fn what_an_earlier_release_wrote_twice_and_a_torn_line_are_set_aside() {
    let run = tempfile::tempdir().expect("a folder");
    let run = run.path();
    let line = |step: u64, loss: u64| format!("{{\"step\":{step},\"tokens\":9,\"loss\":{loss}}}\n");
    let twice = [line(1, 1), line(2, 1), line(3, 1), line(2, 2), line(3, 2)].concat();
    fs::write(run.join("metrics.jsonl"), twice + "{\"step\":4,\"tok").expect("writes");
    train(run, 3, 4..=4);
    assert_eq!(losses(run), [(1, 1), (2, 2), (3, 2), (4, 3)]);
    let aside = fs::read_to_string(run.join("metrics.superseded.jsonl")).expect("reads");
    assert_eq!(aside, [line(2, 1), line(3, 1), "{\"step\":4,\"tok\n".into()].concat());
}

#[test]
fn a_first_attempt_has_no_history() {
    let run = tempfile::tempdir().expect("a folder");
    train(run.path(), 1, 1..=2);
    assert_eq!(lines(run.path(), "metrics.jsonl").len(), 2);
    assert!(!run.path().join("metrics.superseded.jsonl").exists());
}

#[test]
fn a_folder_in_the_place_of_a_file_is_named() {
    let run = tempfile::tempdir().expect("a folder");
    let path = run.path().join("metrics.jsonl");
    fs::create_dir(&path).expect("creates");
    for attempt in [1, 2] {
        let began = Began { attempt, step: 0 };
        let error = Metrics::open(run.path(), began, false).expect_err("a folder").to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    }
}

#[test]
fn what_a_link_leads_to_stays_as_it_is_and_a_pipe_is_waited_for_by_nobody() {
    let run = tempfile::tempdir().expect("a folder");
    let run = run.path();
    let victim = run.join("victim");
    fs::write(&victim, "theirs").expect("writes");
    let resumed = Began { attempt: 2, step: 1 };
    for name in ["metrics.jsonl", "metrics.superseded.jsonl"] {
        for make in [link, pipe] {
            fs::write(run.join("metrics.jsonl"), "{\"step\":2}\n").expect("writes");
            fs::remove_file(run.join(name)).ok();
            make(&victim, &run.join(name));
            let error = Metrics::open(run, resumed, false).expect_err("no regular file");
            assert!(error.to_string().contains(name), "{error}");
            fs::remove_file(run.join(name)).expect("removes");
        }
    }
    // Of a start that was killed, or not: it is made anew.
    for make in [link, pipe] {
        fs::write(run.join("metrics.jsonl"), "{\"step\":1}\n").expect("writes");
        fs::remove_file(run.join("metrics.jsonl.tmp")).ok();
        make(&victim, &run.join("metrics.jsonl.tmp"));
        Metrics::open(run, resumed, false).expect("opens");
        assert_eq!(lines(run, "metrics.jsonl").len(), 2);
    }
    assert_eq!(fs::read_to_string(&victim).expect("reads"), "theirs");
}

fn link(victim: &Path, path: &Path) {
    std::os::unix::fs::symlink(victim, path).expect("links");
}

fn pipe(_: &Path, path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().expect("starts");
    assert!(made.success());
}
