//! Mistakes planted in programs, each caught and named.

use super::super::tests::{one_rank, sharded};
use super::*;
use crate::program::depend;
use crate::segments::{Exchange, Slot};

/// The program of `shape` after `change` of its order.
fn reordered(shape: &StepShape, change: impl FnOnce(&mut Vec<Act>)) -> Program {
    let mut order: Vec<Act> = Program::overlapped(shape).acts().collect();
    change(&mut order);
    depend(order, &shape.graph, &shape.buckets, shape.micro_batches)
}

fn at(order: &[Act], act: Act) -> usize {
    order.iter().position(|other| *other == act).unwrap_or_else(|| panic!("no {act}"))
}

fn swap(order: &mut [Act], a: Act, b: Act) {
    let (a, b) = (at(order, a), at(order, b));
    order.swap(a, b);
}

fn weight(micro: usize, segment: Segment, leaf: usize) -> Act {
    Act::Run(Task::Weight { micro, segment, leaf })
}

fn backward(micro: usize, segment: Segment) -> Act {
    Act::Run(Task::Backward { micro, segment })
}

fn rows(micro: usize, exchange: Exchange, pass: Pass) -> Transfer {
    Transfer::Rows { micro, exchange, pass }
}

/// What the checker says of a changed order of four micro-batches in two leaves on one rank.
fn found(change: impl FnOnce(&mut Vec<Act>)) -> Mistake {
    let shape = one_rank(4, 2);
    check(&reordered(&shape, change), &shape).expect_err("a mistake was planted")
}

#[test]
fn programs_without_mistakes_pass() {
    for (micro_batches, leaves) in [(1, 1), (2, 2), (4, 2), (8, 8), (8, 1)] {
        let shape = one_rank(micro_batches, leaves);
        for program in [Program::sequential(&shape), Program::overlapped(&shape)] {
            assert_eq!(check(&program, &shape), Ok(()));
            assert_eq!(program.carried, []);
        }
    }
    let shape = sharded(3);
    let program = Program::overlapped(&shape);
    assert_eq!(check(&program, &shape), Ok(()));
    let gathers = (0..shape.buckets.len()).map(|bucket| Transfer::Gather { bucket });
    let mut carried = program.carried;
    carried.sort_unstable();
    assert_eq!(carried, gathers.collect::<Vec<_>>());
}

#[test]
fn acts_that_are_missing_or_doubled() {
    let act = backward(1, Segment::Shared(1));
    assert_eq!(found(|order| order.insert(at(order, act), act)), Mistake::Twice { act });
    let act = Act::Run(Task::UpdateShard { bucket: 3 });
    let leave_out = |order: &mut Vec<Act>| order.retain(|other| *other != act);
    assert_eq!(found(leave_out), Mistake::Missing { act });
}

/// A slot with several readers needs all of them: the residual stream here.
#[test]
fn a_reader_that_does_not_contribute() {
    let reader = backward(0, Segment::Shared(1));
    let segment = Segment::Shared(1);
    let found = found(|order| order.retain(|a| *a != reader && *a != weight(0, segment, 0)));
    let Mistake::MissingContribution { act, value, reader } = found else { panic!("{found}") };
    assert_eq!(act, backward(0, Segment::Attention(1)));
    assert_eq!(value, Value::Gradient { micro: 0, slot: Slot::Normed(1) });
    assert_eq!(reader, Operation::Segment(Segment::Shared(1)));
}

