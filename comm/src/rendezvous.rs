//! Where the ranks of an attempt find each other: each joins with its addresses, and all get the table at once.
//!
//! The server belongs to whoever starts the job (or to rank 0); it holds no state between formings, so a new
//! generation after a failure is the same call again, possibly with fewer ranks. Everything has a deadline, and the
//! error names the ranks that did not come. A rank keeps its connection until it is connected to all others, so one that
//! dies before is told to the others at once.

use crate::door::{Blocking, Door, Guest, knock};
use crate::error::{Error, Result};
use crate::ids::{Attempt, Generation, Rank};
use crate::secret::{Secret, random_bytes};
use crate::wire::handshake::{Hello, Purpose};
use crate::wire::table::{Entry, Join, MAX_MESSAGE, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the server looks at deadlines and at its own end.
const TICK: Duration = Duration::from_millis(50);

/// Time for one rank that is through the door to say or hear its message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// A running rendezvous. Ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The ranks that have come for one generation, later those that are not yet connected to all others.
struct Forming {
    ranks: usize,
    since: Instant,
    told: bool,
    joined: BTreeMap<Rank, (Entry, OwnedFd)>,
}

/// What a rank says when it needs the rendezvous no more.
const CONNECTED: u8 = 1;

impl Server {
    /// Listens at `address` for the ranks of one attempt. Whoever has come for a generation is told after
    /// `timeout` who is missing.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub fn start(
        address: SocketAddr,
        secret: Secret,
        attempt: Attempt,
        timeout: Duration,
    ) -> Result<Self> {
        let failed = |source| Error::io(format!("rendezvous at {address}"), source);
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut door = Door::new(vec![(listener.into(), false)], secret)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            let mut forming: BTreeMap<Generation, Forming> = BTreeMap::new();
            while !stopped.load(Ordering::Acquire) {
                match door.wait(TICK) {
                    Ok(guests) => {
                        for guest in guests {
                            welcome(guest, attempt, &mut forming);
                        }
                    }
                    Err(error) => tracing::error!(%error, "the rendezvous cannot listen"),
                }
                forming.retain(|_, group| !settle(group, timeout));
            }
        };
        let thread =
            std::thread::Builder::new().name("rendezvous".into()).spawn(serve).map_err(failed)?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where ranks find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the rendezvous thread panicked");
        }
    }
}

fn welcome(guest: Guest, attempt: Attempt, forming: &mut BTreeMap<Generation, Forming>) {
    let (hello, fd) = (guest.hello, guest.fd);
    if let Err(error) = limit_waits(&fd, MESSAGE_TIMEOUT) {
        tracing::warn!(%error, rank = hello.from.0, "lost a rank at the door");
        return;
    }
    let refuse = |why: String| {
        tracing::warn!(rank = hello.from.0, why, "refused a rank");
        tell(&fd, &Reply::Refused(why));
    };
    if hello.purpose != Purpose::Rendezvous {
        return refuse("this is the rendezvous, not a rank".into());
    }
    if hello.attempt != attempt {
        let theirs = hello.attempt;
        return refuse(format!("attempt {theirs} is over: this is attempt {attempt}"));
    }
    let join = Blocking(&fd)
        .receive_message(MAX_MESSAGE)
        .ok()
        .and_then(|bytes| Join::decode(&bytes).ok())
        .filter(|join| join.entry.rank == hello.from);
    let Some(join) = join else { return refuse("malformed join".into()) };
    let ranks = join.ranks as usize;
    let group = forming.entry(hello.generation).or_insert_with(|| Forming {
        ranks,
        since: Instant::now(),
        told: false,
        joined: BTreeMap::new(),
    });
    if group.told {
        return refuse(format!("generation {} is complete", hello.generation));
    }
    if group.ranks != ranks {
        let expected = group.ranks;
        return refuse(format!("this rank expects {ranks} ranks, others {expected}"));
    }
    if group.joined.contains_key(&hello.from) {
        return refuse(format!("rank {} has joined already", hello.from));
    }
    group.joined.insert(hello.from, (join.entry, fd));
}

/// Answers a forming that is complete, overdue, or has lost a rank; `true` when it is over.
fn settle(group: &mut Forming, timeout: Duration) -> bool {
    if group.told {
        group.joined.retain(|_, (_, fd)| !(has_word(fd) && says_connected(fd)));
    }
    let lost = group.joined.iter().find(|(_, (_, fd))| has_word(fd)).map(|(rank, _)| *rank);
    let reply = if let Some(rank) = lost {
        group.joined.remove(&rank);
        Reply::Gone(rank)
    } else if group.told {
        return group.joined.is_empty() || group.since.elapsed() > timeout;
    } else if group.joined.len() == group.ranks {
        (group.told, group.since) = (true, Instant::now());
        Reply::Table(group.joined.values().map(|(entry, _)| entry.clone()).collect())
    } else if group.since.elapsed() > timeout {
        let all = (0..group.ranks).map(Rank::of);
        Reply::Missing(all.filter(|rank| !group.joined.contains_key(rank)).collect())
    } else {
        return false;
    };
    for (_, fd) in group.joined.values() {
        tell(fd, &reply);
    }
    !matches!(reply, Reply::Table(_))
}

/// Whether a rank that owes a word has said it; one that has hung up says the end of the stream.
fn says_connected(fd: &OwnedFd) -> bool {
    let mut word = [0];
    matches!(rustix::io::read(fd, &mut word), Ok(1)) && word == [CONNECTED]
}

