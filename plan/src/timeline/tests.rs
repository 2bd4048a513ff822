use super::*;
use crate::fixture;
use crate::program::StepShape;
use crate::share::Shares;

/// The step of rank 0 of 4, 2 of them sharing experts.
fn shape() -> StepShape {
    let mut plan = fixture::plan();
    (plan.parallel.data, plan.parallel.expert, plan.parallel.zero) = (4, 2, 1);
    (plan.batch.leaves, plan.parallel.bucket_bytes) = (4, 64 << 10);
    let shape = Shares::of(&plan).rank(0).step_shape(8);
    assert!(shape.buckets.len() > 3);
    shape
}

fn exchanges(act: Act) -> bool {
    matches!(act, Act::Start(Transfer::Rows { .. }))
}

/// Segments of one second; transfers for which `transfer_s` is not zero.
fn segments(transfer_s: impl Fn(Act) -> f64) -> impl Fn(Act) -> Cost {
    move |act| match act {
        Act::Run(Task::Forward { .. } | Task::Loss { .. } | Task::Backward { .. }) => {
            Cost { compute_s: 1.0, transfer_s: 0.0 }
        }
        _ => Cost { compute_s: 0.0, transfer_s: transfer_s(act) },
    }
}

#[test]
fn without_transfers_a_step_is_its_computation() {
    for program in [Program::sequential(&shape()), Program::overlapped(&shape())] {
        let found = bound(&program, |_| Cost { compute_s: 1.0, transfer_s: 0.0 });
        let instructions = program.instructions.len() as f64;
        assert_eq!(found, Bound { step_s: instructions, compute_s: instructions, transfer_s: 0.0 });
        assert!((found.hidden() - 1.0).abs() < 1e-12);
    }
}

#[test]
fn without_computation_a_step_is_its_transfers() {
    let program = Program::sequential(&shape());
    let transfer_s = |act| if exchanges(act) { 1.0 } else { 0.0 };
    let found = bound(&program, |act| Cost { compute_s: 0.0, transfer_s: transfer_s(act) });
    let count = program.acts().filter(|act| exchanges(*act)).count() as f64;
    assert_eq!(found, Bound { step_s: count, compute_s: 0.0, transfer_s: count });
}

/// Segments of one second, exchanges of one and a half: in turns with another micro-batch most of them disappear.
#[test]
fn overlap_hides_exchanges() {
    let cost = segments(|act| if exchanges(act) { 1.5 } else { 0.0 });
    let off = bound(&Program::sequential(&shape()), &cost);
    let on = bound(&Program::overlapped(&shape()), &cost);
    assert_eq!((on.compute_s, on.transfer_s), (off.compute_s, off.transfer_s));
    assert!(on.hidden() > 0.8 && off.hidden() < 0.6, "{} {}", on.hidden(), off.hidden());
}

/// A reduction flies under the backward pass that follows it; only the last bucket's is seen. A gather flies under the
/// next forward pass.
#[test]
fn reductions_and_gathers_fly_under_segments() {
    let reduces = |act| matches!(act, Act::Start(Transfer::Reduce { .. }));
    let cost = segments(move |act| if reduces(act) { 0.5 } else { 0.0 });
    let found = bound(&Program::sequential(&shape()), cost);
    assert!(found.transfer_s >= 0.5 * 4.0);
    // Buckets that are complete at the same instruction queue up.
    assert!(found.step_s - found.compute_s <= 1.0, "{found:?}");
}
