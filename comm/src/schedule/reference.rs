//! The slow twin of every algorithm: the order of addition written down directly, and an interpreter that runs the
//! schedules of all members at once, one action at a time, in any order.
//!
//! The interpreter is generic over the value: with [`Term`] it yields the expression each element is, so a test can
//! state "this is the balanced tree" without a number; with `Vec<f32>` it yields the bits the engine must reproduce.

use super::double_tree::Links;
use super::{Action, Part, Schedule};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// An expression over the members' contributions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// The contribution of one member.
    Leaf(usize),
    /// Left operand plus right operand.
    Sum(Box<Term>, Box<Term>),
}

impl Term {
    /// `left + right`.
    pub fn sum(left: Term, right: Term) -> Term {
        Term::Sum(Box::new(left), Box::new(right))
    }

    /// The same expression with the smaller first member on the left of every sum. Addition of two numbers commutes
    /// bit for bit, so two expressions with the same normal form give the same bits.
    pub fn normal(self) -> Term {
        match self {
            Term::Leaf(_) => self,
            Term::Sum(a, b) => {
                let (a, b) = (a.normal(), b.normal());
                if a.least() <= b.least() { Term::sum(a, b) } else { Term::sum(b, a) }
            }
        }
    }

    fn least(&self) -> usize {
        match self {
            Term::Leaf(member) => *member,
            Term::Sum(a, b) => a.least().min(b.least()),
        }
    }
}

/// The ring's order for the slice of `owner`: members `owner + 1, owner + 2, ..., owner`, each adding its own to what
/// came.
pub fn ring_order(owner: usize, members: usize) -> Term {
    (2..=members).fold(Term::Leaf((owner + 1) % members), |sum, step| {
        Term::sum(Term::Leaf((owner + step) % members), sum)
    })
}

/// The balanced binary tree over consecutive members: the canonical order.
pub fn balanced_order(members: Range<usize>) -> Term {
    if members.len() == 1 {
        return Term::Leaf(members.start);
    }
    let middle = members.start + members.len() / 2;
    Term::sum(balanced_order(members.start..middle), balanced_order(middle..members.end))
}

/// The order of one binary tree below `member`: its own, then each child in order.
pub fn tree_order(member: usize, links: &dyn Fn(usize) -> Links) -> Term {
    links(member)
        .children
        .into_iter()
        .fold(Term::Leaf(member), |sum, child| Term::sum(sum, tree_order(child, links)))
}

/// What every member holds at the end, per piece index, or the members that can go no further.
pub type Outcome<V> = Result<Vec<BTreeMap<u32, V>>, Vec<usize>>;

