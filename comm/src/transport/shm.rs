//! Shared memory between the ranks of one node: a put is a copy into the peer's mapped region and one word in its
//! mailbox.
//!
//! Each rank owns a [`Mailbox`]: one ring per local peer and the `asleep` word. A put copies on the caller's core, so
//! it is done when it returns; only the word can be late, when the peer's ring is full, and then waits here. Loss of a
//! peer is not seen by this backend: the control plane sees its socket close. All lanes are one stream here, since a
//! copy is complete before its word is pushed.

#![allow(unsafe_code, reason = "copies into memory mapped from a peer")]

use super::mailbox::{Ring, fall_asleep, must_ring};
use super::{Bell, Event, Put, PutId, Region, Transport};
use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::memory::SharedMemory;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Bytes before the first ring: the `asleep` word on its own cache line.
const FRONT: usize = 64;

/// The memory in which a rank receives immediates from the local peers: `asleep`, then one ring per local index.
#[derive(Debug, Clone)]
pub struct Mailbox {
    memory: Arc<SharedMemory>,
    locals: usize,
}

impl Mailbox {
    /// An empty mailbox for `locals` ranks on this node.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn create(locals: usize) -> Result<Self> {
        let memory = SharedMemory::create("mailbox", Self::bytes(locals))?;
        Ok(Self { memory, locals })
    }

    /// A peer's mailbox from its memory.
    pub fn of(memory: Arc<SharedMemory>, locals: usize) -> Self {
        assert_eq!(memory.len(), Self::bytes(locals), "checked when the memory was received");
        Self { memory, locals }
    }

    /// Size for `locals` ranks.
    pub fn bytes(locals: usize) -> usize {
        FRONT + locals * size_of::<Ring>()
    }

    /// Its memory, to be sent to peers.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    fn asleep(&self) -> &AtomicU32 {
        // SAFETY: the mapping is page aligned, at least FRONT bytes long, lives as long as `self`, and this word is
        // only ever used as an atomic.
        unsafe { &*self.memory.as_ptr().cast::<AtomicU32>() }
    }

    fn ring(&self, from: usize) -> &Ring {
        assert!(from < self.locals, "local index {from} of {}", self.locals);
        let at = FRONT + from * size_of::<Ring>();
        // SAFETY: inside the mapping (checked at construction), 64-byte aligned, all-zero is an empty ring, and it is
        // only ever used through atomics.
        unsafe { &*self.memory.as_ptr().wrapping_add(at).cast::<Ring>() }
    }
}

/// What a rank knows of a peer on the same node.
#[derive(Debug)]
pub struct Local {
    /// Its rank.
    pub rank: Rank,
    /// Its index on the node: the number of its ring in our mailbox.
    pub index: usize,
    /// Where it receives immediates.
    pub mailbox: Mailbox,
    /// Wakes it.
    pub bell: Bell,
    /// Its registered regions, in order.
    pub regions: Vec<Arc<SharedMemory>>,
}

/// The shared-memory transport of one rank.
#[derive(Debug)]
pub struct Shm {
    index: usize,
    mailbox: Mailbox,
    bell: Arc<Bell>,
    peers: Vec<Peer>,
    /// Ranks to positions in `peers`; `usize::MAX` elsewhere.
    by_rank: Vec<usize>,
    done: VecDeque<PutId>,
    next_put: u64,
    registered: u32,
    aborted: bool,
}

#[derive(Debug)]
struct Peer {
    local: Local,
    /// Words that found the ring full.
    late: VecDeque<u32>,
}

impl Shm {
    /// A transport for the rank with this index on its node.
    pub fn new(index: usize, mailbox: Mailbox, bell: Arc<Bell>, locals: Vec<Local>) -> Self {
        let ranks = locals.iter().map(|local| local.rank.index() + 1).max().unwrap_or(0);
        let mut by_rank = vec![usize::MAX; ranks];
        for (at, local) in locals.iter().enumerate() {
            by_rank[local.rank.index()] = at;
        }
        let peers = locals.into_iter().map(|local| Peer { local, late: VecDeque::new() }).collect();
        Self {
            index,
            mailbox,
            bell,
            peers,
            by_rank,
            done: VecDeque::new(),
            next_put: 0,
            registered: 0,
            aborted: false,
        }
    }

    /// Whether this rank is reached through shared memory.
    pub fn reaches(&self, rank: Rank) -> bool {
        self.by_rank.get(rank.index()).is_some_and(|at| *at != usize::MAX)
    }

    fn deliver(&mut self, at: usize, word: u32) {
        let peer = &mut self.peers[at];
        if !peer.late.is_empty() || !peer.local.mailbox.ring(self.index).push(word) {
            peer.late.push_back(word);
        } else if must_ring(peer.local.mailbox.asleep()) {
            peer.local.bell.ring();
        }
    }

    fn deliver_late(&mut self) {
        let index = self.index;
        for peer in &mut self.peers {
            let mut pushed = false;
            while let Some(word) = peer.late.front() {
                if !peer.local.mailbox.ring(index).push(*word) {
                    break;
                }
                peer.late.pop_front();
                pushed = true;
            }
            if pushed && must_ring(peer.local.mailbox.asleep()) {
                peer.local.bell.ring();
            }
        }
    }
}

impl Transport for Shm {
    fn register(&mut self, _memory: Arc<SharedMemory>) -> Result<Region> {
        // Peers received the memory itself when they connected, in this order.
        self.registered += 1;
        Ok(Region(self.registered - 1))
    }

    fn put(&mut self, put: Put) -> Result<PutId> {
        let at = self.by_rank[put.peer.index()];
        let target = self.peers[at].local.regions.get(put.region.0 as usize);
        let target = target.ok_or_else(|| {
            Error::Invalid(format!("rank {} has no region {}", put.peer, put.region.0))
        })?;
        let start = usize::try_from(put.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(put.source.len());
        if end > target.len() {
            return Err(Error::Invalid(format!("put to {start}..{end} of {}", target.len())));
        }
        let id = PutId(self.next_put);
        self.next_put += 1;
        if !self.aborted {
            // SAFETY: the source is alive and unchanged (contract of `Put`); the target is inside the peer's mapping,
            // which `self` keeps alive, and the peer has given these bytes to us until we announce them.
            unsafe {
                let target = target.as_ptr().wrapping_add(start);
                std::ptr::copy_nonoverlapping(put.source.as_ptr(), target, put.source.len());
            }
            self.deliver(at, put.imm);
        }
        self.done.push_back(id);
        Ok(id)
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        self.deliver_late();
        events.extend(self.done.drain(..).map(Event::PutDone));
        if self.aborted {
            return;
        }
        for peer in &self.peers {
            while let Some(imm) = self.mailbox.ring(peer.local.index).pop() {
                events.push(Event::Arrived { peer: peer.local.rank, imm });
            }
        }
    }

    fn arm(&mut self) -> bool {
        self.bell.silence();
        if !self.done.is_empty() || self.peers.iter().any(|peer| !peer.late.is_empty()) {
            return false;
        }
        let (mailbox, peers) = (&self.mailbox, &self.peers);
        fall_asleep(mailbox.asleep(), || {
            peers.iter().all(|peer| mailbox.ring(peer.local.index).is_empty())
        })
    }

    fn wait_on(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.bell.as_fd()]
    }

    fn abort(&mut self) {
        self.aborted = true;
        self.done.clear();
        self.peers.iter_mut().for_each(|peer| peer.late.clear());
    }

    fn is_network(&self, _peer: Rank) -> bool {
        false
    }
}
