//! One copy of a token per node: who forwards for whom, and the lists by which forwarders fan rows out. Pure.
//!
//! A member sends the tokens that any expert of a node wants once, to the member of that node with its own index inside
//! the node (modulo the node's size), and that member copies them to the experts' owners through shared memory.

use super::routes::{Routes, bytes};
use std::ops::Range;

/// Members by node.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// Members of each node, ascending; nodes in order of their first member.
    pub(super) by_node: Vec<Vec<usize>>,
    /// Node of each member, as an index into `by_node`.
    pub(super) node_of: Vec<usize>,
    /// Index of each member inside its node.
    index: Vec<usize>,
}

impl Places {
    /// `nodes`: any number for each member's node.
    pub(super) fn new(nodes: &[u32]) -> Self {
        let mut seen: Vec<u32> = Vec::new();
        let mut places = Self { by_node: Vec::new(), node_of: Vec::new(), index: Vec::new() };
        for (member, number) in nodes.iter().enumerate() {
            let node = seen.iter().position(|other| other == number).unwrap_or_else(|| {
                seen.push(*number);
                places.by_node.push(Vec::new());
                seen.len() - 1
            });
            places.node_of.push(node);
            places.index.push(places.by_node[node].len());
            places.by_node[node].push(member);
        }
        places
    }

    /// The member of `node` that fans out what `source` sends there.
    pub(super) fn forwarder(&self, source: usize, node: usize) -> usize {
        let members = &self.by_node[node];
        if self.node_of[source] == node {
            source
        } else {
            members[self.index[source] % members.len()]
        }
    }

    /// Members for whom this one fans out inside its node, itself included, ascending.
    pub(super) fn sources(&self, member: usize) -> impl Iterator<Item = usize> + '_ {
        let node = self.node_of[member];
        (0..self.node_of.len()).filter(move |&source| self.forwarder(source, node) == member)
    }
}

/// Tokens that some expert of each node chose, ascending; none for `own`, whose experts are reached directly.
pub(super) fn leaving(routes: &Routes, places: &Places, own: usize) -> Vec<Vec<u32>> {
    let tokens_for = |(node, members): (usize, &Vec<usize>)| {
        if node == own {
            return Vec::new();
        }
        let mut tokens: Vec<u32> = members
            .iter()
            .flat_map(|&member| routes.owned(member))
            .flat_map(|expert| &routes.order[routes.leaving(expert)])
            .map(|choice| token_of(*choice, routes.slots()))
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    places.by_node.iter().enumerate().map(tokens_for).collect()
}

/// For one node: the position in its list of leaving tokens of every row, by (member of the node, expert, row).
pub(super) fn positions(routes: &Routes, members: &[usize], leaving: &[u32]) -> Vec<u32> {
    let mut position = vec![0u32; routes.tokens()];
    for (at, token) in (0u32..).zip(leaving) {
        position[*token as usize] = at;
    }
    members
        .iter()
        .flat_map(|&member| routes.owned(member))
        .flat_map(|expert| &routes.order[routes.leaving(expert)])
        .map(|choice| position[token_of(*choice, routes.slots()) as usize])
        .collect()
}

/// The token of a choice.
pub(super) fn token_of(choice: u32, slots: usize) -> u32 {
    choice / u32::try_from(slots).expect("fewer slots than choices")
}

/// A member for whom this one forwards.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) member: usize,
    /// Tokens that it sends here.
    pub(super) tokens: usize,
    /// See [`positions`].
    pub(super) positions: Vec<u32>,
}

/// What this member does for one routing, beyond [`Routes`].
#[derive(Debug)]
pub(super) struct Hops {
    /// Own tokens that leave for each node.
    pub(super) leaving: Vec<Vec<u32>>,
    /// Other nodes' members, ascending.
    pub(super) sources: Vec<Source>,
}

impl Hops {
    /// Bytes of the buffer of forwarded tokens that come from each member, and their sum.
    pub(super) fn incoming(
        &self,
        members: usize,
        row_bytes: usize,
    ) -> (Vec<Vec<Range<usize>>>, usize) {
        let (mut ranges, mut at) = (vec![Vec::new(); members], 0);
        for source in &self.sources {
            let end = at + source.tokens;
            ranges[source.member].push(bytes(at..end, row_bytes));
            at = end;
        }
        (ranges, at * row_bytes)
    }

    /// Bytes of the buffer of leaving tokens that go to each member, and their sum.
    pub(super) fn outgoing(
        &self,
        places: &Places,
        me: usize,
        row_bytes: usize,
    ) -> (Vec<Vec<Range<usize>>>, usize) {
        let (mut ranges, mut at) = (vec![Vec::new(); places.node_of.len()], 0);
        for (node, tokens) in self.leaving.iter().enumerate() {
            let end = at + tokens.len();
            if !tokens.is_empty() {
                ranges[places.forwarder(me, node)].push(bytes(at..end, row_bytes));
            }
            at = end;
        }
        (ranges, at * row_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_one_forwarder_on_every_node() {
        let places = Places::new(&[7, 7, 7, 2, 2]);
        assert_eq!(places.by_node, [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!((0..5).map(|s| places.forwarder(s, 1)).collect::<Vec<_>>(), [3, 4, 3, 3, 4]);
        assert_eq!((0..5).map(|s| places.forwarder(s, 0)).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
        assert_eq!(places.sources(3).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(places.sources(1).collect::<Vec<_>>(), [1, 4]);
    }
}
