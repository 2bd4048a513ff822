//! The three movements of rows: tokens to experts (directly or by way of forwarders), choices to experts, rows home.

use super::hops::{self, Hops, Places, Source};
use super::routes::{Routes, Shape, bytes, count};
use super::worker::{After, Ending, Finish, Job, Staging};
use super::{Readable, Writable};
use crate::completion::Pending;
use crate::error::{Error, Result};
use crate::group::Group;
use std::any::Any;
use std::ops::Range;

/// The groups of a dispatcher; every job has a copy.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    pub(super) all: Group,
    /// Present where tokens are forwarded inside nodes: the members of this node.
    pub(super) node: Option<(Group, Places)>,
}

/// Tokens between nodes: what left (the staging buffer) and what came.
pub(super) type Hop = Pending<(Vec<u8>, Vec<u8>)>;

type Ranges = Vec<Vec<Range<usize>>>;

/// Everybody's counts on their way.
pub(super) struct Counts(Pending<(Words, Words)>);

impl Counts {
    /// The table `[members, experts]`.
    pub(super) fn wait(self) -> Result<Vec<u32>> {
        Ok(self.0.wait()?.1.0)
    }
}

/// Numbers that travel as bytes.
struct Words(Vec<u32>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl AsMut<[u8]> for Words {
    fn as_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Makes a job of its two halves; whatever fails goes to `ending`.
pub(super) fn job<S: Send + 'static, T: Any + Send>(
    after: After,
    ending: Ending,
    begin: impl FnOnce(&Staging) -> Result<S> + Send + 'static,
    finish: impl FnOnce(S, &Staging) -> Result<T> + Send + 'static,
) -> Job {
    let begin = move |staging: &Staging| -> Finish {
        match begin(staging) {
            Ok(begun) => Box::new(move |staging: &Staging| ending.give(finish(begun, staging))),
            Err(error) => {
                ending.give::<()>(Err(error));
                Box::new(|_| ())
            }
        }
    };
    Job { after, begin: Box::new(begin) }
}

/// A buffer's length must be what the routes say.
pub(super) fn check(what: &str, have: usize, rows: usize, row_bytes: usize) -> Result<()> {
    if Some(have) == rows.checked_mul(row_bytes) && row_bytes > 0 {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what}: {have} bytes for {rows} rows of {row_bytes} bytes")))
}

/// Copies rows `order` of `from` one after the other into `to`.
fn pack(from: &[u8], order: impl Iterator<Item = usize>, to: &mut [u8], row_bytes: usize) {
    for (row, to) in order.zip(to.chunks_exact_mut(row_bytes)) {
        to.copy_from_slice(&from[bytes(row..row + 1, row_bytes)]);
    }
}

/// Which row of the input a choice takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Input {
    /// `[tokens, ...]`: the token's.
    Tokens,
    /// `[tokens, slots, ...]`: its own.
    Choices,
}

impl Input {
    pub(super) fn rows(self, routes: &Routes) -> usize {
        match self {
            Self::Tokens => routes.tokens(),
            Self::Choices => routes.tokens() * routes.slots(),
        }
    }

    fn row(self, choice: u32, routes: &Routes) -> usize {
        match self {
            Self::Tokens => hops::token_of(choice, routes.slots()) as usize,
            Self::Choices => choice as usize,
        }
    }
}

impl Ways {
    /// Starts the exchange of counts for `chosen`.
    pub(super) fn start_counts(&self, shape: Shape, chosen: &[u32]) -> Result<Counts> {
        let own = count(chosen, shape.members * shape.owned)?;
        let each = size_of_val(&own[..]);
        let mut all = vec![0u32; own.len() * shape.members];
        all[shape.me * own.len()..][..own.len()].copy_from_slice(&own);
        let part = |of: usize| std::iter::once(of * each..(of + 1) * each).collect();
        let to_all = without(vec![part(0); shape.members], shape.me);
        let from_all = without((0..shape.members).map(part).collect(), shape.me);
        let (own, all) = (Words(own), Words(all));
        Ok(Counts(self.all.start_all_to_all((own, &to_all), (all, &from_all))?))
    }

