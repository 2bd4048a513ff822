//! From the table of the rendezvous to connected transports: who connects to whom, and what they exchange first.
//!
//! For every pair the higher rank connects to the lower. Ranks of one node use a Unix socket in the abstract namespace
//! (nothing to clean up), over which mailbox, arena and bell travel as descriptors; ranks of different nodes use one
//! tcp control socket and one per lane. When a rank of the same node cannot be reached over its Unix socket (another
//! container, another network namespace), the pair falls back to tcp, with one warning.

use crate::control::Link;
use crate::door::{Blocking, Door, Guest, knock};
use crate::error::{Error, Result};
use crate::ids::{Attempt, Generation, Node, Rank};
use crate::memory::SharedMemory;
use crate::rendezvous::{Candidate, Watch, join, limit_waits};
use crate::secret::{Secret, random_bytes};
use crate::transport::Bell;
use crate::transport::cubic;
use crate::transport::shm::{Local, Mailbox};
use crate::wire::handshake::{Hello, Purpose};
use crate::wire::table::Entry;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who this process is, and where the others are to be found.
#[derive(Debug, Clone)]
pub struct Membership {
    /// This rank.
    pub rank: Rank,
    /// How many there are.
    pub ranks: usize,
    /// The node of this rank: ranks with the same number share memory.
    pub node: Node,
    /// Of the job.
    pub attempt: Attempt,
    /// Of the communicator to form.
    pub generation: Generation,
    /// The rendezvous.
    pub rendezvous: SocketAddr,
    /// The address other nodes reach this one at; by default the one that reaches the rendezvous.
    pub address: Option<IpAddr>,
    /// The attempt's secret.
    pub secret: Secret,
}

/// The connections of one rank.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
    pub(crate) control: Vec<Link>,
    pub(crate) locals: Vec<Local>,
    pub(crate) local_index: usize,
    pub(crate) remotes: Vec<(Rank, Vec<OwnedFd>)>,
}

/// What this rank shares with the others of its node.
#[derive(Debug)]
pub(crate) struct Shares<'a> {
    pub(crate) arena: &'a Arc<SharedMemory>,
    pub(crate) bell: &'a Bell,
}

/// Sockets of a pair as they come in.
#[derive(Debug, Default)]
struct Pair {
    control: Option<(OwnedFd, bool)>,
    lanes: BTreeMap<u8, OwnedFd>,
}

impl Pair {
    fn is_complete(&self, sockets: u8) -> bool {
        match &self.control {
            Some((_, true)) => true,
            Some((_, false)) => self.lanes.len() == usize::from(sockets),
            None => false,
        }
    }
}

