//! The supervisor against the contract of the suspend table, one case after the other, with an invented clock.

use super::*;
use lampyris_proto::rank::{Finished, Note, Operation, StepDone, Suspended};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A supervisor of `local_ranks` ready ranks, the first of which is rank 4 of attempt 2.
fn ready(local_ranks: usize) -> Supervisor {
    let mut shim = Supervisor::new(Setup {
        build_id: "b".into(),
        attempt: Attempt(2),
        first_rank: Rank(4),
        local_ranks,
        report_after: ms(60_000),
    });
    for index in 0..local_ranks {
        let ready = Ready {
            rank: 4 + index as u64,
            attempt: 2,
            build_id: "b".into(),
            ..Default::default()
        };
        assert_eq!(say(&mut shim, index, Body::Ready(ready)).len(), 1);
    }
    shim
}

fn say(shim: &mut Supervisor, index: usize, body: Body) -> Vec<Action> {
    shim.step(ms(0), Input::Message(index, Some(body)))
}

fn step_done(step: u64) -> Body {
    Body::StepDone(StepDone { step, ..Default::default() })
}

fn finished() -> Body {
    Body::Finished(Finished { step: 9, ..Default::default() })
}

fn suspended(stay_stopped: bool) -> Body {
    Body::Suspended(Suspended { step: 5, stay_stopped })
}

fn failed(cause: Cause) -> Body {
    Body::Failed(Failed { cause: cause.into(), message: "m".into(), hint: "h".into() })
}

fn exit(shim: &mut Supervisor, now: u64, index: usize, exit: Exit) -> Vec<Action> {
    shim.step(ms(now), Input::Exited(index, exit))
}

fn suspend_messages(actions: &[Action]) -> Vec<(usize, bool)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send(index, ToRank { body: Some(to_rank::Body::Suspend(s)) }) => {
                Some((*index, s.stay_stopped))
            }
            _ => None,
        })
        .collect()
}

fn kills(actions: &[Action]) -> Vec<usize> {
    let index = |action: &Action| match action {
        Action::Kill(index) => Some(*index),
        _ => None,
    };
    actions.iter().filter_map(index).collect()
}

fn failure(shim: &Supervisor) -> Failure {
    match shim.outcome() {
        Some(Outcome::Failed(failure)) => *failure,
        other => panic!("not a failure: {other:?}"),
    }
}

#[test]
fn all_finished_is_finished() {
    let mut shim = ready(2);
    for index in 0..2 {
        assert_eq!(shim.outcome(), None);
        say(&mut shim, index, finished());
        exit(&mut shim, 0, index, Exit::Code(0));
    }
    assert_eq!(shim.outcome(), Some(Outcome::Finished));
    assert_eq!(shim.outcome().unwrap().exit_code(), 0);
}

#[test]
fn sigterm_wants_to_go_on_and_sigint_stays_stopped() {
    let term = Input::Suspend { stay_stopped: false, reason: SuspendReason::Signal(15) };
    for (input, stay_stopped, code) in [(term, false, 85), (Input::Interrupt, true, 86)] {
        let mut shim = ready(2);
        let told = suspend_messages(&shim.step(ms(1), input));
        assert_eq!(told, [(0, stay_stopped), (1, stay_stopped)]);
        for index in 0..2 {
            say(&mut shim, index, suspended(stay_stopped));
            exit(&mut shim, 2, index, Exit::Code(i32::from(code)));
        }
        let outcome = shim.outcome().unwrap();
        assert_eq!(outcome, Outcome::Suspended { step: Step(5), stay_stopped });
        assert_eq!(outcome.exit_code(), code);
    }
}

#[test]
fn a_request_to_stay_stopped_overrides_one_to_go_on_and_not_the_other_way() {
    let ask = |stay_stopped| Input::Suspend { stay_stopped, reason: SuspendReason::Request };
    let mut shim = ready(1);
    assert_eq!(suspend_messages(&shim.step(ms(0), ask(false))), [(0, false)]);
    assert!(shim.step(ms(1), ask(false)).is_empty());
    assert_eq!(suspend_messages(&shim.step(ms(2), ask(true))), [(0, true)]);
    assert!(shim.step(ms(3), ask(true)).is_empty());
    assert!(shim.step(ms(4), ask(false)).is_empty());
}

