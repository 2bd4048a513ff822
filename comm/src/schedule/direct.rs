//! Direct exchanges: all-to-all-v, send and receive, and the chain broadcast.

use super::{Action, Part, Piece, Schedule, chunks};
use std::ops::Range;

/// Sends the ranges `input[to]`, in order, to each member, which writes them into its ranges `output[from]`; in
/// elements, possibly empty. Both sides list ranges of the same lengths. The part for itself is not in the schedule: the
/// caller copies it.
///
/// Pieces are ordered by distance `+1, +2, ...` for sends and `-1, -2, ...` for receives, so that at any moment the
/// members talk in disjoint pairs instead of all to member 0.
pub fn all_to_all(
    member: usize,
    input: &[Vec<Range<usize>>],
    output: &[Vec<Range<usize>>],
    chunk: usize,
) -> Schedule {
    let members = input.len();
    let mut pieces = Vec::new();
    for distance in 1..members {
        let to = (member + distance) % members;
        let from = (member + members - distance) % members;
        let send = Action::Send { to, part: Part::Input };
        pieces.extend(one_way(&input[to], chunk, send));
        pieces.extend(one_way(&output[from], chunk, Action::Copy { from }));
    }
    Schedule { pieces }
}

/// One message from this member to `to`.
pub fn send(to: usize, elements: usize, chunk: usize) -> Schedule {
    let send = Action::Send { to, part: Part::Input };
    Schedule { pieces: one_way(std::slice::from_ref(&(0..elements)), chunk, send) }
}

/// One message from `from` to this member.
pub fn receive(from: usize, elements: usize, chunk: usize) -> Schedule {
    let copy = Action::Copy { from };
    Schedule { pieces: one_way(std::slice::from_ref(&(0..elements)), chunk, copy) }
}

/// The root's buffer to every member, each passing pieces on to the next: `n` elements per link whatever the number of
/// members, so the best choice for large buffers.
pub fn chain_broadcast(
    member: usize,
    members: usize,
    root: usize,
    elements: usize,
    chunk: usize,
) -> Schedule {
    let mut actions = Vec::new();
    if member != root {
        actions.push(Action::Copy { from: (member + members - 1) % members });
    }
    let next = (member + 1) % members;
    if next != root {
        actions.push(Action::Send { to: next, part: Part::Output });
    }
    let whole = 0..elements;
    let pieces = chunks(std::slice::from_ref(&whole), chunk)
        .into_iter()
        .map(|c| Piece { index: c.index, range: c.range, actions: actions.clone() })
        .collect();
    Schedule { pieces }
}

/// The ranges one after the other, each cut by itself: both ends number the pieces alike.
fn one_way(ranges: &[Range<usize>], chunk: usize, action: Action) -> Vec<Piece> {
    let cut = |range: &Range<usize>| chunks(std::slice::from_ref(range), chunk);
    (0..)
        .zip(ranges.iter().flat_map(cut))
        .map(|(index, c)| Piece { index, range: c.range, actions: vec![action] })
        .collect()
}
