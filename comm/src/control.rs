//! The control plane: one socket to every rank, heartbeats, and the three kinds of missing peer kept apart.
//!
//! - **Dead process**: its socket closes without a goodbye. Known within a millisecond, and handed on to everybody.
//! - **Vanished host or cut link**: `TCP_USER_TIMEOUT` on these sockets, and nothing else. Heartbeats every 250 ms keep
//!   something unacknowledged on the wire, so the kernel's verdict comes between `peer_timeout` and 20 % later. A
//!   stopped process is no vanished host: its kernel still acknowledges.
//! - **Stopped or slow process**: no heartbeat comes, which only marks the peer silent. Its operations end at their
//!   deadline, and the error says from the heartbeats who has not entered what.
//!
//! Descriptors of shared memory travel here too (`SCM_RIGHTS`), between ranks of one node.

use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::shared::Shared;
use crate::wire::control::{Control, Entered, MAX_CONTROL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest distance of two heartbeats, and the part of the peer timeout that they may be apart: a shorter timeout needs
/// closer heartbeats to be kept to 20 %.
const HEARTBEAT: Duration = Duration::from_millis(250);
const BEATS_PER_TIMEOUT: u32 = 20;

/// Bytes that wait for one peer's socket. A peer that is stopped long enough to fill the kernel's buffers and this gets
/// no more heartbeats; notices and goodbyes always fit above it.
const BACKLOG: usize = 8 << 10;

/// A connected control socket.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) rank: Rank,
    pub(crate) fd: OwnedFd,
    /// A Unix socket: the peer is on this node, and descriptors can be passed.
    pub(crate) local: bool,
}

/// The control plane of one rank.
pub(crate) struct ControlPlane {
    shared: Arc<Shared>,
    peers: Vec<Peer>,
    peer_timeout: Duration,
    closing: Arc<AtomicBool>,
    published: bool,
    told: Vec<Entered>,
}