#[test]
fn transfers_without_start_or_wait() {
    let shape = one_rank(4, 2);
    let exchange = Exchange::Dispatch(1);
    let transfer = rows(2, exchange, Pass::Forward);
    let mut program = Program::overlapped(&shape);
    program.instructions.retain(|instruction| instruction.act != Act::Start(transfer));
    assert_eq!(check(&program, &shape), Err(Mistake::NotStarted { transfer }));

    let mut program = Program::overlapped(&shape);
    for instruction in &mut program.instructions {
        instruction.needs.retain(|need| *need != transfer);
    }
    let act = Act::Run(Task::Forward { micro: 2, segment: Segment::Experts(1) });
    let value = Value::Slot { micro: 2, slot: Slot::Rows(1) };
    assert_eq!(check(&program, &shape), Err(Mistake::NotThere { act, value }));

    // In the backward pass the gradient of the slot misses a contribution.
    let transfer = rows(2, exchange, Pass::Backward);
    let mut program = Program::overlapped(&shape);
    for instruction in &mut program.instructions {
        instruction.needs.retain(|need| *need != transfer);
    }
    let found = check(&program, &shape).expect_err("a wait is missing");
    assert!(matches!(found, Mistake::MissingContribution { .. }), "{found}");
}

/// Gathers may end in the next step, but not after a segment has read the bucket.
#[test]
fn a_gather_that_nobody_waits_for() {
    let shape = sharded(3);
    let mut program = Program::overlapped(&shape);
    let transfer = program.carried[0];
    for instruction in &mut program.instructions {
        instruction.needs.retain(|need| *need != transfer);
    }
    let found = check(&program, &shape).expect_err("a wait is missing");
    assert!(matches!(found, Mistake::TakenUnderWay { transfer: t, .. } if t == transfer));
    let mut program = Program::overlapped(&shape);
    program.carried.retain(|carried| *carried != transfer);
    assert_eq!(check(&program, &shape), Err(Mistake::NotStarted { transfer }));
}

#[test]
fn values_that_are_freed_too_early_or_never() {
    let shape = one_rank(4, 2);
    let value = Value::Slot { micro: 1, slot: Slot::Residual(1) };
    let mut program = Program::overlapped(&shape);
    let all = &mut program.instructions;
    let writer = Act::Run(Task::Forward { micro: 1, segment: Segment::Attention(1) });
    all.iter_mut().for_each(|i| i.frees.retain(|freed| *freed != value));
    assert_eq!(check(&program, &shape), Err(Mistake::NeverFreed { value }));
    let writer = program.instructions.iter_mut().find(|i| i.act == writer).expect("there");
    writer.frees.push(value);
    let act = Act::Run(Task::Forward { micro: 1, segment: Segment::Merge(1) });
    assert_eq!(check(&program, &shape), Err(Mistake::TakenAfterFree { act, value }));
}

/// Bits: the contributions of a leaf come in the order of micro-batches.
#[test]
fn weight_gradients_out_of_order() {
    let segment = Segment::Attention(0);
    let (first, second) = (weight(0, segment, 0), weight(1, segment, 0));
    // The earlier one is put behind the later one.
    let late = |order: &mut Vec<Act>| {
        order.remove(at(order, first));
        order.insert(at(order, second) + 1, first);
    };
    assert_eq!(found(late), Mistake::OutOfOrder { act: first, after: second });
    // The embedding's: heads, MTP input, embedding of one micro-batch before those of the next.
    let (mtp, embed) = (weight(0, Segment::MtpInput(2), 0), weight(0, Segment::Embed, 0));
    let late = |order: &mut Vec<Act>| {
        order.remove(at(order, mtp));
        order.insert(at(order, embed) + 1, mtp);
    };
    assert_eq!(found(late), Mistake::OutOfOrder { act: mtp, after: embed });
}

#[test]
fn leaves_that_are_wrong_or_mixed() {
    let (right, wrong) = (weight(1, Segment::Attention(0), 0), weight(1, Segment::Attention(0), 1));
    let change = |order: &mut Vec<Act>| {
        let place = at(order, right);
        order[place] = wrong;
    };
    assert_eq!(found(change), Mistake::WrongLeaf { act: wrong, wanted: 0 });
    let right = Act::Run(Task::Loss { micro: 2, depth: 0, leaf: 1 });
    let wrong = Act::Run(Task::Loss { micro: 2, depth: 0, leaf: 0 });
    let change = |order: &mut Vec<Act>| {
        let place = at(order, right);
        order[place] = wrong;
    };
    assert_eq!(found(change), Mistake::WrongLeaf { act: wrong, wanted: 1 });

    // Leaves 1 and 2 use one accumulator: leaf 1 of a bucket must be folded before leaf 2 begins.
    let shape = one_rank(4, 4);
    let change = |order: &mut Vec<Act>| {
        let next = at(order, Act::Run(Task::Loss { micro: 2, depth: 0, leaf: 2 }));
        let bucket = shape.buckets.iter().position(|b| b.is_read_by(Segment::Head(0)));
        let fold = Act::Run(Task::FoldLeaf { bucket: bucket.expect("a head"), leaf: 1 });
        let place = at(order, fold);
        assert!(place < next);
        order.remove(place);
        order.insert(next, fold);
    };
    let found = check(&reordered(&shape, change), &shape).expect_err("leaves are mixed");
    assert!(matches!(found, Mistake::LeavesMixed { open: 1, .. }), "{found}");
}

