//! Tcp between nodes: several sockets (lanes) per peer, non-blocking, driven by whoever polls.
//!
//! A put is a 32-byte frame header and its payload. The receiver reads payloads straight into the registered region,
//! so there is one copy on each side, the kernel's. `cubic.rs` makes the sockets. TCP_USER_TIMEOUT is never set
//! here: the zero window of a stopped receiver would trip it; the control sockets have it.

#![allow(unsafe_code, reason = "reads from the network straight into registered memory")]

use super::{Event, Lane, Put, PutId, Region, Transport};
use crate::error::{Error, Result};
use crate::ids::{Generation, Rank};
use crate::memory::{Memory, SharedMemory};
use crate::wire::frame::{FRAME_BYTES, Frame};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bytes read from one socket per poll, so that a fast peer does not keep the others waiting.
const READ_PER_POLL: usize = 1 << 20;

/// Sockets served per poll; the others come next time.
const READY_PER_POLL: usize = 64;

/// Send buffer asked for. What it holds waits in the queue of the first slow link, the other direction's credits behind
/// it, and its pages have left the cache before they come round again: with 4 MiB, the usual limit, two hosts at 8 Gbit/s
/// reached 0.75 of the link, with this 0.98. One socket carries at most this per round trip, 2.5 GB/s at 100 microseconds;
/// further links want more sockets ([`crate::Options::data_sockets`]).
const SEND_BUFFER: usize = 256 << 10;

/// The tcp transport of one rank.
#[derive(Debug)]
pub struct Tcp {
    generation: Generation,
    epoll: OwnedFd,
    sockets: Vec<Socket>,
    /// `first[rank]` is the position of that rank's lane 0 in `sockets`; lanes follow each other.
    first: Vec<Option<usize>>,
    lanes: usize,
    regions: Vec<Arc<SharedMemory>>,
    done: VecDeque<PutId>,
    lost: Vec<Rank>,
    next_put: u64,
}

#[derive(Debug)]
struct Socket {
    fd: Option<OwnedFd>,
    peer: Rank,
    outgoing: VecDeque<Outgoing>,
    wants_write: bool,
    incoming: Incoming,
}

#[derive(Debug)]
struct Outgoing {
    id: PutId,
    header: [u8; FRAME_BYTES],
    source: Memory,
    sent: usize,
}

#[derive(Debug)]
struct Incoming {
    header: [u8; FRAME_BYTES],
    have: usize,
    /// Where the rest of the payload goes; `None` target: a frame of another generation, read and dropped.
    payload: Option<(Option<Memory>, usize, u32)>,
}

enum Broken {
    Closed,
    Garbage(String),
}

impl Tcp {
    /// A transport over connected sockets: per peer `lanes` of them, lane 0 first.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(generation: Generation, peers: Vec<(Rank, Vec<OwnedFd>)>) -> Result<Self> {
        let failed = |source| Error::io("preparing data sockets", source);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let lanes = peers.first().map_or(1, |(_, sockets)| sockets.len());
        let ranks = peers.iter().map(|(rank, _)| rank.index() + 1).max().unwrap_or(0);
        let mut first = vec![None; ranks];
        let mut sockets = Vec::new();
        for (peer, fds) in peers {
            assert_eq!(fds.len(), lanes, "every peer has the same number of lanes");
            first[peer.index()] = Some(sockets.len());
            for fd in fds {
                prepare(&fd).map_err(failed)?;
                let at = epoll::EventData::new_u64(sockets.len() as u64);
                epoll::add(&epoll, &fd, at, epoll::EventFlags::IN).map_err(failed)?;
                sockets.push(Socket::new(fd, peer));
            }
        }
        Ok(Self {
            generation,
            epoll,
            sockets,
            first,
            lanes,
            regions: Vec::new(),
            done: VecDeque::new(),
            lost: Vec::new(),
            next_put: 0,
        })
    }

    fn socket_of(&self, peer: Rank, lane: Lane) -> Option<usize> {
        let first = (*self.first.get(peer.index())?)?;
        // More lanes than sockets: data lanes share what there is, control keeps socket 0 when there are several.
        let lane = usize::from(lane.0);
        Some(
            first
                + if lane < self.lanes { lane } else { 1 + (lane - 1) % (self.lanes - 1).max(1) }
                    .min(self.lanes - 1),
        )
    }

    fn write(&mut self, at: usize) {
        let socket = &mut self.sockets[at];
        let result = socket.write(&mut self.done);
        match result {
            Ok(()) => self.watch_writes(at),
            Err(broken) => self.lose(at, &broken),
        }
    }

    fn watch_writes(&mut self, at: usize) {
        let socket = &mut self.sockets[at];
        let wants = !socket.outgoing.is_empty();
        let Some(fd) = socket.fd.as_ref().filter(|_| wants != socket.wants_write) else { return };
        let flags = if wants {
            epoll::EventFlags::IN | epoll::EventFlags::OUT
        } else {
            epoll::EventFlags::IN
        };
        if let Err(error) =
            epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(at as u64), flags)
        {
            tracing::error!(%error, "watching a data socket failed");
        }
        socket.wants_write = wants;
    }

    fn lose(&mut self, at: usize, broken: &Broken) {
        let peer = self.sockets[at].peer;
        if let Broken::Garbage(what) = broken {
            tracing::error!(rank = peer.0, what, "a data stream lost its place");
        }
        let Some(first) = self.first[peer.index()].take() else { return };
        for socket in &mut self.sockets[first..first + self.lanes] {
            socket.close(&mut self.done);
        }
        self.lost.push(peer);
    }
}