/// Meets the others and connects to all of them. `sockets`: tcp data sockets per pair. The mailbox is made by the
/// caller once the number of local ranks is known.
pub(crate) fn connect(
    me: &Membership,
    sockets: u8,
    timeout: Duration,
    shares: &Shares<'_>,
) -> Result<(Mesh, Mailbox)> {
    let deadline = Instant::now() + timeout;
    let unique = u64::from_le_bytes(random_bytes()?[..8].try_into().expect("8 of 32 bytes"));
    let word = format!("{}/{}/{}/{unique}", me.attempt, me.generation, me.rank);
    let local_name = format!("lampyris-{}", &me.secret.name(word.as_bytes()).to_hex()[..32]);
    let failed = |source| Error::io("listening for the other ranks", source);
    let unix = UnixAddr::from_abstract_name(&local_name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .map_err(failed)?;
    let mut tcp = None;
    let candidate = Candidate {
        rank: me.rank,
        ranks: me.ranks,
        attempt: me.attempt,
        generation: me.generation,
        server: me.rendezvous,
        secret: &me.secret,
        timeout,
    };
    let (table, watch) = join(&candidate, |here| {
        let address = SocketAddr::new(me.address.unwrap_or(here.ip()), 0);
        let listener = cubic::listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        tcp = Some(listener);
        Ok(Entry { rank: me.rank, node: me.node, address, local: local_name.clone() })
    })?;
    let tcp = tcp.expect("join called the closure");
    let listeners = vec![(OwnedFd::from(tcp), false), (OwnedFd::from(unix), true)];
    let door = Door::new(listeners, me.secret.clone())?;
    let pairs = meet(me, &table, sockets, (door, &watch), (deadline, timeout));
    let ended = pairs.and_then(|pairs| settle(me, &table, pairs, shares, timeout));
    match ended {
        Ok(mesh) => {
            watch.connected();
            Ok(mesh)
        }
        // A connection may break before the rendezvous has said whose death broke it.
        Err(error) => Err(watch.check(VERDICT).err().unwrap_or(error)),
    }
}

/// How long the rendezvous has to name the dead after a connection broke.
const VERDICT: Duration = Duration::from_millis(400);

/// Connects to the lower ranks on a helper thread while accepting the higher ones.
fn meet(
    me: &Membership,
    table: &[Entry],
    sockets: u8,
    (mut door, watch): (Door, &Watch),
    (deadline, timeout): (Instant, Duration),
) -> Result<BTreeMap<Rank, Pair>> {
    let (above, below) = (me.rank.index() + 1, &table[..me.rank.index()]);
    let mut pairs: BTreeMap<Rank, Pair> = BTreeMap::new();
    let dialled = std::thread::scope(|scope| {
        let dial = scope.spawn(|| {
            let dial = |entry| dial(me, entry, sockets, deadline).map(|pair| (entry.rank, pair));
            below.iter().map(dial).collect::<Result<Vec<_>>>()
        });
        let mut missing = (above..me.ranks).count();
        let mut accepted = Ok(());
        while missing > 0 && Instant::now() < deadline && accepted.is_ok() {
            accepted = watch.check(Duration::ZERO);
            match door.wait(deadline.saturating_duration_since(Instant::now()).min(TICK)) {
                Ok(guests) => guests.into_iter().for_each(|guest| seat(me, guest, &mut pairs)),
                Err(error) => {
                    accepted = Err(error);
                    break;
                }
            }
            let complete = pairs.values().filter(|pair| pair.is_complete(sockets)).count();
            missing = me.ranks - above - complete;
        }
        let dialled = dial.join().expect("dialling does not panic");
        accepted.and(dialled)
    })?;
    pairs.extend(dialled);
    let all = (0..me.ranks).map(Rank::of).filter(|rank| *rank != me.rank);
    let missing: Vec<Rank> =
        all.filter(|rank| !pairs.get(rank).is_some_and(|pair| pair.is_complete(sockets))).collect();
    if missing.is_empty() {
        return Ok(pairs);
    }
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    Err(Error::ConnectIncomplete { missing, timeout_ms })
}

/// How long to wait for connections before looking at the clock again.
const TICK: Duration = Duration::from_millis(100);

/// Puts an accepted connection where it belongs; one of another attempt or generation is dropped.
fn seat(me: &Membership, guest: Guest, pairs: &mut BTreeMap<Rank, Pair>) {
    let hello = guest.hello;
    let ours = (me.attempt, me.generation, me.rank);
    let from_above = hello.from > me.rank && hello.from.index() < me.ranks;
    if (hello.attempt, hello.generation, hello.to) != ours || !from_above {
        tracing::warn!(rank = hello.from.0, "dropped a connection that is not for this generation");
        return;
    }
    let pair = pairs.entry(hello.from).or_default();
    match hello.purpose {
        Purpose::Control => pair.control = Some((guest.fd, guest.local)),
        Purpose::Data(lane) => {
            pair.lanes.insert(lane, guest.fd);
        }
        Purpose::Rendezvous => tracing::warn!("a rank is not the rendezvous"),
    }
}

fn dial(me: &Membership, entry: &Entry, sockets: u8, deadline: Instant) -> Result<Pair> {
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let greet = |fd: OwnedFd, purpose| -> Result<OwnedFd> {
        let failed = |errno: rustix::io::Errno| Error::io("preparing a connection", errno);
        limit_waits(&fd, left()).map_err(failed)?;
        let (attempt, generation) = (me.attempt, me.generation);
        let nonce = random_bytes()?;
        let hello = Hello { attempt, generation, from: me.rank, to: entry.rank, purpose, nonce };
        knock(&fd, &me.secret, &hello)?;
        Ok(fd)
    };
    if entry.node == me.node {
        let unix = UnixAddr::from_abstract_name(&entry.local)
            .and_then(|address| UnixStream::connect_addr(&address));
        match unix {
            Ok(stream) => {
                let fd = greet(stream.into(), Purpose::Control)?;
                return Ok(Pair { control: Some((fd, true)), lanes: BTreeMap::new() });
            }
            Err(error) => tracing::warn!(
                rank = entry.rank.0, %error,
                "no Unix socket to a rank of this node: using tcp between us"
            ),
        }
    }
    let address: SocketAddr = entry.address.parse().map_err(|_| {
        Error::Invalid(format!("rank {} has no address: {:?}", entry.rank, entry.address))
    })?;
    let stream = |purpose| {
        let fd = cubic::connect(address, left())
            .map_err(|e| Error::io(format!("connecting to rank {} at {address}", entry.rank), e))?;
        greet(fd, purpose)
    };
    let mut pair = Pair::default();
    for lane in 0..sockets {
        pair.lanes.insert(lane, stream(Purpose::Data(lane))?);
    }
    pair.control = Some((stream(Purpose::Control)?, false));
    Ok(pair)
}

/// Exchanges memory inside the node and sorts the sockets.
fn settle(
    me: &Membership,
    table: &[Entry],
    pairs: BTreeMap<Rank, Pair>,
    shares: &Shares<'_>,
    timeout: Duration,
) -> Result<(Mesh, Mailbox)> {
    // Everybody who is reached over a Unix socket, and this rank: the same list on all of them.
    let is_local = |entry: &&Entry| {
        entry.rank == me.rank
            || matches!(pairs.get(&entry.rank), Some(Pair { control: Some((_, true)), .. }))
    };
    let node: Vec<Rank> = table.iter().filter(is_local).map(|entry| entry.rank).collect();
    let index_of = |rank: Rank| node.iter().position(|other| *other == rank);
    let mailbox = Mailbox::create(node.len())?;
    let mut mesh = Mesh {
        nodes: table.iter().map(|entry| entry.node).collect(),
        control: Vec::new(),
        locals: Vec::new(),
        local_index: index_of(me.rank).expect("in its own list"),
        remotes: Vec::new(),
    };
    for (rank, pair) in pairs {
        let (fd, local) = pair.control.expect("complete pairs only");
        limit_waits(&fd, timeout).map_err(|errno| Error::io("preparing a connection", errno))?;
        if local {
            give(&fd, &mailbox, shares)?;
        } else {
            mesh.remotes.push((rank, pair.lanes.into_values().collect()));
        }
        mesh.control.push(Link { rank, fd, local });
    }
    for link in mesh.control.iter().filter(|link| link.local) {
        let index = index_of(link.rank).expect("local by definition");
        mesh.locals.push(take(link, index, node.len())?);
    }
    Ok((mesh, mailbox))
}

fn give(fd: &OwnedFd, mailbox: &Mailbox, shares: &Shares<'_>) -> Result<()> {
    let fds = [mailbox.memory().as_fd(), shares.arena.as_fd(), shares.bell.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(fits, "sized for three descriptors");
    let bytes = (shares.arena.len() as u64).to_le_bytes();
    let sent = sendmsg(fd, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    match sent {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(Error::Invalid("the Unix socket took half a message".into())),
        Err(errno) => Err(Error::io("sharing memory inside the node", errno)),
    }
}

fn take(link: &Link, index: usize, locals: usize) -> Result<Local> {
    let what = || format!("memory of rank {}", link.rank);
    let mut bytes = [0u8; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(&link.fd, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags);
    let got = got.map_err(|errno| Error::io(what(), errno))?.bytes;
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
        _ => None,
    });
    let fds = fds.next().unwrap_or_default();
    let [mailbox, arena, bell] = <[OwnedFd; 3]>::try_from(fds)
        .ok()
        .filter(|_| got > 0)
        .ok_or_else(|| Error::Invalid(format!("{} did not come", what())))?;
    // The rest of the eight bytes, should the kernel have split them.
    if got < bytes.len() {
        Blocking(&link.fd).receive(&mut bytes[got..]).map_err(|errno| Error::io(what(), errno))?;
    }
    let arena_bytes = usize::try_from(u64::from_le_bytes(bytes)).unwrap_or(usize::MAX);
    let mailbox = SharedMemory::from_fd(mailbox, Mailbox::bytes(locals))?;
    let arena = SharedMemory::from_fd(arena, arena_bytes)?;
    Ok(Local {
        rank: link.rank,
        index,
        mailbox: Mailbox::of(mailbox, locals),
        bell: Bell::from_fd(bell),
        regions: vec![arena],
    })
}