struct Peer {
    rank: Rank,
    fd: Option<OwnedFd>,
    local: bool,
    outgoing: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    sent: usize,
    incoming: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl ControlPlane {
    pub(crate) fn new(
        shared: Arc<Shared>,
        links: Vec<Link>,
        peer_timeout: Duration,
        closing: Arc<AtomicBool>,
    ) -> Result<Self> {
        let failed = |source| Error::io("preparing control sockets", source);
        let mut peers = Vec::new();
        for link in links {
            rustix::io::ioctl_fionbio(&link.fd, true).map_err(failed)?;
            if !link.local {
                let ms = u32::try_from(peer_timeout.as_millis()).unwrap_or(u32::MAX);
                sockopt::set_tcp_nodelay(&link.fd, true).map_err(failed)?;
                sockopt::set_tcp_user_timeout(&link.fd, ms).map_err(failed)?;
            }
            peers.push(Peer {
                rank: link.rank,
                fd: Some(link.fd),
                local: link.local,
                outgoing: VecDeque::new(),
                sent: 0,
                incoming: Vec::new(),
                fds: VecDeque::new(),
            });
        }
        Ok(Self { shared, peers, peer_timeout, closing, published: false, told: Vec::new() })
    }

    /// Runs until the communicator closes, or until its fate has been told to everybody.
    pub(crate) fn run(mut self) {
        let mut beat = Instant::now();
        loop {
            let now = Instant::now();
            if now >= beat {
                self.heartbeat();
                beat = now + HEARTBEAT.min(self.peer_timeout / BEATS_PER_TIMEOUT);
            }
            self.pass_descriptors();
            self.publish();
            let closing = self.closing.load(Ordering::Acquire);
            if closing && !self.published {
                self.published = true;
                self.tell_all(&Control::Bye);
            }
            self.flush();
            if closing {
                return;
            }
            self.wait(beat.saturating_duration_since(Instant::now()));
        }
    }

    fn heartbeat(&mut self) {
        let entered = self.shared.entered();
        let message = if entered == self.told {
            Control::Alive
        } else {
            self.told.clone_from(&entered);
            Control::Entered(entered)
        };
        let bytes = message.encode();
        for peer in self.peers.iter_mut().filter(|peer| peer.fd.is_some()) {
            if peer.outgoing.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() < BACKLOG {
                peer.outgoing.push_back((bytes.clone(), None));
            }
        }
    }

    /// Tells everybody why it is over, once.
    fn publish(&mut self) {
        if self.published {
            return;
        }
        if let Some(fate) = self.shared.fate().cloned() {
            self.published = true;
            // What the last heartbeat did not say yet helps the others to name who is late.
            let entered = self.shared.entered();
            if entered != self.told {
                self.tell_all(&Control::Entered(entered));
            }
            self.tell_all(&Control::Fate(fate));
        }
    }

    fn tell_all(&mut self, message: &Control) {
        let bytes = message.encode();
        for peer in &mut self.peers {
            peer.outgoing.push_back((bytes.clone(), None));
        }
    }

    fn pass_descriptors(&mut self) {
        while let Some((to, key, fd, bytes)) = self.shared.next_outgoing_fd() {
            let message = Control::Memory { key, bytes }.encode();
            if let Some(peer) = self.peers.iter_mut().find(|peer| peer.rank == to && peer.local) {
                peer.outgoing.push_back((message, Some(fd)));
            } else {
                tracing::error!(rank = to.0, "memory can be shared inside a node only");
            }
        }
    }

    fn flush(&mut self) {
        for at in 0..self.peers.len() {
            if let Err(errno) = self.peers[at].flush() {
                // The goodbye or the notice that explains it may still lie in our receive queue.
                self.read(at);
                self.lost(at, errno);
            }
        }
    }

    fn wait(&mut self, timeout: Duration) {
        let bell = &self.shared.control_bell;
        let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
        let mut owners = Vec::new();
        for (at, peer) in self.peers.iter().enumerate() {
            let Some(fd) = &peer.fd else { continue };
            let write = if peer.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(fd, PollFlags::IN | write));
            owners.push(at);
        }
        let timeout = Timespec::try_from(timeout).expect("a heartbeat at most");
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "the control plane could not wait"),
        }
        let rung = fds[0].revents().contains(PollFlags::IN);
        let ready: Vec<usize> = fds[1..]
            .iter()
            .zip(&owners)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .map(|(_, at)| *at)
            .collect();
        drop(fds);
        if rung {
            self.shared.control_bell.silence();
        }
        for at in ready {
            self.read(at);
        }
    }

    fn read(&mut self, at: usize) {
        let ended = self.peers[at].receive();
        loop {
            let peer = &mut self.peers[at];
            match Control::decode_front(&peer.incoming) {
                Ok(Some((message, length))) => {
                    peer.incoming.drain(..length);
                    self.act(at, message);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(rank = peer.rank.0, %error, "control socket lost its place");
                    return self.lost(at, Errno::PROTO);
                }
            }
        }
        if let Some(errno) = ended {
            self.lost(at, errno);
        }
    }

    fn act(&mut self, at: usize, message: Control) {
        let peer = &mut self.peers[at];
        let rank = peer.rank;
        self.shared.with_peer(rank, |known| known.heard = Some(Instant::now()));
        match message {
            Control::Alive => {}
            Control::Entered(entered) => {
                self.shared.with_peer(rank, |known| known.entered = entered);
            }
            Control::Fate(Error::Aborted { rank: Rank(u32::MAX), reason }) => {
                self.shared.fail(Error::Aborted { rank, reason });
            }
            Control::Fate(fate) => self.shared.fail(fate),
            Control::Bye => {
                self.shared.with_peer(rank, |known| known.left = true);
                self.shared.engine_bell.ring();
            }
            Control::Memory { key, bytes } => match peer.fds.pop_front() {
                Some(fd) => self.shared.received_fd(rank, key, fd, bytes),
                None => tracing::error!(rank = rank.0, "a memory message came without memory"),
            },
        }
    }

    /// A socket has ended. Without a goodbye that is a death.
    fn lost(&mut self, at: usize, errno: Errno) {
        let peer = &mut self.peers[at];
        let rank = peer.rank;
        peer.fd = None;
        peer.outgoing.clear();
        if self.shared.with_peer(rank, |known| known.left) {
            return;
        }
        let seen_by = self.shared.rank;
        let unreachable = [Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH];
        self.shared.fail(if unreachable.contains(&errno) {
            let peer_timeout_ms = u64::try_from(self.peer_timeout.as_millis()).unwrap_or(u64::MAX);
            Error::PeerVanished { rank, seen_by, peer_timeout_ms }
        } else {
            Error::PeerDead { rank, seen_by }
        });
    }
}

impl Peer {
    fn flush(&mut self) -> std::result::Result<(), Errno> {
        let Some(fd) = &self.fd else {
            self.outgoing.clear();
            return Ok(());
        };
        while let Some((bytes, descriptor)) = self.outgoing.front() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let borrowed = descriptor.as_ref().map(|fd| [fd.as_fd()]);
            if let Some(fds) = borrowed.as_ref().filter(|_| self.sent == 0) {
                let fits = ancillary.push(SendAncillaryMessage::ScmRights(fds));
                debug_assert!(fits, "sized for one descriptor");
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(fd, &[IoSlice::new(&bytes[self.sent..])], &mut ancillary, flags) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            if self.sent == bytes.len() {
                self.sent = 0;
                self.outgoing.pop_front();
            }
        }
        Ok(())
    }

    /// Reads what is there; the reason when the socket has ended.
    fn receive(&mut self) -> Option<Errno> {
        let mut buffer = [0u8; 4096];
        loop {
            let fd = self.fd.as_ref()?;
            if self.incoming.len() > 4 * MAX_CONTROL {
                return Some(Errno::PROTO);
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let got = recvmsg(fd, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags);
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            match got {
                Ok(message) if message.bytes == 0 => return Some(Errno::CONNRESET),
                Ok(message) => {
                    self.incoming.extend(&buffer[..message.bytes]);
                    if message.bytes < buffer.len() {
                        return None;
                    }
                }
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(errno) => return Some(errno),
            }
        }
    }
}