    /// Exchanges the forwarders' lists, where tokens are forwarded. Waits.
    pub(super) fn exchange_lists(&self, routes: &Routes) -> Result<Option<Hops>> {
        let Some((_, places)) = &self.node else { return Ok(None) };
        let (me, members) = (routes.shape.me, routes.shape.members);
        let node = places.node_of[me];
        let leaving = hops::leaving(routes, places, node);
        let sizes: Vec<u32> =
            leaving.iter().map(|l| u32::try_from(l.len()).expect("fewer than choices")).collect();
        let nodes = sizes.len();
        let mut all_sizes = vec![0u32; nodes * members];
        self.all.all_gather(&sizes, &mut all_sizes)?;
        let (mut lists, mut sends) = (Vec::new(), vec![0; members]);
        // Lists stand in the order of the members that get them.
        let mut targets: Vec<(usize, usize)> = (0..nodes)
            .filter(|other| *other != node)
            .map(|other| (places.forwarder(me, other), other))
            .collect();
        targets.sort_unstable();
        for (to, other) in targets {
            let list = hops::positions(routes, &places.by_node[other], &leaving[other]);
            sends[to] = list.len();
            lists.extend(list);
        }
        let local: Vec<usize> =
            places.by_node[node].iter().flat_map(|&m| routes.owned(m)).collect();
        let rows_from = |source: usize| -> usize {
            let forwards = places.node_of[source] != node && places.forwarder(source, node) == me;
            if forwards { local.iter().map(|&e| routes.count(source, e)).sum() } else { 0 }
        };
        let receives: Vec<usize> = (0..members).map(rows_from).collect();
        let mut came = vec![0u32; receives.iter().sum()];
        self.all.all_to_all((&lists, &sends), (&mut came, &receives))?;
        let mut sources = Vec::new();
        let mut rest = &came[..];
        for member in places.sources(me).filter(|source| *source != me) {
            let (positions, after) = rest.split_at(receives[member]);
            let tokens = all_sizes[member * nodes + node] as usize;
            if positions.iter().any(|at| *at as usize >= tokens) {
                return Err(Error::Invalid(format!("member {member} sent a bad forwarding list")));
            }
            sources.push(Source { member, tokens, positions: positions.to_vec() });
            rest = after;
        }
        Ok(Some(Hops { leaving, sources }))
    }

    /// Packs what leaves, keeps what stays, and starts the exchange into `output`.
    pub(super) fn start_direct<O: Writable>(
        &self,
        routes: &Routes,
        (input, rows): (&[u8], Input),
        (mut output, row_bytes): (O, usize),
        staging: &Staging,
    ) -> Result<Pending<(Vec<u8>, O)>> {
        let me = routes.shape.me;
        let mut packed = staging.take(routes.order.len() * row_bytes);
        for member in 0..routes.shape.members {
            for (local, expert) in routes.owned(member).enumerate() {
                let leaving = routes.leaving(expert);
                let order = routes.order[leaving.clone()].iter();
                let order = order.map(|choice| rows.row(*choice, routes));
                let to = if member == me {
                    &mut output.as_mut()[bytes(routes.block(local, me), row_bytes)]
                } else {
                    &mut packed[bytes(leaving, row_bytes)]
                };
                pack(input, order, to, row_bytes);
            }
        }
        self.all.touched(2 * routes.order.len() * row_bytes);
        let sends = without(routes.leaving_bytes(row_bytes), me);
        let receives = without(routes.block_bytes(row_bytes), me);
        self.all.start_all_to_all((packed, &sends), (output, &receives))
    }

    /// Sends each token that leaves the node once to each other node's forwarder.
    pub(super) fn start_hop(
        &self,
        routes: &Routes,
        hops: &Hops,
        (tokens, row_bytes): (&[u8], usize),
        staging: &Staging,
    ) -> Result<Hop> {
        let (_, places) = self.node.as_ref().expect("hops are made of places");
        let (sends, leaving_bytes) = hops.outgoing(places, routes.shape.me, row_bytes);
        let (receives, coming_bytes) = hops.incoming(routes.shape.members, row_bytes);
        let mut packed = staging.take(leaving_bytes);
        let order = hops.leaving.iter().flatten().map(|token| *token as usize);
        pack(tokens, order, &mut packed[..leaving_bytes], row_bytes);
        self.all.touched(2 * leaving_bytes);
        let came = staging.take(coming_bytes);
        self.all.start_all_to_all((packed, &sends), (came, &receives))
    }

    /// Copies own and forwarded tokens to the experts' owners on this node. Waits.
    pub(super) fn fan_out<O: Writable>(
        &self,
        (routes, hops): (&Routes, &Hops),
        (tokens, came): (&[u8], &[u8]),
        (mut output, row_bytes): (O, usize),
        staging: &Staging,
    ) -> Result<O> {
        let (node, places) = self.node.as_ref().expect("hops are made of places");
        let me = routes.shape.me;
        let locals = &places.by_node[places.node_of[me]];
        let total = fan_rows(routes, places, me) * row_bytes;
        let mut packed = staging.take(total);
        let (mut sends, mut at) = (vec![Vec::new(); locals.len()], 0);
        for (to, &target) in locals.iter().enumerate() {
            for source in places.sources(me) {
                let mut rows = Rows::of(routes, hops, (locals, source, target));
                for (local, expert) in routes.owned(target).enumerate() {
                    let count = routes.count(source, expert);
                    let input = if source == me { tokens } else { came };
                    let block = if target == me {
                        &mut output.as_mut()[bytes(routes.block(local, source), row_bytes)]
                    } else {
                        let end = at + count * row_bytes;
                        sends[to].push(at..end);
                        at = end;
                        &mut packed[end - count * row_bytes..end]
                    };
                    pack(input, rows.by_ref().take(count), block, row_bytes);
                }
            }
        }
        node.touched(2 * at);
        let from = |&local: &usize| -> Vec<Range<usize>> {
            if local == me {
                return Vec::new();
            }
            places.sources(local).flat_map(|s| routes.blocks_from(s, row_bytes)).collect()
        };
        let receives: Ranges = locals.iter().map(from).collect();
        let (packed, output) =
            node.start_all_to_all((packed, &sends), (output, &receives))?.wait()?;
        staging.give_back(packed);
        Ok(output)
    }

