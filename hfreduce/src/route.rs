//! Which elements one local rank works on in a collective, piece by piece: what it reads, what it writes, and in whose
//! buckets these elements lie. Pure.
//!
//! Inside a node, local rank `i` is the *owner* of its shard, between nodes of its whole column (see `topology.rs`). A
//! piece is a run of elements that fits a chunk of the staging. The *input* pieces of an owner are read from the buckets
//! of its node, the *output* pieces are written to them; what lies between is `operation.rs`.

use lampyris_comm::Kind;
use std::ops::Range;

/// What a reducer does with a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collective {
    /// The sum of all buckets, in all of them.
    AllReduce,
    /// The sum of all buckets, each shard in its rank's bucket.
    ReduceScatter,
    /// Each shard of its rank's bucket, in all buckets.
    Gather,
}

impl Collective {
    /// The same between nodes.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::AllReduce => Kind::AllReduce,
            Self::ReduceScatter => Kind::ReduceScatter,
            Self::Gather => Kind::AllGather,
        }
    }

    /// Whether elements are added; otherwise they are moved as they are.
    pub(crate) fn adds(self) -> bool {
        self != Self::Gather
    }

    /// Whose buckets an owner reads.
    fn reads(self) -> Buckets {
        if self.adds() { Buckets::All } else { Buckets::Owner }
    }

    /// Whose buckets get elements of the owner's own shard.
    fn writes(self) -> Buckets {
        match self {
            Self::AllReduce => Buckets::All,
            Self::ReduceScatter => Buckets::Owner,
            // The owner's bucket holds them already.
            Self::Gather => Buckets::Others,
        }
    }
}

/// Buckets of a node, seen by the owner of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Buckets {
    /// Those of all local ranks.
    All,
    /// The owner's.
    Owner,
    /// Those of all local ranks but the owner.
    Others,
}

impl Buckets {
    /// Whether the bucket of local rank `rank` is one of them.
    pub(crate) fn include(self, rank: usize, owner: usize) -> bool {
        match self {
            Self::All => true,
            Self::Owner => rank == owner,
            Self::Others => rank != owner,
        }
    }
}

/// A run of elements that one local rank reads or writes at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its elements.
    pub(crate) range: Range<usize>,
    /// The buckets that it is read from or written to.
    pub(crate) buckets: Buckets,
}

/// The pieces of one collective on one node, by owner, in the order in which the owner works on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// What owners read.
    pub(crate) input: Vec<Vec<Piece>>,
    /// What owners write.
    pub(crate) output: Vec<Vec<Piece>>,
}

impl Route {
    /// Within one node: every owner reads its shard in pieces of at most `most` elements and writes each of them at once.
    pub(crate) fn in_node(collective: Collective, shards: &[Range<usize>], most: usize) -> Self {
        let of = |buckets: Buckets| -> Vec<Vec<Piece>> {
            let cut = |shard| cut(shard, most).map(|range| Piece { range, buckets }).collect();
            shards.iter().map(cut).collect()
        };
        Self { input: of(collective.reads()), output: of(collective.writes()) }
    }

    /// Between nodes. `orders` has the pieces of each owner's column in the order in which its collective between nodes
    /// wants them; `shards` has each owner's own shard.
    ///
    /// `direct`: buckets lie in place. Gathered elements then leave from the bucket itself, and what comes from other
    /// nodes is written to all buckets by whoever receives it; neither is on the route.
    pub(crate) fn between_nodes(
        collective: Collective,
        orders: &[Vec<Range<usize>>],
        shards: &[Range<usize>],
        direct: bool,
    ) -> Self {
        let mut route = Self::default();
        for (order, shard) in orders.iter().zip(shards) {
            let is_own =
                |range: &&Range<usize>| shard.start <= range.start && range.end <= shard.end;
            let (own, foreign): (Vec<_>, Vec<_>) = order.iter().partition(is_own);
            let pieces = |ranges: &[&Range<usize>], buckets: Buckets| -> Vec<Piece> {
                ranges.iter().map(|range| Piece { range: (*range).clone(), buckets }).collect()
            };
            let all: Vec<&Range<usize>> = order.iter().collect();
            let (input, output) = match (collective, direct) {
                (Collective::AllReduce, false) => {
                    (pieces(&all, Buckets::All), pieces(&all, Buckets::All))
                }
                (Collective::ReduceScatter, false) => {
                    (pieces(&all, Buckets::All), pieces(&own, Buckets::Owner))
                }
                (Collective::AllReduce | Collective::ReduceScatter, true) => {
                    (pieces(&all, Buckets::All), Vec::new())
                }
                (Collective::Gather, true) => (Vec::new(), pieces(&own, Buckets::Others)),
                (Collective::Gather, false) => {
                    // What is here already goes first.
                    let mut output = pieces(&own, Buckets::Others);
                    output.extend(pieces(&foreign, Buckets::All));
                    (pieces(&own, Buckets::Owner), output)
                }
            };
            route.input.push(input);
            route.output.push(output);
        }
        route
    }
}

