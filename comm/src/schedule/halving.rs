//! Recursive halving over consecutive members, and recursive doubling: the canonical order of addition.
//!
//! Partner distance 1, 2, 4, ...: after step `k` a member holds the sum of its aligned block of `2^(k+1)` consecutive
//! members, so every element is added as one balanced binary tree over the members (Rabenseifner's volume, the tree's
//! order). The all-gather walks back ..., 4, 2, 1. Halving needs a power of two; doubling folds surplus members first
//! and is meant for small buffers, since it sends all of them in every step.

use super::{Action, Part, Piece, Schedule, chunks};
use std::ops::Range;

/// Sum of all members' buffers, `slices[s]` on member `s`. The number of members must be a power of two.
pub fn reduce_scatter(member: usize, slices: &[Range<usize>], chunk: usize) -> Schedule {
    build(member, slices, chunk, |owner, steps| reduce_part(member, owner, steps))
}

/// `slices[s]` of member `s` to every member. The number of members must be a power of two.
pub fn all_gather(member: usize, slices: &[Range<usize>], chunk: usize) -> Schedule {
    build(member, slices, chunk, |owner, steps| gather_part(member, owner, steps))
}

/// Sum of all members' buffers on every member. The number of members must be a power of two.
pub fn all_reduce(member: usize, slices: &[Range<usize>], chunk: usize) -> Schedule {
    build(member, slices, chunk, |owner, steps| {
        let mut actions = reduce_part(member, owner, steps);
        actions.extend(gather_part(member, owner, steps));
        actions
    })
}

/// Sum of all members' buffers on every member by exchanging whole buffers; any number of members.
pub fn doubling(member: usize, members: usize, elements: usize, chunk: usize) -> Schedule {
    let steps = members.ilog2();
    let core = 1usize << steps;
    let mut actions = vec![Action::Begin];
    if member >= core {
        actions.push(Action::Send { to: member - core, part: Part::Partial });
        actions.push(Action::Copy { from: member - core });
    } else {
        let folded = (member + core < members).then_some(member + core);
        actions.extend(folded.map(|from| Action::Add { from }));
        for step in 0..steps {
            let partner = member ^ (1 << step);
            actions.push(Action::Send { to: partner, part: Part::Partial });
            actions.push(Action::Add { from: partner });
        }
        actions.push(Action::Finish);
        actions.extend(folded.map(|to| Action::Send { to, part: Part::Output }));
    }
    let whole = 0..elements;
    let pieces = chunks(std::slice::from_ref(&whole), chunk)
        .into_iter()
        .map(|c| Piece { index: c.index, range: c.range, actions: actions.clone() })
        .collect();
    Schedule { pieces }
}

fn build(
    member: usize,
    slices: &[Range<usize>],
    chunk: usize,
    actions: impl Fn(usize, u32) -> Vec<Action>,
) -> Schedule {
    let members = slices.len();
    assert!(members.is_power_of_two(), "halving is chosen for powers of two only, not {members}");
    let steps = members.ilog2();
    let mut pieces: Vec<(usize, usize, Piece)> = chunks(slices, chunk)
        .into_iter()
        .map(|c| {
            let round = (c.range.start - slices[c.slice].start) / chunk.max(1);
            let meets = meets_at(member, c.slice, steps);
            let actions = actions(c.slice, steps);
            (round, meets as usize, Piece { index: c.index, range: c.range, actions })
        })
        .collect();
    // What leaves in the first exchange comes first.
    pieces.sort_by_key(|(round, meets, _)| (*round, *meets));
    Schedule { pieces: pieces.into_iter().map(|(_, _, piece)| piece).collect() }
}

/// The first step in which this member and the owner of a slice are on different sides; `steps` for its own slice.
fn meets_at(member: usize, owner: usize, steps: u32) -> u32 {
    (member ^ owner).trailing_zeros().min(steps)
}

fn reduce_part(member: usize, owner: usize, steps: u32) -> Vec<Action> {
    let meets = meets_at(member, owner, steps);
    let mut actions = vec![Action::Begin];
    actions.extend((0..meets).map(|step| Action::Add { from: member ^ (1 << step) }));
    actions.push(if meets == steps {
        Action::Finish
    } else {
        Action::Send { to: member ^ (1 << meets), part: Part::Partial }
    });
    actions
}

fn gather_part(member: usize, owner: usize, steps: u32) -> Vec<Action> {
    let meets = meets_at(member, owner, steps);
    let mut actions = Vec::new();
    if meets < steps {
        actions.push(Action::Copy { from: member ^ (1 << meets) });
    }
    actions.extend(
        (0..meets).rev().map(|step| Action::Send { to: member ^ (1 << step), part: Part::Output }),
    );
    actions
}
