//! All ranks in one process, and everything that the transport contract leaves open varied from a seed.
//!
//! What varies: how long a put takes, how peers and lanes interleave, how many bytes have moved when somebody looks,
//! when the immediate follows the last byte, when the source is reported free, and when a peer is lost. What never
//! does, because no backend may: loss, duplication or reordering within one lane of one peer.
//!
//! Bytes are read from the sender's memory as late as the contract allows, so a sender that changes a source before
//! [`Event::PutDone`] corrupts a result.

#![allow(
    unsafe_code,
    reason = "copies between the raw memories of the puts, like the hardware it stands for"
)]

use super::{Bell, Event, Put, PutId, Region, Transport};
use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::memory::SharedMemory;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The network that the fake transports of one test share.
#[derive(Debug)]
pub struct FakeNet {
    state: Mutex<State>,
    bells: Vec<Arc<Bell>>,
}

#[derive(Debug)]
struct State {
    random: u64,
    /// By (receiver, sender, lane).
    links: BTreeMap<(usize, usize, u8), VecDeque<Message>>,
    ranks: Vec<Endpoint>,
    /// Puts until this rank is lost.
    fuse: Option<(Rank, u64)>,
}

#[derive(Debug, Default)]
struct Endpoint {
    regions: Vec<Arc<SharedMemory>>,
    done: VecDeque<PutId>,
    lost: Vec<Rank>,
    dead: bool,
}

#[derive(Debug)]
struct Message {
    id: PutId,
    put: Put,
    moved: usize,
    reported: bool,
}

impl FakeNet {
    /// A network of `ranks`; the seed decides everything that is open.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(ranks: usize, seed: u64) -> Result<Arc<Self>> {
        let bells =
            (0..ranks).map(|_| Bell::new().map(Arc::new)).collect::<Result<Vec<Arc<Bell>>>>()?;
        let state = State {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            links: BTreeMap::new(),
            ranks: (0..ranks).map(|_| Endpoint::default()).collect(),
            fuse: None,
        };
        Ok(Arc::new(Self { state: Mutex::new(state), bells }))
    }

    /// The transport of one rank.
    pub fn transport(self: &Arc<Self>, rank: Rank) -> Fake {
        Fake { net: Arc::clone(self), rank: rank.index(), next_put: 0 }
    }

    /// Loses `rank` after `puts` more puts on the whole network: "between any two events".
    pub fn lose_after(&self, rank: Rank, puts: u64) {
        self.lock().fuse = Some((rank, puts));
    }

    /// Writes into region 0 of `to` and lets an immediate arrive that nobody sends now: stale words of an older
    /// generation.
    pub fn inject(&self, from: Rank, to: Rank, (offset, bytes): (u64, &[u8]), imm: u32) {
        let mut state = self.lock();
        let source = crate::memory::Memory::of_const(bytes);
        let (lane, region) = (super::Lane::CONTROL, Region(0));
        let put = Put { peer: to, lane, region, offset, source, imm };
        state.copy(to.index(), &put, 0, bytes.len());
        let put = Put { source: crate::memory::Memory::EMPTY, ..put };
        let message = Message { id: PutId(u64::MAX), put, moved: 0, reported: true };
        let link = (to.index(), from.index(), super::Lane::CONTROL.0);
        state.links.entry(link).or_default().push_back(message);
        drop(state);
        self.bells[to.index()].ring();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// xorshift64*: the same seed gives the same choices for the same order of calls.
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    fn copy(&self, to: usize, put: &Put, from_byte: usize, to_byte: usize) {
        let region = &self.ranks[to].regions[put.region.0 as usize];
        let start = usize::try_from(put.offset).expect("checked when put");
        let target = region.memory().slice(start + from_byte..start + to_byte);
        let source = put.source.slice(from_byte..to_byte);
        // SAFETY: the source is unchanged until PutDone, which has not been reported; the target bytes belong to this
        // put until its immediate is reported; the lock orders this copy against both.
        unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), target.as_ptr(), source.len());
        }
    }

    fn burn_fuse(&mut self) -> Option<Rank> {
        let (rank, left) = self.fuse?;
        if left > 0 {
            self.fuse = Some((rank, left - 1));
            return None;
        }
        self.fuse = None;
        self.lose(rank);
        Some(rank)
    }

    fn lose(&mut self, rank: Rank) {
        let dead = rank.index();
        self.ranks[dead].dead = true;
        for ((to, from, lane), messages) in std::mem::take(&mut self.links) {
            if to != dead && from != dead {
                self.links.insert((to, from, lane), messages);
            } else if to == dead {
                self.ranks[from].done.extend(messages.iter().filter(|m| !m.reported).map(|m| m.id));
            }
        }
        for (at, endpoint) in self.ranks.iter_mut().enumerate() {
            if at != dead {
                endpoint.lost.push(rank);
            }
        }
    }

    /// Moves some bytes of some messages to `rank`.
    fn deliver(&mut self, rank: usize, events: &mut Vec<Event>) {
        let links: Vec<_> =
            self.links.range((rank, 0, 0)..(rank + 1, 0, 0)).map(|(link, _)| *link).collect();
        let skip = self.random(links.len() as u64) as usize;
        for link in links.iter().cycle().skip(skip).take(links.len()) {
            while self.random(3) > 0 && self.deliver_one(*link, events) {}
        }
    }

    /// One step of the oldest message of a link; `false` when there is none or it stays in flight.
    fn deliver_one(&mut self, link: (usize, usize, u8), events: &mut Vec<Event>) -> bool {
        let queue = self.links.get_mut(&link).expect("listed above");
        let Some(mut message) = queue.pop_front() else { return false };
        let left = message.put.source.len() - message.moved;
        let some = if self.random(2) == 0 { left } else { self.random(left as u64 + 1) as usize };
        self.copy(link.0, &message.put, message.moved, message.moved + some);
        message.moved += some;
        let all = message.moved == message.put.source.len();
        if all && !message.reported && self.random(2) == 0 {
            message.reported = true;
            self.ranks[link.1].done.push_back(message.id);
        }
        if !all || self.random(4) == 0 {
            self.links.get_mut(&link).expect("as above").push_front(message);
            return false;
        }
        if !message.reported {
            self.ranks[link.1].done.push_back(message.id);
        }
        events.push(Event::Arrived { peer: Rank::of(link.1), imm: message.put.imm });
        true
    }
}