/// Options of a data socket.
fn prepare(fd: &OwnedFd) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    rustix::io::ioctl_fionbio(fd, true)?;
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_send_buffer_size(fd, SEND_BUFFER)?;
    Ok(())
}

impl Socket {
    fn new(fd: OwnedFd, peer: Rank) -> Self {
        Self {
            fd: Some(fd),
            peer,
            outgoing: VecDeque::new(),
            wants_write: false,
            incoming: Incoming { header: [0; FRAME_BYTES], have: 0, payload: None },
        }
    }

    /// Closes it; the sources of unfinished puts are free, since nothing reads them any more.
    fn close(&mut self, done: &mut VecDeque<PutId>) {
        self.fd = None;
        done.extend(self.outgoing.drain(..).map(|put| put.id));
    }

    /// Hands as much as the kernel takes.
    fn write(&mut self, done: &mut VecDeque<PutId>) -> std::result::Result<(), Broken> {
        let Some(fd) = &self.fd else { return Ok(()) };
        while let Some(put) = self.outgoing.front_mut() {
            // SAFETY: contract of `Put`: alive and unchanged until PutDone.
            let source = unsafe { put.source.bytes() };
            let header = &put.header[put.sent.min(FRAME_BYTES)..];
            let body = &source[put.sent.saturating_sub(FRAME_BYTES)..];
            let parts = [IoSlice::new(header), IoSlice::new(body)];
            let mut no_ancillary = SendAncillaryBuffer::default();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(fd, &parts, &mut no_ancillary, flags) {
                Ok(n) => put.sent += n,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(_) => return Err(Broken::Closed),
            }
            if put.sent == FRAME_BYTES + source.len() {
                done.push_back(put.id);
                self.outgoing.pop_front();
            }
        }
        Ok(())
    }

    /// Reads what is there, up to [`READ_PER_POLL`].
    fn read(
        &mut self,
        generation: Generation,
        regions: &[Arc<SharedMemory>],
        events: &mut Vec<Event>,
    ) -> std::result::Result<(), Broken> {
        let mut budget = READ_PER_POLL;
        while budget > 0 {
            let Some(fd) = &self.fd else { return Ok(()) };
            let incoming = &mut self.incoming;
            let target = incoming.target(budget);
            match rustix::net::recv(fd, target, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Broken::Closed),
                Ok((_, n)) => {
                    budget = budget.saturating_sub(n);
                    if let Some(imm) = incoming.advance(n, generation, regions)? {
                        events.push(Event::Arrived { peer: self.peer, imm });
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Broken::Closed),
            }
        }
        Ok(())
    }
}

