//! The double binary tree (Fire-Flyer section IV-A, Algorithm 2; Sanders, Speck and Traeff), and single-tree broadcast
//! and reduce.
//!
//! Two trees carry half of the data each, and a member that is interior in one is a leaf in the other. Reduce up and
//! broadcast down run at the same time; the root of each tree turns the data round. Each member sends and receives at
//! most `2n` elements. Construction as in NCCL's `trees.cc`: see docs/collectives.md.
//!
//! For an odd number of members, member 0 is interior in both trees: that is a property of the construction.

use super::{ALIGN, Action, Part, Piece, Schedule, chunks};
use std::ops::Range;

/// Neighbours of one member in one tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// Where partial sums go; `None` at the root.
    pub parent: Option<usize>,
    /// Where partial sums come from, in the order in which they are added.
    pub children: Vec<usize>,
}

/// Links of `member` in the first tree of `members`.
pub fn first_tree(member: usize, members: usize) -> Links {
    let bit =
        if member == 0 { members.next_power_of_two() } else { member & member.wrapping_neg() };
    if member == 0 {
        let child = bit >> 1;
        return Links { parent: None, children: if child > 0 { vec![child] } else { vec![] } };
    }
    let up = (member ^ bit) | (bit << 1);
    let parent = Some(if up >= members { member ^ bit } else { up });
    let mut low = bit >> 1;
    let mut children = Vec::new();
    if low > 0 {
        children.push(member - low);
        while low > 0 && member + low >= members {
            low >>= 1;
        }
        if low > 0 {
            children.push(member + low);
        }
    }
    Links { parent, children }
}

/// Links of `member` in the second tree: the first one mirrored (even) or shifted by one (odd number of members).
pub fn second_tree(member: usize, members: usize) -> Links {
    let mirror = members.is_multiple_of(2);
    let there = |m: usize| if mirror { members - 1 - m } else { (m + members - 1) % members };
    let back = |m: usize| if mirror { members - 1 - m } else { (m + 1) % members };
    let links = first_tree(there(member), members);
    Links {
        parent: links.parent.map(back),
        children: links.children.into_iter().map(back).collect(),
    }
}

/// Sum of all members' buffers on every member. The first tree carries the first half of the elements of `slices`
/// taken together, the second tree the rest: a function of the buffer's own length, never of its chunks.
pub fn all_reduce(
    member: usize,
    members: usize,
    slices: &[Range<usize>],
    chunk: usize,
) -> Schedule {
    let (first, second) = halves(slices);
    let parts = [(first, first_tree(member, members)), (second, second_tree(member, members))];
    // Chunk indices count over both halves in the same way on every member.
    let mut index = 0;
    let mut lists: [Vec<Piece>; 2] = [Vec::new(), Vec::new()];
    for ((slices, links), list) in parts.iter().zip(&mut lists) {
        for slice in slices {
            for c in chunks(std::slice::from_ref(slice), chunk) {
                list.push(Piece { index, range: c.range, actions: up_and_down(links) });
                index += 1;
            }
        }
    }
    let [first, second] = lists;
    Schedule { pieces: interleave(first, second) }
}

/// The root's buffer to every member, along the first tree relabelled so that `root` is its root.
pub fn broadcast(
    member: usize,
    members: usize,
    root: usize,
    elements: usize,
    chunk: usize,
) -> Schedule {
    let links = rooted(member, members, root);
    let mut actions: Vec<Action> =
        links.parent.map(|from| Action::Copy { from }).into_iter().collect();
    actions.extend(links.children.iter().map(|&to| Action::Send { to, part: Part::Output }));
    whole(elements, chunk, &actions)
}

/// Sum of all members' buffers on the root, along the first tree relabelled so that `root` is its root.
pub fn reduce(
    member: usize,
    members: usize,
    root: usize,
    elements: usize,
    chunk: usize,
) -> Schedule {
    let links = rooted(member, members, root);
    whole(elements, chunk, &up(&links))
}

fn rooted(member: usize, members: usize, root: usize) -> Links {
    let links = first_tree((member + members - root) % members, members);
    let back = |m: usize| (m + root) % members;
    Links {
        parent: links.parent.map(back),
        children: links.children.into_iter().map(back).collect(),
    }
}

fn whole(elements: usize, chunk: usize, actions: &[Action]) -> Schedule {
    let whole = 0..elements;
    let pieces = chunks(std::slice::from_ref(&whole), chunk)
        .into_iter()
        .map(|c| Piece { index: c.index, range: c.range, actions: actions.to_vec() })
        .collect();
    Schedule { pieces }
}

fn up(links: &Links) -> Vec<Action> {
    let mut actions = vec![Action::Begin];
    actions.extend(links.children.iter().map(|&from| Action::Add { from }));
    actions.push(match links.parent {
        Some(to) => Action::Send { to, part: Part::Partial },
        None => Action::Finish,
    });
    actions
}

fn up_and_down(links: &Links) -> Vec<Action> {
    let mut actions = up(links);
    actions.extend(links.parent.map(|from| Action::Copy { from }));
    actions.extend(links.children.iter().map(|&to| Action::Send { to, part: Part::Output }));
    actions
}

/// Splits the elements of `slices`, taken in order, at the [`ALIGN`]ed middle.
fn halves(slices: &[Range<usize>]) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let total: usize = slices.iter().map(Range::len).sum();
    let mut left = (total / 2).next_multiple_of(ALIGN).min(total);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for slice in slices {
        let cut = slice.start + left.min(slice.len());
        left -= cut - slice.start;
        first.push(slice.start..cut);
        second.push(cut..slice.end);
    }
    (first, second)
}

fn interleave(first: Vec<Piece>, second: Vec<Piece>) -> Vec<Piece> {
    let (mut a, mut b) = (first.into_iter(), second.into_iter());
    let mut out = Vec::new();
    loop {
        let pair = (a.next(), b.next());
        if pair == (None, None) {
            return out;
        }
        out.extend(pair.0);
        out.extend(pair.1);
    }
}