#[test]
fn a_second_sigint_kills_and_a_sigterm_before_it_does_not_count() {
    let mut shim = ready(2);
    let term = Input::Suspend { stay_stopped: false, reason: SuspendReason::Signal(15) };
    shim.step(ms(0), term);
    assert!(kills(&shim.step(ms(1), Input::Interrupt)).is_empty());
    assert_eq!(kills(&shim.step(ms(2), Input::Interrupt)), [0, 1]);
    exit(&mut shim, 3, 0, Exit::Signal(9));
    exit(&mut shim, 3, 1, Exit::Signal(9));
    assert_eq!(failure(&shim).cause, FailureCause::Killed);
    assert_eq!(shim.outcome().unwrap().exit_code(), 130);
}

#[test]
fn who_ignores_a_suspend_is_named_again_and_again_and_not_killed() {
    let mut shim = ready(3);
    shim.step(ms(0), Input::Interrupt);
    say(&mut shim, 0, suspended(true));
    say(&mut shim, 1, step_done(7));
    say(&mut shim, 1, Body::Operation(Operation { what: "saving".into(), ..Default::default() }));
    say(&mut shim, 2, suspended(true));
    exit(&mut shim, 10, 2, Exit::Code(86));
    assert_eq!(shim.step(ms(59_999), Input::Tick), []);
    for now in [60_000, 120_000] {
        let ranks = vec![(Rank(5), Step(7), "saving".to_string())];
        let report = Event::NotAtBoundary { ranks, waited: ms(now) };
        assert_eq!(shim.step(ms(now), Input::Tick), [Action::Emit(report)]);
    }
}

#[test]
fn the_deadline_is_told_kills_and_asks_to_try_again() {
    let mut shim = ready(1);
    let at = Input::Deadline(ms(1_000));
    let told = Deadline { boottime_ns: 1_000_000_000 };
    let body = Some(to_rank::Body::Deadline(told));
    assert_eq!(shim.step(ms(0), at), [Action::Send(0, ToRank { body })]);
    shim.step(ms(900), Input::Deadline(ms(2_000)));
    assert_eq!(shim.step(ms(1_999), Input::Tick), []);
    assert_eq!(kills(&shim.step(ms(2_000), Input::Tick)), [0]);
    assert!(kills(&shim.step(ms(2_200), Input::Tick)).is_empty());
    exit(&mut shim, 2_300, 0, Exit::Signal(9));
    assert_eq!(failure(&shim).cause, FailureCause::DeadlinePassed);
    assert_eq!(shim.outcome().unwrap().exit_code(), 75);
}

#[test]
fn a_rank_that_ends_itself_at_the_deadline_is_to_be_tried_again() {
    let mut shim = ready(1);
    shim.step(ms(0), Input::Deadline(ms(10)));
    assert_eq!(kills(&shim.step(ms(10), Input::Tick)), [0]);
    exit(&mut shim, 11, 0, Exit::Code(75));
    assert_eq!(shim.outcome().unwrap().exit_code(), 75);
}

#[test]
fn a_commit_that_wins_the_race_against_the_deadline_counts() {
    let mut shim = ready(1);
    shim.step(ms(0), Input::Interrupt);
    shim.step(ms(0), Input::Deadline(ms(10)));
    assert_eq!(kills(&shim.step(ms(10), Input::Tick)), [0]);
    say(&mut shim, 0, suspended(true));
    exit(&mut shim, 11, 0, Exit::Code(86));
    assert_eq!(shim.outcome().unwrap().exit_code(), 86);
}

#[test]
fn a_dead_rank_ends_the_others_within_a_second_and_is_the_one_reported() {
    let mut shim = ready(3);
    say(&mut shim, 1, step_done(12));
    assert!(kills(&exit(&mut shim, 100, 1, Exit::Signal(11))).is_empty());
    // A neighbour notices and goes by itself; the other is killed.
    say(&mut shim, 0, failed(Cause::PeerLost));
    exit(&mut shim, 200, 0, Exit::Code(75));
    assert!(kills(&shim.step(ms(599), Input::Tick)).is_empty());
    assert_eq!(kills(&shim.step(ms(600), Input::Tick)), [2]);
    exit(&mut shim, 601, 2, Exit::Signal(9));
    let failure = failure(&shim);
    assert_eq!((failure.rank, failure.step), (Rank(5), Step(12)));
    assert_eq!(failure.cause, FailureCause::Signalled(11));
    assert_eq!(failure.to_string(), "rank 5 was killed by SIGSEGV (after step 12)");
}

#[test]
fn one_that_lost_a_peer_is_not_the_cause_even_if_it_was_seen_first() {
    let mut shim = ready(2);
    say(&mut shim, 0, failed(Cause::PeerLost));
    exit(&mut shim, 0, 0, Exit::Code(75));
    say(&mut shim, 1, failed(Cause::NotFinite));
    exit(&mut shim, 1, 1, Exit::Code(1));
    assert_eq!(failure(&shim).rank, Rank(5));
    assert_eq!(shim.outcome().unwrap().exit_code(), 1);
}

