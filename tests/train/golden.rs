//! The golden loss curve: a change that is not about numbers leaves every bit of it alone.

use lampyris_tests::desk::Desk;
use lampyris_tests::{assert_golden, repository};
use std::fmt::Write;

const GOLDEN: &str = "tests/golden/loss.txt";

#[test]
fn fifty_steps_have_the_recorded_losses() {
    let desk = Desk::new();
    let ended = desk.train("debug_moe", "run", &["schedule.total_tokens=25_600"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let losses = desk.losses("run");
    assert_eq!(losses.len(), 50);
    let fingerprint = desk.newest("run").manifest().fingerprint.clone();
    let mut now = String::from(
        "# Loss of 50 steps of recipes/debug_moe.toml, fp32, one thread; made by UPDATE_GOLDEN=1.\n",
    );
    for (key, value) in fingerprint {
        writeln!(now, "# {key}: {value}").expect("writes to a string");
    }
    for (step, loss) in &losses {
        writeln!(now, "{step} {loss:?}").expect("writes to a string");
    }
    let golden = std::fs::read_to_string(repository(GOLDEN)).unwrap_or_default();
    let head =
        |text: &str| text.lines().filter(|l| l.starts_with('#')).collect::<Vec<_>>().join("\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() || head(&golden) == head(&now) {
        return assert_golden(GOLDEN, &now);
    }
    // Another machine than the recorded one: the same curve to 1e-4.
    let recorded: Vec<f64> = golden
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' ')?.1.parse().ok())
        .collect();
    assert_eq!(recorded.len(), 50, "{GOLDEN} is damaged");
    for ((step, loss), recorded) in losses.iter().zip(recorded) {
        let error = (loss - recorded).abs() / recorded;
        assert!(error <= 1e-4, "step {step}: {loss} is not {recorded} to 1e-4");
    }
}

#[test]
fn training_learns_and_the_number_of_threads_changes_no_bit_of_fp32() {
    for optimizer in ["adamw", "muon"] {
        let desk = Desk::new();
        let sets = ["schedule.total_tokens=10_240", "eval.every_steps=0"];
        let runs = if optimizer == "adamw" { &RUNS[..] } else { &RUNS[..2] };
        let optimizer = format!("optimizer.kind={optimizer}");
        for (name, threads) in runs {
            let threads = format!("parallel.threads_per_rank={threads}");
            let ended = desk.train("debug_llama", name, &[sets[0], sets[1], &optimizer, &threads]);
            assert_eq!(ended.code, 0, "{}", ended.stderr);
        }
        let losses = desk.losses("one");
        assert!(losses[&20] < losses[&1] - 0.5, "{optimizer}: {losses:?}");
        for (name, _) in &runs[1..] {
            assert_eq!(losses, desk.losses(name), "{optimizer}, {name} threads");
            desk.assert_same_state("one", name);
        }
    }
}

const RUNS: [(&str, usize); 3] = [("one", 1), ("two", 2), ("sixteen", 16)];