thread_local! {
    /// Where the payload of dropped frames goes.
    static WASTE: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Incoming {
    /// Where the next bytes go.
    fn target(&mut self, budget: usize) -> &mut [u8] {
        match &mut self.payload {
            None => &mut self.header[self.have..],
            Some((Some(memory), left, _)) => {
                let at = memory.len() - *left;
                // SAFETY: inside a registered region of ours (checked in `begin`), which `Tcp` keeps alive; the bytes
                // belong to this peer until we report its immediate.
                unsafe { memory.slice(at..at + (*left).min(budget)).bytes_mut() }
            }
            Some((None, left, _)) => {
                let wanted = (*left).min(1 << 16);
                let pointer = WASTE.with_borrow_mut(|waste| {
                    waste.resize(1 << 16, 0);
                    Memory::of(&mut waste[..wanted])
                });
                // SAFETY: this thread's own buffer, used by nobody else before the next call.
                unsafe { pointer.bytes_mut() }
            }
        }
    }

    /// Takes note of `n` bytes; the immediate when a put is complete.
    fn advance(
        &mut self,
        n: usize,
        generation: Generation,
        regions: &[Arc<SharedMemory>],
    ) -> std::result::Result<Option<u32>, Broken> {
        match &mut self.payload {
            None => {
                self.have += n;
                if self.have == FRAME_BYTES {
                    self.begin(generation, regions)?;
                }
            }
            Some((_, left, _)) => *left -= n,
        }
        if let Some((target, 0, imm)) = self.payload {
            self.payload = None;
            self.have = 0;
            return Ok(target.map(|_| imm));
        }
        Ok(None)
    }

    fn begin(
        &mut self,
        generation: Generation,
        regions: &[Arc<SharedMemory>],
    ) -> std::result::Result<(), Broken> {
        let frame =
            Frame::decode(&self.header).map_err(|error| Broken::Garbage(error.to_string()))?;
        let length = frame.length as usize;
        if frame.generation != generation {
            self.payload = Some((None, length, frame.imm));
            return Ok(());
        }
        let region = regions.get(frame.region as usize);
        let start = usize::try_from(frame.offset).unwrap_or(usize::MAX);
        let inside = region.filter(|region| start.saturating_add(length) <= region.len());
        let Some(region) = inside else {
            return Err(Broken::Garbage(format!("frame outside of region {}", frame.region)));
        };
        let target = region.memory().slice(start..start + length);
        self.payload = Some((Some(target), length, frame.imm));
        Ok(())
    }
}

impl Transport for Tcp {
    fn register(&mut self, memory: Arc<SharedMemory>) -> Result<Region> {
        let number = u32::try_from(self.regions.len()).expect("a handful of regions");
        self.regions.push(memory);
        Ok(Region(number))
    }

    fn put(&mut self, put: Put) -> Result<PutId> {
        let id = PutId(self.next_put);
        self.next_put += 1;
        let length = u32::try_from(put.source.len())
            .map_err(|_| Error::Invalid(format!("put of {} bytes", put.source.len())))?;
        let frame = Frame {
            generation: self.generation,
            region: put.region.0,
            offset: put.offset,
            length,
            imm: put.imm,
        };
        let Some(at) = self.socket_of(put.peer, put.lane) else {
            self.done.push_back(id);
            return Ok(id);
        };
        let socket = &mut self.sockets[at];
        let idle = socket.outgoing.is_empty();
        socket.outgoing.push_back(Outgoing {
            id,
            header: frame.encode(),
            source: put.source,
            sent: 0,
        });
        if idle {
            self.write(at);
        }
        Ok(id)
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut space = [MaybeUninit::uninit(); READY_PER_POLL];
        let ready: &[epoll::Event] = match epoll::wait(&self.epoll, &mut space, Some(&now)) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => &[],
            Err(error) => {
                tracing::error!(%error, "waiting on data sockets failed");
                &[]
            }
        };
        for event in ready {
            let at = usize::try_from(event.data.u64()).expect("our own index");
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.write(at);
            }
            if flags
                .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
            {
                let read = self.sockets[at].read(self.generation, &self.regions, events);
                if let Err(broken) = read {
                    self.lose(at, &broken);
                }
            }
        }
        events.extend(self.done.drain(..).map(Event::PutDone));
        events.extend(self.lost.drain(..).map(|peer| Event::PeerLost { peer }));
    }

    fn arm(&mut self) -> bool {
        self.done.is_empty() && self.lost.is_empty()
    }

    fn wait_on(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.epoll.as_fd()]
    }

    fn abort(&mut self) {
        for socket in &mut self.sockets {
            socket.close(&mut self.done);
        }
        self.first.fill(None);
        self.done.clear();
        self.lost.clear();
    }

    fn is_network(&self, _peer: Rank) -> bool {
        true
    }
}
