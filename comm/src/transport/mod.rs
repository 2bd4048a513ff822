//! The transport contract, shaped like RDMA write-with-immediate (design, section 3; docs/adr/0010).
//!
//! A transport moves bytes of this process into a registered region of a peer and tells the peer a 32-bit immediate
//! once they are there. Contract of every backend: **per peer and lane reliable and ordered, or the peer is lost**.
//! Everything else is open: how lanes and peers interleave, when a put is done, how much of it has moved. The `fake`
//! backend varies all of that from a seed.
//!
//! A transport has no thread of its own: whoever owns it calls [`Transport::poll`] and sleeps on
//! [`Transport::wait_on`].

pub mod cubic;
pub mod fake;
pub mod mailbox;
pub mod routed;
pub mod shm;
pub mod tcp;

use crate::error::Result;
use crate::ids::Rank;
use crate::memory::{Memory, SharedMemory};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Registered memory as its owner's peers address it: an ibverbs rkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region(pub u32);

/// An ordered stream to one peer. Lane 0 carries headers and credits, the others data, so that a credit never waits
/// behind megabytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u8);

impl Lane {
    /// Headers, credits.
    pub const CONTROL: Self = Self(0);
}

/// One put, as named in its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PutId(pub u64);

/// A write with immediate.
#[derive(Debug, Clone, Copy)]
pub struct Put {
    /// Whose memory is written.
    pub peer: Rank,
    /// The stream.
    pub lane: Lane,
    /// Which of the peer's regions.
    pub region: Region,
    /// First byte inside it.
    pub offset: u64,
    /// What is written. Stays alive and unchanged until [`Event::PutDone`].
    pub source: Memory,
    /// What the peer is told once the bytes are there.
    pub imm: u32,
}

/// What has happened since the last poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The source of this put may be changed again. Says nothing about the peer.
    PutDone(PutId),
    /// A peer's put has landed completely.
    Arrived {
        /// Who wrote.
        peer: Rank,
        /// Its immediate.
        imm: u32,
    },
    /// Nothing more will come from or reach this peer.
    PeerLost {
        /// The peer.
        peer: Rank,
    },
}

/// Moves bytes between ranks. Not shared between threads: one engine owns it.
pub trait Transport: Send {
    /// Makes memory writable for peers. Regions are numbered in order of registration.
    ///
    /// # Errors
    /// When the backend cannot register (locked-memory limit, region not among those exchanged at connect).
    fn register(&mut self, memory: Arc<SharedMemory>) -> Result<Region>;

    /// Starts a write with immediate. Never blocks; the answer is an event.
    ///
    /// # Errors
    /// When the target lies outside the peer's region: a bug of the caller, found before a byte moves.
    fn put(&mut self, put: Put) -> Result<PutId>;

    /// Moves what can be moved without waiting and appends what happened.
    fn poll(&mut self, events: &mut Vec<Event>);

    /// Announces that the owner is about to sleep on [`Self::wait_on`]. `false`: do not, there is something to poll.
    fn arm(&mut self) -> bool;

    /// Descriptors that become readable when there is something to poll, valid after a successful [`Self::arm`].
    fn wait_on(&self) -> Vec<BorrowedFd<'_>>;

    /// Ends everything at once: afterwards no put's source is read and no region is written by this side.
    fn abort(&mut self);

    /// Bytes of payload put to this peer would cross the network (true) or shared memory (false).
    fn is_network(&self, peer: Rank) -> bool;
}

/// Wakes a thread that sleeps in `poll(2)`. One eventfd.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A silent bell.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|source| crate::Error::io("creating an eventfd", source))?;
        Ok(Self(fd))
    }

    /// A bell that rings in the process that sent this descriptor.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Rings it. A bell that already rings stays so.
    pub fn ring(&self) {
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "ringing an eventfd failed"),
        }
    }

    /// Silences it.
    pub fn silence(&self) {
        let mut count = [0u8; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "reading an eventfd failed"),
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
