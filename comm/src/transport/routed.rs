//! Shared memory to the ranks of this node, tcp to the others: one transport that picks by peer.

use super::shm::Shm;
use super::tcp::Tcp;
use super::{Event, Put, PutId, Region, Transport};
use crate::error::Result;
use crate::ids::Rank;
use crate::memory::SharedMemory;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The usual transport of a rank.
#[derive(Debug)]
pub struct Routed {
    local: Shm,
    remote: Tcp,
    scratch: Vec<Event>,
}

impl Routed {
    /// Joins the two. A rank that `local` reaches goes there.
    pub fn new(local: Shm, remote: Tcp) -> Self {
        Self { local, remote, scratch: Vec::new() }
    }
}

/// Puts of the two backends are told apart by the lowest bit of their number.
fn tag(id: PutId, remote: bool) -> PutId {
    PutId(id.0 << 1 | u64::from(remote))
}

impl Transport for Routed {
    fn register(&mut self, memory: Arc<SharedMemory>) -> Result<Region> {
        let region = self.local.register(Arc::clone(&memory))?;
        let same = self.remote.register(memory)?;
        assert_eq!(region, same, "both backends count registrations");
        Ok(region)
    }

    fn put(&mut self, put: Put) -> Result<PutId> {
        if self.local.reaches(put.peer) {
            self.local.put(put).map(|id| tag(id, false))
        } else {
            self.remote.put(put).map(|id| tag(id, true))
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for remote in [false, true] {
            if remote {
                self.remote.poll(&mut scratch)
            } else {
                self.local.poll(&mut scratch)
            }
            events.extend(scratch.drain(..).map(|event| match event {
                Event::PutDone(id) => Event::PutDone(tag(id, remote)),
                other => other,
            }));
        }
        self.scratch = scratch;
    }

    fn arm(&mut self) -> bool {
        self.local.arm() && self.remote.arm()
    }

    fn wait_on(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = self.local.wait_on();
        fds.extend(self.remote.wait_on());
        fds
    }

    fn abort(&mut self) {
        self.local.abort();
        self.remote.abort();
    }

    fn is_network(&self, peer: Rank) -> bool {
        !self.local.reaches(peer)
    }
}
