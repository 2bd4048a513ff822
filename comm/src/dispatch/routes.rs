//! Which row goes where: pure, made from the experts that tokens chose and the table of everybody's counts.

use super::Padding;
use crate::error::{Error, Result};
use std::ops::Range;

/// Sizes that all members share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) members: usize,
    pub(super) me: usize,
    /// Experts of each member: member `m` owns experts `m * owned .. (m + 1) * owned`.
    pub(super) owned: usize,
    pub(super) padding: Padding,
}

/// The result of the count exchange: where every row of this member comes from and goes to. Rows that this member
/// receives stand by (local expert, source member, order at the source), with the padding of
/// [`super::Options::padding`].
#[derive(Debug)]
pub struct Routes {
    pub(super) shape: Shape,
    tokens: usize,
    slots: usize,
    /// `[source][expert]`: rows that each member sends to each expert.
    counts: Vec<u32>,
    /// This member's choices, sorted by expert, ties in order of (token, slot): the order in which rows leave and
    /// come home.
    pub(super) order: Vec<u32>,
    /// `[expert]`: where the expert's rows begin in `order`.
    leaving: Vec<usize>,
    /// `[local expert][source]`: first row of the block.
    starts: Vec<usize>,
    /// `[local experts + 1]`: first row of each expert, padding included.
    offsets: Vec<usize>,
}

/// How many of `chosen` (expert of each choice) go to each of `experts`.
///
/// # Errors
/// When a choice is no expert.
pub(super) fn count(chosen: &[u32], experts: usize) -> Result<Vec<u32>> {
    let mut counts = vec![0u32; experts];
    for &expert in chosen {
        let count = counts
            .get_mut(expert as usize)
            .ok_or_else(|| Error::Invalid(format!("a token chose expert {expert} of {experts}")))?;
        *count += 1;
    }
    Ok(counts)
}

impl Routes {
    /// `chosen` is `[tokens, slots]`, flat; `counts` is the table of all members, `[members, experts]`.
    pub(super) fn new(shape: Shape, chosen: &[u32], slots: usize, counts: Vec<u32>) -> Self {
        let experts = shape.members * shape.owned;
        let mut leaving = vec![0; experts];
        let own = &counts[shape.me * experts..][..experts];
        for expert in 1..experts {
            leaving[expert] = leaving[expert - 1] + own[expert - 1] as usize;
        }
        let (mut next, mut order) = (leaving.clone(), vec![0; chosen.len()]);
        for (choice, &expert) in (0u32..).zip(chosen) {
            order[next[expert as usize]] = choice;
            next[expert as usize] += 1;
        }
        let (mut starts, mut offsets, mut at) = (Vec::new(), vec![0], 0usize);
        for local in 0..shape.owned {
            for source in 0..shape.members {
                starts.push(at);
                at += counts[source * experts + shape.me * shape.owned + local] as usize;
                if let Padding::Blocks(rows) = shape.padding {
                    at = at.next_multiple_of(rows);
                }
            }
            if let Padding::Experts(rows) = shape.padding {
                at = at.next_multiple_of(rows);
            }
            offsets.push(at);
        }
        let tokens = chosen.len() / slots;
        Self { shape, tokens, slots, counts, order, leaving, starts, offsets }
    }

    /// Tokens of this member.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Experts that each token chose.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Rows that this member receives, padding included.
    pub fn rows(&self) -> usize {
        self.offsets[self.shape.owned]
    }

    /// Rows of a local expert (0 is the first that this member owns), padding included.
    pub fn expert_rows(&self, local: usize) -> Range<usize> {
        self.offsets[local]..self.offsets[local + 1]
    }

    /// Rows of a local expert that come from one member, padding not included.
    pub fn block(&self, local: usize, source: usize) -> Range<usize> {
        let start = self.starts[local * self.shape.members + source];
        let expert = self.shape.me * self.shape.owned + local;
        start..start + self.count(source, expert)
    }