#[test]
fn folds_before_the_last_contribution() {
    let fold = Act::Run(Task::FoldLeaf { bucket: 0, leaf: 0 });
    let early = |order: &mut Vec<Act>| {
        let place = at(order, fold);
        order.remove(place);
        order.insert(0, fold);
    };
    assert_eq!(found(early), Mistake::FoldOutOfPlace { act: fold });
    let (first, second) = (fold, Act::Run(Task::FoldLeaf { bucket: 0, leaf: 1 }));
    let found = found(|order| swap(order, first, second));
    assert_eq!(found, Mistake::FoldOutOfPlace { act: second });
}

#[test]
fn sums_norm_updates_and_gathers_out_of_place() {
    let shape = sharded(2);
    let found = |change: &dyn Fn(&mut Vec<Act>)| {
        check(&reordered(&shape, change), &shape).expect_err("a mistake was planted")
    };
    let earlier = |act: Act, before: Act| {
        move |order: &mut Vec<Act>| {
            order.remove(at(order, act));
            order.insert(at(order, before), act);
        }
    };
    let norm = Act::Run(Task::GradNorm);
    let reduce = Act::Start(Transfer::Reduce { bucket: 0 });
    let fold = Act::Run(Task::FoldLeaf { bucket: 0, leaf: 0 });
    assert_eq!(found(&earlier(reduce, fold)), Mistake::SumOutOfPlace { act: reduce });
    assert_eq!(found(&earlier(norm, reduce)), Mistake::NormTooEarly { bucket: 0 });
    let experts = shape.buckets.iter().position(|b| b.sources > 1).expect("experts");
    let merge = Act::Run(Task::MergeSources { bucket: experts });
    let reduce_experts = Act::Start(Transfer::Reduce { bucket: experts });
    let swapped = earlier(reduce_experts, merge);
    assert_eq!(found(&swapped), Mistake::SumOutOfPlace { act: reduce_experts });
    let update = Act::Run(Task::UpdateShard { bucket: 1 });
    assert_eq!(found(&earlier(update, norm)), Mistake::UpdateBeforeNorm { act: update });
    let gather = Act::Start(Transfer::Gather { bucket: 1 });
    assert_eq!(found(&earlier(gather, update)), Mistake::GatherOutOfPlace { bucket: 1 });
}

#[test]
fn a_forward_pass_after_the_update_of_its_weights() {
    let shape = one_rank(1, 1);
    let head = shape.buckets.iter().position(|b| b.is_read_by(Segment::Head(0)));
    let bucket = head.expect("a head");
    let (fold, norm) = (Task::FoldLeaf { bucket, leaf: 0 }, Act::Run(Task::GradNorm));
    let update = Act::Run(Task::UpdateShard { bucket });
    let change = |order: &mut Vec<Act>| {
        order.retain(|act| *act != norm && *act != update && *act != Act::Run(fold));
        order.splice(0..0, [norm, update]);
    };
    // The norm itself stands too early: nothing is complete.
    let found = check(&reordered(&shape, change), &shape).expect_err("a mistake was planted");
    assert!(matches!(found, Mistake::NormTooEarly { .. }), "{found}");
    let text = found.to_string();
    assert!(text.starts_with("the step program is wrong: GradNorm runs before"), "{text}");
}