/// The fake transport of one rank.
#[derive(Debug)]
pub struct Fake {
    net: Arc<FakeNet>,
    rank: usize,
    next_put: u64,
}

impl Transport for Fake {
    fn register(&mut self, memory: Arc<SharedMemory>) -> Result<Region> {
        let regions = &mut self.net.lock().ranks[self.rank].regions;
        regions.push(memory);
        Ok(Region(u32::try_from(regions.len() - 1).expect("a handful of regions")))
    }

    fn put(&mut self, put: Put) -> Result<PutId> {
        let id = PutId(self.next_put);
        self.next_put += 1;
        let mut state = self.net.lock();
        let lost = state.burn_fuse();
        let to = put.peer.index();
        if state.ranks[to].dead || state.ranks[self.rank].dead {
            state.ranks[self.rank].done.push_back(id);
        } else {
            let region = state.ranks[to].regions.get(put.region.0 as usize);
            let end = usize::try_from(put.offset).unwrap_or(usize::MAX);
            if region.is_none_or(|region| end.saturating_add(put.source.len()) > region.len()) {
                return Err(Error::Invalid(format!("put outside of region {}", put.region.0)));
            }
            let message = Message { id, put, moved: 0, reported: false };
            state.links.entry((to, self.rank, put.lane.0)).or_default().push_back(message);
        }
        drop(state);
        if lost.is_some() {
            self.net.bells.iter().for_each(|bell| bell.ring());
        }
        self.net.bells[to].ring();
        Ok(id)
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        let mut state = self.net.lock();
        let before: Vec<usize> = state.ranks.iter().map(|rank| rank.done.len()).collect();
        if !state.ranks[self.rank].dead {
            state.deliver(self.rank, events);
        }
        // Whose puts are done now must look again.
        let ring: Vec<usize> =
            (0..before.len()).filter(|&rank| state.ranks[rank].done.len() > before[rank]).collect();
        let own = &mut state.ranks[self.rank];
        events.extend(own.done.drain(..).map(Event::PutDone));
        events.extend(own.lost.drain(..).map(|peer| Event::PeerLost { peer }));
        drop(state);
        ring.iter().for_each(|&rank| self.net.bells[rank].ring());
    }

    fn arm(&mut self) -> bool {
        self.net.bells[self.rank].silence();
        let state = self.net.lock();
        let own = &state.ranks[self.rank];
        let mut incoming = state.links.range((self.rank, 0, 0)..(self.rank + 1, 0, 0));
        own.done.is_empty()
            && own.lost.is_empty()
            && (own.dead || incoming.all(|(_, messages)| messages.is_empty()))
    }

    fn wait_on(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.net.bells[self.rank].as_fd()]
    }

    fn abort(&mut self) {
        let mut state = self.net.lock();
        state.ranks[self.rank].dead = true;
        let rank = self.rank;
        let messages = std::mem::take(&mut state.links);
        let (gone, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            messages.into_iter().partition(|((to, from, _), _)| *to == rank || *from == rank);
        state.links = kept;
        for ((_, from, _), messages) in gone {
            let done = messages.iter().filter(|m| !m.reported).map(|m| m.id);
            state.ranks[from].done.extend(done);
        }
    }

    fn is_network(&self, _peer: Rank) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::transport::Lane;

    #[test]
    fn a_lane_is_ordered_and_complete_whatever_the_seed() {
        for seed in 0..200 {
            let net = FakeNet::new(2, seed).expect("net");
            let mut a = net.transport(Rank(0));
            let mut b = net.transport(Rank(1));
            for transport in [&mut a, &mut b] {
                transport
                    .register(SharedMemory::create("t", 100).expect("memory"))
                    .expect("region");
            }
            let payloads: Vec<Vec<u8>> = (0..10u8).map(|i| vec![i; 10]).collect();
            for (i, payload) in payloads.iter().enumerate() {
                a.put(Put {
                    peer: Rank(1),
                    lane: Lane(1),
                    region: Region(0),
                    offset: 10 * i as u64,
                    source: Memory::of_const(payload),
                    imm: i as u32,
                })
                .expect("inside");
            }
            let (mut here, mut there) = (Vec::new(), Vec::new());
            while here.len() < 10 || there.len() < 10 {
                a.poll(&mut here);
                b.poll(&mut there);
            }
            let arrived = |i| Event::Arrived { peer: Rank(0), imm: i };
            assert_eq!(there, (0..10).map(arrived).collect::<Vec<_>>(), "seed {seed}");
            assert_eq!(here, (0..10).map(|i| Event::PutDone(PutId(i))).collect::<Vec<_>>());
        }
    }
}
