//! From a request to everything the engine needs, purely: algorithm, chunk, schedule, neighbours, landing slots.

use crate::dtype::Arithmetic;
use crate::error::{Error, Result};
use crate::schedule::{
    ALIGN, MAX_PIECES, Schedule, direct, double_tree, even_slices, halving, ring,
};
use crate::table::{Algorithm, Table};
use crate::wire::header::{Descriptor, Imm, Kind};
use std::collections::BTreeSet;
use std::ops::Range;

/// Byte ranges that go to each member, and that come from each.
pub(crate) type Exchange<'a> = (&'a [Vec<Range<usize>>], &'a [Vec<Range<usize>>]);

/// What a member asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) kind: Kind,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) elements: usize,
    pub(crate) root: usize,
    pub(crate) me: usize,
    pub(crate) members: usize,
    pub(crate) canonical: bool,
    pub(crate) chunk_bytes: usize,
    pub(crate) landing_bytes: usize,
    pub(crate) table: &'a Table,
    /// Owners' slices; even ones when absent.
    pub(crate) slices: Option<&'a [Range<usize>]>,
    /// All-to-all-v: what goes to and comes from each member.
    pub(crate) exchange: Option<Exchange<'a>>,
    /// Send and receive: from, to.
    pub(crate) pair: Option<(usize, usize)>,
}

/// How it will be carried out. Group and sequence number are filled in when it is handed over.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) descriptor: Descriptor,
    pub(crate) schedule: Schedule,
    pub(crate) neighbours: Vec<usize>,
    pub(crate) landing_bytes: usize,
    pub(crate) landings: usize,
}

/// A landing slot holds at least one line of the widest element.
const LEAST_LANDING: usize = ALIGN * 8;

pub(crate) fn plan(request: &Request<'_>) -> Result<Planned> {
    let r = request;
    if r.root >= r.members {
        return Err(Error::Invalid(format!("root {} of {} members", r.root, r.members)));
    }
    let element = r.arithmetic.partial_bytes.max(r.arithmetic.dtype.bytes());
    // Slices of given owners: a choice among the algorithms that have slices, as for a large buffer.
    let bytes = if r.slices.is_some() { u64::MAX } else { (r.elements * element) as u64 };
    // Gathering does not add, so any order is canonical.
    let canonical = r.canonical
        && matches!(r.kind, Kind::AllReduce | Kind::ReduceScatter | Kind::Reduce)
        && r.members > 1;
    let algorithm = r.table.choose(r.kind, bytes, r.members, canonical)?;
    if r.slices.is_some() && algorithm == Algorithm::Doubling {
        return Err(Error::Invalid("doubling exchanges whole buffers: not for slices".into()));
    }
    let fan_in = algorithm.fan_in(r.kind, r.members);
    let most = (r.landing_bytes / (2 * fan_in)).max(LEAST_LANDING);
    let landing_bytes = r.chunk_bytes.clamp(LEAST_LANDING, most) / LEAST_LANDING * LEAST_LANDING;
    let landings = (r.landing_bytes / (fan_in * landing_bytes)).min(Imm::LANDINGS);
    if landings == 0 {
        let (bytes, members) = (r.landing_bytes, r.members);
        return Err(Error::Invalid(format!(
            "landing_bytes = {bytes} is too little for {} over {members} members",
            r.kind.name()
        )));
    }
    let chunk = landing_bytes / element;
    let most = r.elements.max(most_exchanged(r));
    if most / chunk + r.members + most_ranges(r) >= MAX_PIECES {
        return Err(Error::Invalid(format!("{most} elements in pieces of {chunk}")));
    }
    let even;
    let slices = match r.slices {
        Some(slices) => slices,
        None => {
            even = even_slices(r.elements, r.members);
            &even
        }
    };
    let schedule = build(r, algorithm, slices, r.elements, chunk);
    // Headers are exchanged with everybody whom the algorithm could need, whatever the length: a member that brings an
    // empty buffer where others bring a full one is found out.
    let neighbours: BTreeSet<usize> = match r.pair {
        Some((from, to)) => BTreeSet::from([if r.me == from { to } else { from }]),
        None if r.kind == Kind::AllToAll => (0..r.members).filter(|m| *m != r.me).collect(),
        None => {
            let probe = even_slices(r.members * ALIGN, r.members);
            let shape = build(r, algorithm, &probe, r.members * ALIGN, ALIGN);
            &shape.sources() | &shape.targets()
        }
    };
    let mut neighbours = &neighbours | &(&schedule.sources() | &schedule.targets());
    neighbours.remove(&r.me);
    let descriptor = Descriptor {
        group: 0,
        sequence: 0,
        kind: r.kind,
        algorithm: algorithm as u8,
        dtype: r.arithmetic.dtype,
        root: u32::try_from(r.root).expect("fewer than 2^32 members"),
        elements: r.elements as u64,
        chunk: chunk as u64,
    };
    let neighbours = neighbours.into_iter().collect();
    Ok(Planned { descriptor, schedule, neighbours, landing_bytes, landings })
}

/// Most elements between this member and another.
fn most_exchanged(r: &Request<'_>) -> usize {
    let (sends, receives) = r.exchange.unwrap_or_default();
    let sizes = sends.iter().chain(receives).map(|ranges| ranges.iter().map(Range::len).sum());
    sizes.max().unwrap_or(0)
}

/// Most ranges between this member and another.
fn most_ranges(r: &Request<'_>) -> usize {
    let (sends, receives) = r.exchange.unwrap_or_default();
    sends.iter().chain(receives).map(Vec::len).max().unwrap_or(0)
}

fn build(
    r: &Request<'_>,
    algorithm: Algorithm,
    slices: &[Range<usize>],
    elements: usize,
    chunk: usize,
) -> Schedule {
    let (me, members, root) = (r.me, r.members, r.root);
    match (r.kind, algorithm) {
        (Kind::AllReduce, Algorithm::Ring) => ring::all_reduce(me, slices, chunk),
        (Kind::ReduceScatter, Algorithm::Ring) => ring::reduce_scatter(me, slices, chunk),
        (Kind::AllGather, Algorithm::Ring) => ring::all_gather(me, slices, chunk),
        (Kind::AllReduce, Algorithm::Halving) => halving::all_reduce(me, slices, chunk),
        (Kind::ReduceScatter, Algorithm::Halving) => halving::reduce_scatter(me, slices, chunk),
        (Kind::AllGather, Algorithm::Halving) => halving::all_gather(me, slices, chunk),
        (Kind::AllReduce, Algorithm::DoubleTree) => {
            double_tree::all_reduce(me, members, slices, chunk)
        }
        (Kind::AllReduce | Kind::Barrier, _) => halving::doubling(me, members, elements, chunk),
        (Kind::Reduce, _) => double_tree::reduce(me, members, root, elements, chunk),
        (Kind::Broadcast, Algorithm::Chain) => {
            direct::chain_broadcast(me, members, root, elements, chunk)
        }
        (Kind::Broadcast, _) => double_tree::broadcast(me, members, root, elements, chunk),
        (Kind::AllToAll, _) => {
            let (sends, receives) = r.exchange.expect("given for all-to-all");
            direct::all_to_all(me, sends, receives, chunk)
        }
        (Kind::PointToPoint, _) => {
            let (from, to) = r.pair.expect("given for send and receive");
            if me == from {
                direct::send(to, elements, chunk)
            } else {
                direct::receive(from, elements, chunk)
            }
        }
        (kind, algorithm) => unreachable!("the table gave {algorithm} for {}", kind.name()),
    }
}