    /// Rows that a member sends to an expert, any of all members' experts.
    pub fn count(&self, source: usize, expert: usize) -> usize {
        self.counts[source * self.experts() + expert] as usize
    }

    /// Rows that an expert receives from all members.
    pub fn load(&self, expert: usize) -> usize {
        (0..self.shape.members).map(|source| self.count(source, expert)).sum()
    }

    /// Experts of all members.
    pub fn experts(&self) -> usize {
        self.shape.members * self.shape.owned
    }

    /// Positions in `order` of the rows that go to an expert.
    pub(super) fn leaving(&self, expert: usize) -> Range<usize> {
        let start = self.leaving[expert];
        start..start + self.count(self.shape.me, expert)
    }

    /// Experts of a member.
    pub(super) fn owned(&self, member: usize) -> Range<usize> {
        member * self.shape.owned..(member + 1) * self.shape.owned
    }

    /// Positions in `order`, as bytes, of the rows that go to each member.
    pub(super) fn leaving_bytes(&self, row_bytes: usize) -> Vec<Vec<Range<usize>>> {
        let to = |member| self.owned(member).map(|e| bytes(self.leaving(e), row_bytes)).collect();
        (0..self.shape.members).map(to).collect()
    }

    /// Received rows, as bytes, that come from each member.
    pub(super) fn block_bytes(&self, row_bytes: usize) -> Vec<Vec<Range<usize>>> {
        (0..self.shape.members).map(|source| self.blocks_from(source, row_bytes)).collect()
    }

    /// Received rows, as bytes, that come from one member, by expert.
    pub(super) fn blocks_from(&self, source: usize, row_bytes: usize) -> Vec<Range<usize>> {
        (0..self.shape.owned).map(|local| bytes(self.block(local, source), row_bytes)).collect()
    }

    /// Zeroes the padding rows of a received buffer.
    pub(super) fn zero_padding(&self, rows: &mut [u8], row_bytes: usize) {
        let mut at = 0;
        for local in 0..self.shape.owned {
            for source in 0..self.shape.members {
                let block = bytes(self.block(local, source), row_bytes);
                rows[at..block.start].fill(0);
                at = block.end;
            }
        }
        rows[at..].fill(0);
    }
}

/// A range of rows in bytes.
pub(super) fn bytes(rows: Range<usize>, row_bytes: usize) -> Range<usize> {
    rows.start * row_bytes..rows.end * row_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(padding: Padding) -> Shape {
        Shape { members: 2, me: 1, owned: 2, padding }
    }

    #[test]
    fn rows_stand_by_expert_source_and_order() {
        // Member 0 sends 3, 0, 1, 2 rows to experts 0..4; this one chose as below.
        let chosen = [3, 0, 2, 3, 1, 2];
        let counts = [vec![3, 0, 1, 2], count(&chosen, 4).expect("all are experts")].concat();
        let routes = Routes::new(shape(Padding::Experts(4)), &chosen, 2, counts.clone());
        assert_eq!((routes.tokens(), routes.rows()), (3, 8));
        assert_eq!(routes.order, [1, 4, 2, 5, 0, 3]);
        assert_eq!([routes.block(0, 0), routes.block(0, 1)], [0..1, 1..3]);
        assert_eq!([routes.block(1, 0), routes.block(1, 1)], [4..6, 6..8]);
        assert_eq!(routes.expert_rows(1), 4..8);
        assert_eq!(routes.load(3), 4);
        let routes = Routes::new(shape(Padding::Blocks(4)), &chosen, 2, counts);
        assert_eq!([routes.block(0, 1), routes.block(1, 0)], [4..6, 8..10]);
        let mut rows = vec![9u8; routes.rows()];
        routes.zero_padding(&mut rows, 1);
        assert_eq!(rows, [9, 0, 0, 0, 9, 9, 0, 0, 9, 9, 0, 0, 9, 9, 0, 0]);
    }

    #[test]
    fn a_choice_beyond_the_experts_is_refused() {
        assert!(matches!(count(&[4], 4), Err(Error::Invalid(_))));
    }
}