fn tell(fd: &OwnedFd, reply: &Reply) {
    if let Err(error) = Blocking(fd).send_message(&reply.encode()) {
        tracing::warn!(%error, "a rank did not hear the rendezvous");
    }
}

/// Whether there is something to read, were it the end.
fn has_word(fd: &OwnedFd) -> bool {
    hears(fd, Duration::ZERO)
}

fn hears(fd: &OwnedFd, within: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN | PollFlags::RDHUP)];
    let within = Timespec::try_from(within).expect("seconds at most");
    matches!(poll(&mut fds, Some(&within)), Ok(n) if n > 0)
}

/// The connection to the rendezvous after the table has come: tells of ranks that die before all are connected.
#[derive(Debug)]
pub(crate) struct Watch {
    rank: Rank,
    fd: OwnedFd,
}

impl Watch {
    /// An error when a rank has died, heard within this time.
    pub(crate) fn check(&self, within: Duration) -> Result<()> {
        if !hears(&self.fd, within) {
            return Ok(());
        }
        let reply = Blocking(&self.fd).receive_message(MAX_MESSAGE).ok();
        match reply.and_then(|bytes| Reply::decode(&bytes).ok()) {
            Some(Reply::Gone(rank)) => Err(Error::PeerDead { rank, seen_by: self.rank }),
            // The rendezvous has ended: nobody watches any more, which is no reason to fail.
            _ => Ok(()),
        }
    }

    /// This rank is connected to all others.
    pub(crate) fn connected(self) {
        if let Err(error) = rustix::io::write(&self.fd, &[CONNECTED]) {
            tracing::debug!(%error, "the rendezvous has ended already");
        }
    }
}

pub(crate) fn limit_waits(fd: &OwnedFd, timeout: Duration) -> rustix::io::Result<()> {
    set_socket_timeout(fd, Timeout::Recv, Some(timeout))?;
    set_socket_timeout(fd, Timeout::Send, Some(timeout))
}

/// What a rank brings to the rendezvous.
pub(crate) struct Candidate<'a> {
    pub(crate) rank: Rank,
    pub(crate) ranks: usize,
    pub(crate) attempt: Attempt,
    pub(crate) generation: Generation,
    pub(crate) server: SocketAddr,
    pub(crate) secret: &'a Secret,
    pub(crate) timeout: Duration,
}

/// Joins and waits for the table. `entry` makes this rank's entry from the local address of the connection.
pub(crate) fn join(
    me: &Candidate<'_>,
    entry: impl FnOnce(SocketAddr) -> Result<Entry>,
) -> Result<(Vec<Entry>, Watch)> {
    let server = me.server;
    let failed = |source: std::io::Error| Error::io(format!("rendezvous at {server}"), source);
    let deadline = Instant::now() + me.timeout;
    let stream = reach(server, deadline).map_err(failed)?;
    let here = stream.local_addr().map_err(failed)?;
    let fd: OwnedFd = stream.into();
    // The server answers after its own timeout; ours only guards against a server that is gone.
    let patience = deadline.saturating_duration_since(Instant::now()) + MESSAGE_TIMEOUT;
    limit_waits(&fd, patience).map_err(|errno| failed(errno.into()))?;
    let hello = Hello {
        attempt: me.attempt,
        generation: me.generation,
        from: me.rank,
        to: Rank(0),
        purpose: Purpose::Rendezvous,
        nonce: random_bytes()?,
    };
    knock(&fd, me.secret, &hello)?;
    let ranks = u32::try_from(me.ranks).expect("at most MAX_RANKS");
    let join = Join { entry: entry(here)?, ranks };
    let mut file = Blocking(&fd);
    let sent = file.send_message(&join.encode());
    // A server that refuses hangs up without reading: its reason has arrived even if sending failed.
    let reply = match (sent, file.receive_message(MAX_MESSAGE)) {
        (_, Ok(reply)) => reply,
        (Err(errno), Err(_)) | (Ok(()), Err(errno)) => return Err(failed(errno.into())),
    };
    match Reply::decode(&reply) {
        Ok(Reply::Table(entries)) if entries.len() == me.ranks => {
            Ok((entries, Watch { rank: me.rank, fd }))
        }
        Ok(Reply::Gone(rank)) => Err(Error::PeerDead { rank, seen_by: me.rank }),
        Ok(Reply::Table(_)) => {
            Err(Error::Invalid("the rendezvous sent a table of other size".into()))
        }
        Ok(Reply::Missing(missing)) => Err(Error::RendezvousIncomplete {
            attempt: me.attempt,
            generation: me.generation,
            missing,
            timeout_ms: u64::try_from(me.timeout.as_millis()).unwrap_or(u64::MAX),
        }),
        Ok(Reply::Refused(reason)) => Err(Error::Refused { rank: me.rank, reason }),
        Err(error) => Err(Error::Invalid(format!("the rendezvous sent a reply with {error}"))),
    }
}

/// Connects, trying again while nobody listens yet.
fn reach(server: SocketAddr, deadline: Instant) -> std::io::Result<TcpStream> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(TICK);
        match TcpStream::connect_timeout(&server, left) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error),
            // Not listening yet: the starter may still be on its way. Bounded by the deadline.
            Err(_) => std::thread::sleep(TICK),
        }
    }
}