#[test]
fn exit_codes_of_a_failed_rank() {
    for (code, expected) in [(75, 75), (78, 78), (1, 1), (101, 1), (2, 1)] {
        let mut shim = ready(1);
        exit(&mut shim, 0, 0, Exit::Code(code));
        assert_eq!(shim.outcome().unwrap().exit_code(), expected, "rank's code {code}");
    }
}

#[test]
fn a_good_exit_code_without_the_word_is_a_failure() {
    for (word, code) in [
        (None, 0),
        (None, 85),
        (None, 86),
        (Some(suspended(false)), 86),
        (Some(suspended(true)), 85),
        (Some(suspended(true)), 0),
        (Some(finished()), 86),
    ] {
        let mut shim = ready(1);
        if let Some(word) = word {
            say(&mut shim, 0, word);
        }
        exit(&mut shim, 0, 0, Exit::Code(code));
        assert_eq!(failure(&shim).cause, FailureCause::Unannounced(code));
    }
}

#[test]
fn ranks_that_end_differently_disagree() {
    let mut shim = ready(2);
    say(&mut shim, 0, finished());
    exit(&mut shim, 0, 0, Exit::Code(0));
    say(&mut shim, 1, suspended(true));
    exit(&mut shim, 0, 1, Exit::Code(86));
    assert!(matches!(failure(&shim).cause, FailureCause::Disagreement(_)));
}

#[test]
fn a_rank_that_breaks_the_protocol_is_killed_at_once_and_named() {
    let wrong = |build_id: &str, rank, attempt| {
        let build_id = build_id.into();
        Body::Ready(Ready { rank, attempt, build_id, ..Default::default() })
    };
    let cases = [
        (Input::Garbage(0, "too long".into()), "too long"),
        (Input::Message(0, None), "without content"),
        (Input::Message(0, Some(wrong("c", 4, 2))), "is of build c, this program of b"),
        (Input::Message(0, Some(wrong("b", 3, 2))), "rank 3 of attempt 2"),
        (Input::Message(0, Some(wrong("b", 4, 1))), "rank 4 of attempt 1"),
    ];
    for (input, expected) in cases {
        let mut shim = ready(1);
        assert_eq!(kills(&shim.step(ms(0), input)), [0]);
        exit(&mut shim, 1, 0, Exit::Signal(9));
        let failure = failure(&shim);
        assert!(failure.to_string().contains(expected), "{failure}");
        assert!(!failure.hint().is_empty());
    }
}

#[test]
fn a_rank_must_be_ready_before_it_speaks_of_anything_but_its_failure() {
    let setup = ready(1).setup;
    let mut shim = Supervisor::new(setup.clone());
    assert!(kills(&say(&mut shim, 0, failed(Cause::Device))).is_empty());
    exit(&mut shim, 0, 0, Exit::Code(1));
    assert_eq!(failure(&shim).hint(), "h");
    let mut shim = Supervisor::new(setup);
    let note = Note { severity: 1, text: "hello".into() };
    assert_eq!(kills(&say(&mut shim, 0, Body::Note(note))), [0]);
}

#[test]
fn a_rank_may_close_its_socket_only_to_exit() {
    let mut shim = ready(1);
    shim.step(ms(0), Input::Closed(0));
    assert_eq!(shim.step(ms(1_999), Input::Tick), []);
    assert_eq!(kills(&shim.step(ms(2_000), Input::Tick)), [0]);
    exit(&mut shim, 2_001, 0, Exit::Signal(9));
    assert!(failure(&shim).to_string().contains("closed its socket"));
}

#[test]
fn a_rank_that_a_request_ends_before_it_is_ready_was_never_started() {
    for signal in [SIGTERM, SIGUSR2, SIGHUP] {
        let mut shim = Supervisor::new(Setup {
            build_id: "b".into(),
            attempt: Attempt(2),
            first_rank: Rank(0),
            local_ranks: 2,
            report_after: ms(60_000),
        });
        let actions = exit(&mut shim, 0, 1, Exit::Signal(signal));
        assert_eq!(actions, [Action::Kill(0)]);
        exit(&mut shim, 1, 0, Exit::Signal(9));
        let outcome = shim.outcome().unwrap();
        assert_eq!(outcome, Outcome::Suspended { step: Step(0), stay_stopped: false });
    }
    let mut shim = ready(1);
    exit(&mut shim, 0, 0, Exit::Signal(SIGTERM));
    assert_eq!(shim.outcome().unwrap().exit_code(), 1);
}