    /// Starts rows on their way home; they arrive in the order in which they left.
    pub(super) fn start_home<B: Readable>(
        &self,
        routes: &Routes,
        (rows, row_bytes): (B, usize),
        output: &mut [u8],
        staging: &Staging,
    ) -> Result<Pending<(B, Vec<u8>)>> {
        let me = routes.shape.me;
        for (local, expert) in routes.owned(me).enumerate() {
            let home = &rows.as_ref()[bytes(routes.block(local, me), row_bytes)];
            unpack(home, &routes.order[routes.leaving(expert)], output, row_bytes);
        }
        let came = staging.take(routes.order.len() * row_bytes);
        let sends = without(routes.block_bytes(row_bytes), me);
        let receives = without(routes.leaving_bytes(row_bytes), me);
        self.all.start_all_to_all((rows, &sends), (came, &receives))
    }

    /// Puts rows that came home from the other members to their choices.
    pub(super) fn scatter(
        &self,
        routes: &Routes,
        came: &[u8],
        output: &mut [u8],
        row_bytes: usize,
    ) {
        for member in (0..routes.shape.members).filter(|member| *member != routes.shape.me) {
            for expert in routes.owned(member) {
                let leaving = routes.leaving(expert);
                let home = &came[bytes(leaving.clone(), row_bytes)];
                unpack(home, &routes.order[leaving], output, row_bytes);
            }
        }
        self.all.touched(2 * routes.order.len() * row_bytes);
    }
}

/// Rows of `from`, one after the other, to rows `order` of `to`.
fn unpack(from: &[u8], order: &[u32], to: &mut [u8], row_bytes: usize) {
    for (from, choice) in from.chunks_exact(row_bytes).zip(order) {
        let row = *choice as usize;
        to[bytes(row..row + 1, row_bytes)].copy_from_slice(from);
    }
}

fn without(mut ranges: Ranges, member: usize) -> Ranges {
    ranges[member].clear();
    ranges
}

/// Rows that this member copies to others of its node.
fn fan_rows(routes: &Routes, places: &Places, me: usize) -> usize {
    let others = places.by_node[places.node_of[me]].iter().filter(|member| **member != me);
    let experts: Vec<usize> = others.flat_map(|&member| routes.owned(member)).collect();
    let rows = |source| experts.iter().map(|&e| routes.count(source, e)).sum::<usize>();
    places.sources(me).map(rows).sum()
}

/// The rows, of tokens or of what came, that `source` has for the experts of `target`, by expert.
enum Rows<'a> {
    Own(std::slice::Iter<'a, u32>, usize),
    Forwarded(std::slice::Iter<'a, u32>, usize),
}

impl<'a> Rows<'a> {
    fn of(
        routes: &'a Routes,
        hops: &'a Hops,
        (locals, source, target): (&[usize], usize, usize),
    ) -> Self {
        let rows = |from: usize, member: usize| -> usize {
            routes.owned(member).map(|expert| routes.count(from, expert)).sum()
        };
        if source == routes.shape.me {
            let owned = routes.owned(target);
            let start = routes.leaving(owned.start).start;
            let order = &routes.order[start..start + rows(source, target)];
            return Self::Own(order.iter(), routes.slots());
        }
        let before = hops.sources.iter().take_while(|s| s.member != source);
        let first_row = before.map(|s| s.tokens).sum();
        let of = hops.sources.iter().find(|s| s.member == source).expect("forwarded for");
        let skipped: usize =
            locals.iter().take_while(|m| **m != target).map(|&m| rows(source, m)).sum();
        let positions = &of.positions[skipped..skipped + rows(source, target)];
        Self::Forwarded(positions.iter(), first_row)
    }
}

impl Iterator for Rows<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        match self {
            Self::Own(order, slots) => Some(hops::token_of(*order.next()?, *slots) as usize),
            Self::Forwarded(positions, first) => Some(*first + *positions.next()? as usize),
        }
    }
}
