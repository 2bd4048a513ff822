//! What the view writes, word for word, and what it keeps.

use super::*;

fn step(step: u64, loss: f64) -> StepDone {
    StepDone {
        step,
        total_steps: 100,
        tokens: step * 2048,
        loss,
        lr: 2e-3,
        grad_norm: 1.0,
        tokens_per_s: 5321.9,
        step_s: 0.5,
    }
}

fn said(body: Body) -> Event {
    Event::Said { rank: Rank(0), body }
}

#[test]
fn a_step_line_has_loss_rate_speed_and_remaining_time() {
    assert_eq!(
        figures(&step(40, 3.21456), 0.5),
        "loss 3.2146  lr 2.00e-3  5,321 tokens/s  eta 30s"
    );
    assert_eq!(figures(&step(100, f64::NAN), 0.5), "loss NaN  lr 2.00e-3  5,321 tokens/s  eta 0s");
}

#[test]
fn durations_read_well_at_every_size() {
    let cases = [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (250.0, "4m10s"),
        (3_600.0, "1h00m"),
        (90_061.0, "1d01h"),
        (-3.0, "0s"),
        (f64::INFINITY, "?"),
    ];
    for (seconds, expected) in cases {
        assert_eq!(duration_text(seconds), expected, "{seconds}");
    }
}

#[test]
fn the_remaining_time_follows_the_steps_slowly() {
    let mut view = TrainingView::new(false);
    let now = Instant::now();
    view.show(said(Body::StepDone(step(1, 5.0))), now);
    assert_eq!(view.step_s, 0.5);
    view.show(said(Body::StepDone(StepDone { step_s: 1.5, ..step(2, 5.0) })), now);
    assert_eq!(view.step_s, 0.55);
}

#[test]
fn other_ranks_only_add_notes() {
    let mut view = TrainingView::new(false);
    view.show(Event::Said { rank: Rank(3), body: Body::StepDone(step(1, 5.0)) }, Instant::now());
    assert_eq!(view.report, Report::default());
    let note = Note { severity: Severity::Warning.into(), text: "slow disk".into() };
    assert_eq!(note_text(Rank(3), &note), "warning: rank 3: slow disk");
    assert_eq!(note_text(Rank(0), &Note { severity: 1, text: "ready".into() }), "ready");
}

#[test]
fn a_suspend_says_who_asked_and_what_follows() {
    let text = suspending_text(false, SuspendReason::Signal(15));
    assert_eq!(text, "SIGTERM: checkpointing at the next step boundary to continue later");
    let text = suspending_text(true, SuspendReason::Signal(2));
    assert!(
        text.starts_with("SIGINT: checkpointing at the next step boundary and staying stopped")
    );
    assert!(text.contains("Ctrl-C again"));
    let late = [(Rank(0), Step(4), String::new()), (Rank(2), Step(5), "saving".to_string())];
    assert_eq!(
        late_text(&late, Duration::from_secs(120)),
        "warning: 2m00s after the request not at a step boundary: rank 0 (after step 4), \
         rank 2 (after step 5, saving)"
    );
}