/// Runs all schedules to the end. `contribution(member, range)` is what a member puts in; `pick(n)` chooses which of
/// `n` runnable (member, piece) pairs moves next, so a caller can try every interleaving.
pub fn simulate<V: Clone>(
    schedules: &[Schedule],
    contribution: impl Fn(usize, &Range<usize>) -> V,
    add: impl Fn(V, V) -> V,
    mut pick: impl FnMut(usize) -> usize,
) -> Outcome<V> {
    let mut wire: HashMap<(usize, usize, u32, bool), V> = HashMap::new();
    let mut held: Vec<BTreeMap<u32, V>> = vec![BTreeMap::new(); schedules.len()];
    // (member, piece, next action) of everything unfinished.
    let mut open: Vec<(usize, usize, usize)> = Vec::new();
    for (member, schedule) in schedules.iter().enumerate() {
        open.extend((0..schedule.pieces.len()).map(|piece| (member, piece, 0)));
    }
    while !open.is_empty() {
        let runnable: Vec<usize> = (0..open.len())
            .filter(|&i| {
                let (member, piece, next) = open[i];
                let piece = &schedules[member].pieces[piece];
                match piece.actions.get(next) {
                    Some(Action::Add { from }) => {
                        wire.contains_key(&(*from, member, piece.index, true))
                    }
                    Some(Action::Copy { from }) => {
                        wire.contains_key(&(*from, member, piece.index, false))
                    }
                    _ => true,
                }
            })
            .collect();
        if runnable.is_empty() {
            return Err(open.iter().map(|(member, ..)| *member).collect());
        }
        let chosen = runnable[pick(runnable.len())];
        let (member, at, next) = open[chosen];
        let piece = &schedules[member].pieces[at];
        let Some(action) = piece.actions.get(next) else {
            open.swap_remove(chosen);
            continue;
        };
        let own = || contribution(member, &piece.range);
        let mine = &mut held[member];
        match *action {
            Action::Begin => {
                mine.insert(piece.index, own());
            }
            Action::Send { to, part } => {
                let value = if part == Part::Input { own() } else { mine[&piece.index].clone() };
                let key = (member, to, piece.index, part == Part::Partial);
                assert!(wire.insert(key, value).is_none(), "{key:?} sent twice");
            }
            Action::Add { from } => {
                let came = wire.remove(&(from, member, piece.index, true)).expect("is runnable");
                let sum = add(mine[&piece.index].clone(), came);
                mine.insert(piece.index, sum);
            }
            Action::Copy { from } => {
                let came = wire.remove(&(from, member, piece.index, false)).expect("is runnable");
                mine.insert(piece.index, came);
            }
            Action::Finish => {}
        }
        open[chosen].2 += 1;
    }
    assert!(wire.is_empty(), "messages that nobody receives: {:?}", wire.keys());
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::super::{double_tree, even_slices, halving, ring};
    use super::*;

    const CHUNK: usize = 48;

    /// Runs the schedules symbolically in two different interleavings and returns the term per element range.
    fn terms(schedules: &[Schedule]) -> Vec<BTreeMap<u32, Term>> {
        let leaf = |member: usize, _: &Range<usize>| Term::Leaf(member);
        let first = simulate(schedules, leaf, Term::sum, |_| 0).expect("no member is stuck");
        let last = simulate(schedules, leaf, Term::sum, |n| n - 1).expect("no member is stuck");
        assert_eq!(first, last, "the outcome depends on the interleaving");
        first
    }

    fn slice_of(slices: &[Range<usize>], range: &Range<usize>) -> usize {
        slices.iter().position(|s| s.start <= range.start && range.end <= s.end).expect("inside")
    }

    fn all(members: usize, build: impl Fn(usize) -> Schedule) -> Vec<Schedule> {
        (0..members).map(build).collect()
    }

    #[test]
    fn ring_all_reduce_adds_in_ring_order_for_1_to_33_members() {
        for members in 1..=33 {
            for elements in [0, 49, 33 * 16 + 1] {
                let slices = even_slices(elements, members);
                let schedules = all(members, |m| ring::all_reduce(m, &slices, CHUNK));
                let held = terms(&schedules);
                for (schedule, held) in schedules.iter().zip(&held) {
                    let covered: usize = schedule.pieces.iter().map(|p| p.range.len()).sum();
                    assert_eq!(covered, elements);
                    for piece in &schedule.pieces {
                        let owner = slice_of(&slices, &piece.range);
                        assert_eq!(held[&piece.index], ring_order(owner, members));
                    }
                }
            }
        }
    }

    #[test]
    fn ring_halves_compose_to_the_all_reduce() {
        for members in [2, 3, 5, 8] {
            let slices = even_slices(500, members);
            let scatter = all(members, |m| ring::reduce_scatter(m, &slices, CHUNK));
            let held = terms(&scatter);
            for (member, schedule) in scatter.iter().enumerate() {
                for piece in &schedule.pieces {
                    if slice_of(&slices, &piece.range) == member {
                        assert_eq!(held[member][&piece.index], ring_order(member, members));
                    }
                }
            }
        }
    }

    #[test]
    fn halving_and_doubling_add_as_the_balanced_tree() {
        for members in [1, 2, 4, 8, 16, 32] {
            let slices = even_slices(1000, members);
            let canonical = balanced_order(0..members);
            for schedules in [
                all(members, |m| halving::all_reduce(m, &slices, CHUNK)),
                all(members, |m| halving::doubling(m, members, 1000, CHUNK)),
            ] {
                for (member, held) in terms(&schedules).into_iter().enumerate() {
                    for (_, term) in held {
                        assert_eq!(term.normal(), canonical, "member {member} of {members}");
                    }
                }
            }
        }
    }

    #[test]
    fn doubling_gives_one_term_on_all_members_of_any_number() {
        for members in 1..=33 {
            let schedules = all(members, |m| halving::doubling(m, members, 100, CHUNK));
            let held: Vec<_> = terms(&schedules)
                .into_iter()
                .map(|h| h.into_iter().map(|(i, t)| (i, t.normal())).collect::<Vec<_>>())
                .collect();
            assert!(held.windows(2).all(|pair| pair[0] == pair[1]), "{members} members");
        }
    }

    #[test]
    fn double_tree_adds_own_then_children() {
        for members in 1..=33 {
            for elements in [1, 31, 32, 33, 300] {
                let slices = even_slices(elements, members);
                let schedules =
                    all(members, |m| double_tree::all_reduce(m, members, &slices, CHUNK));
                let first = |m| double_tree::first_tree(m, members);
                let second = |m| double_tree::second_tree(m, members);
                let root = (0..members).find(|&m| second(m).parent.is_none()).expect("has a root");
                let half = (elements / 2).next_multiple_of(super::super::ALIGN).min(elements);
                let held = terms(&schedules);
                for (schedule, held) in schedules.iter().zip(held) {
                    for piece in &schedule.pieces {
                        let expected = if piece.range.start < half {
                            tree_order(0, &first)
                        } else {
                            tree_order(root, &second)
                        };
                        assert_eq!(held[&piece.index], expected);
                    }
                }
            }
        }
    }

    #[test]
    fn trees_are_consistent_and_shallow() {
        for members in 2..=256 {
            let mut interior = vec![0; members];
            for links in [double_tree::first_tree, double_tree::second_tree] {
                let mut roots = 0;
                for (member, interior) in interior.iter_mut().enumerate() {
                    let own = links(member, members);
                    roots += usize::from(own.parent.is_none());
                    *interior += usize::from(!own.children.is_empty());
                    for child in own.children {
                        assert_eq!(links(child, members).parent, Some(member));
                    }
                }
                assert_eq!(roots, 1);
            }
            let both: Vec<usize> = (0..members).filter(|&m| interior[m] == 2).collect();
            let expected: &[usize] = if members % 2 == 1 { &[0] } else { &[] };
            assert_eq!(both, expected, "{members} members");
        }
    }

    #[test]
    fn tree_of_eight_is_the_published_example() {
        let parents: Vec<_> = (0..8).map(|m| double_tree::first_tree(m, 8).parent).collect();
        let second: Vec<_> = (0..8).map(|m| double_tree::second_tree(m, 8).parent).collect();
        assert_eq!(parents, [None, Some(2), Some(4), Some(2), Some(0), Some(6), Some(4), Some(6)]);
        assert_eq!(second, [Some(1), Some(3), Some(1), Some(7), Some(5), Some(3), Some(5), None]);
    }

    #[test]
    fn volumes_are_those_of_the_documentation() {
        let (members, elements) = (8, 8 * 16 * 10);
        let slices = even_slices(elements, members);
        for member in 0..members {
            let share = elements / members;
            let ring = ring::all_reduce(member, &slices, CHUNK).volume();
            let halving = halving::all_reduce(member, &slices, CHUNK).volume();
            let tree = double_tree::all_reduce(member, members, &slices, CHUNK).volume();
            assert_eq!(ring, (2 * 7 * share, 2 * 7 * share));
            assert_eq!(halving, ring);
            assert!(tree.0 <= 2 * elements && tree.1 <= 2 * elements, "{tree:?}");
        }
    }

    #[test]
    fn broadcast_and_reduce_reach_every_root() {
        for members in 1..=17 {
            for root in 0..members {
                let leaf = |member: usize, _: &Range<usize>| Term::Leaf(member);
                let schedules = all(members, |m| double_tree::reduce(m, members, root, 100, CHUNK));
                let held = simulate(&schedules, leaf, Term::sum, |_| 0).expect("not stuck");
                let links = |m: usize| {
                    let own = double_tree::first_tree((m + members - root) % members, members);
                    let back = |m: usize| (m + root) % members;
                    Links {
                        parent: own.parent.map(back),
                        children: own.children.into_iter().map(back).collect(),
                    }
                };
                assert!(held[root].values().all(|term| *term == tree_order(root, &links)));
            }
        }
    }
}