fn cut(range: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    assert!(most > 0, "a piece holds an element");
    let (start, end) = (range.start, range.end);
    (start..end).step_by(most).map(move |at| at..(at + most).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Collective; 3] =
        [Collective::AllReduce, Collective::ReduceScatter, Collective::Gather];

    /// How often each element of local rank `rank`'s bucket is on one side of a route.
    fn visits(side: &[Vec<Piece>], rank: usize, elements: usize) -> Vec<usize> {
        let mut visits = vec![0; elements];
        for (owner, pieces) in side.iter().enumerate() {
            for piece in pieces.iter().filter(|piece| piece.buckets.include(rank, owner)) {
                piece.range.clone().for_each(|element| visits[element] += 1);
            }
        }
        visits
    }

    fn once(ranges: &[Range<usize>], elements: usize) -> Vec<usize> {
        (0..elements).map(|at| usize::from(ranges.iter().any(|r| r.contains(&at)))).collect()
    }

    #[test]
    fn in_a_node_every_element_is_read_and_written_where_its_collective_says() {
        let shards = [3..10, 10..10, 10..31, 0..2];
        let covered = once(&shards, 32);
        for collective in ALL {
            let route = Route::in_node(collective, &shards, 4);
            for (rank, shard) in shards.iter().enumerate() {
                let own = once(std::slice::from_ref(shard), 32);
                let others: Vec<usize> = covered.iter().zip(&own).map(|(a, b)| a - b).collect();
                let (input, output) = match collective {
                    Collective::AllReduce => (&covered, &covered),
                    Collective::ReduceScatter => (&covered, &own),
                    Collective::Gather => (&own, &others),
                };
                assert_eq!(&visits(&route.input, rank, 32), input, "{collective:?} {rank}");
                assert_eq!(&visits(&route.output, rank, 32), output, "{collective:?} {rank}");
            }
            let most = route.input.iter().chain(&route.output).flatten().map(|p| p.range.len());
            assert_eq!(most.max(), Some(4));
        }
    }

    /// Two nodes of two ranks, seen from the second node.
    #[test]
    fn between_nodes_staged_pieces_cover_what_the_collective_moves() {
        let orders = [vec![0..4, 8..12, 4..6], vec![12..16, 6..8]];
        let shards = [8..12, 12..16];
        let column = |owner: usize| once(&orders[owner], 16);
        let all: Vec<usize> = column(0).iter().zip(column(1)).map(|(a, b)| a + b).collect();
        for collective in ALL {
            let route = Route::between_nodes(collective, &orders, &shards, false);
            for (rank, shard) in shards.iter().enumerate() {
                let own = once(std::slice::from_ref(shard), 16);
                let others: Vec<usize> = all.iter().zip(&own).map(|(a, b)| a - b).collect();
                let (input, output) = match collective {
                    Collective::AllReduce => (&all, &all),
                    Collective::ReduceScatter => (&all, &own),
                    Collective::Gather => (&own, &others),
                };
                assert_eq!(&visits(&route.input, rank, 16), input, "{collective:?} {rank}");
                assert_eq!(&visits(&route.output, rank, 16), output, "{collective:?} {rank}");
            }
        }
    }

    #[test]
    fn in_place_only_sums_are_read_and_only_the_own_shard_is_handed_round() {
        let (orders, shards) = ([vec![0..4, 4..8]], [std::ops::Range { start: 4, end: 8 }]);
        let route = |collective| Route::between_nodes(collective, &orders, &shards, true);
        for collective in [Collective::AllReduce, Collective::ReduceScatter] {
            assert_eq!(route(collective).input[0].len(), 2);
            assert!(route(collective).output[0].is_empty());
        }
        assert!(route(Collective::Gather).input[0].is_empty());
        let own = Piece { range: 4..8, buckets: Buckets::Others };
        assert_eq!(route(Collective::Gather).output[0], [own]);
    }
}
