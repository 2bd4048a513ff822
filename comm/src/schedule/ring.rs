//! Ring reduce-scatter, all-gather, and their sum the all-reduce.
//!
//! Slice `s` starts at member `s + 1`, walks the ring adding each member's contribution, and ends at its owner `s`;
//! the all-gather walks on from there. Each member sends `(P-1)/P · n` elements per half, to one neighbour only.

use super::{Action, Part, Piece, Schedule, chunks};
use std::ops::Range;

/// Sum of all members' buffers, slice `s` on member `s`. `slices[s]` is the slice that member `s` owns.
pub fn reduce_scatter(member: usize, slices: &[Range<usize>], chunk: usize) -> Schedule {
    build(member, slices, chunk, reduce_part)
}

/// Slice `s` of member `s` to every member.
pub fn all_gather(member: usize, slices: &[Range<usize>], chunk: usize) -> Schedule {
    build(member, slices, chunk, gather_part)
}

/// Sum of all members' buffers on every member.
pub fn all_reduce(member: usize, slices: &[Range<usize>], chunk: usize) -> Schedule {
    build(member, slices, chunk, |member, members, owner| {
        let mut actions = reduce_part(member, members, owner);
        actions.extend(gather_part(member, members, owner));
        actions
    })
}

fn build(
    member: usize,
    slices: &[Range<usize>],
    chunk: usize,
    actions: impl Fn(usize, usize, usize) -> Vec<Action>,
) -> Schedule {
    let members = slices.len();
    let mut pieces: Vec<(usize, Piece)> = chunks(slices, chunk)
        .into_iter()
        .map(|c| {
            let distance = (member + members - c.slice + members - 1) % members;
            let round = (c.range.start - slices[c.slice].start) / chunk.max(1);
            let actions = actions(member, members, c.slice);
            (round * members + distance, Piece { index: c.index, range: c.range, actions })
        })
        .collect();
    // Begin with the slice that starts here, then those that reach this member one hop later each.
    pieces.sort_by_key(|(order, _)| *order);
    Schedule { pieces: pieces.into_iter().map(|(_, piece)| piece).collect() }
}

fn reduce_part(member: usize, members: usize, owner: usize) -> Vec<Action> {
    let (left, right) = ((member + members - 1) % members, (member + 1) % members);
    let distance = (member + members - owner + members - 1) % members;
    let mut actions = vec![Action::Begin];
    if distance > 0 {
        actions.push(Action::Add { from: left });
    }
    actions.push(if member == owner {
        Action::Finish
    } else {
        Action::Send { to: right, part: Part::Partial }
    });
    actions
}

fn gather_part(member: usize, members: usize, owner: usize) -> Vec<Action> {
    let (left, right) = ((member + members - 1) % members, (member + 1) % members);
    let mut actions = Vec::new();
    if member != owner {
        actions.push(Action::Copy { from: left });
    }
    if right != owner {
        actions.push(Action::Send { to: right, part: Part::Output });
    }
    actions
}
