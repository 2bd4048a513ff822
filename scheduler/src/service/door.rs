//! Who is connected: every connection is counted from its first moment. One that does not show in time who it is, by a call
//! with the token, is closed; when there are too many of those, the oldest goes.
//!
//! So strangers cost a fixed number of open files whatever they do, and a client that has the token gets in beside them.

use super::refusals::Refusals;
use crate::limits;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::Status;

/// Where a connection comes from, as far as its share of places goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// A machine. Of IPv6 the /64, all of which one machine may have.
    Machine(IpAddr),
    /// A user of a Unix socket, as the kernel says.
    User(u32),
}

impl Origin {
    pub(super) fn of_machine(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let prefix = u128::from(v6) & (u128::MAX << 64);
                Origin::Machine(IpAddr::V6(prefix.into()))
            }
            v4 => Origin::Machine(v4),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Machine(IpAddr::V6(prefix)) => write!(f, "{prefix}/64"),
            Origin::Machine(address) => write!(f, "{address}"),
            Origin::User(uid) => write!(f, "user {uid}"),
        }
    }
}

/// How many connections and streams there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) connections: usize,
    pub(crate) strangers: usize,
    pub(crate) strangers_per_address: usize,
    pub(crate) people: usize,
    pub(crate) people_per_address: usize,
    pub(crate) streams: usize,
    pub(crate) streams_per_address: usize,
    pub(crate) streams_per_connection: usize,
    pub(crate) first_request: Duration,
}

impl Places {
    /// The usual ones, as far as `files` open files allow: an eighth is kept back, at least a quarter of the connections is
    /// the workers'.
    pub(crate) fn for_files(files: usize) -> Places {
        let connections = limits::CONNECTIONS.min(files.saturating_sub(files / 8)).max(16);
        let strangers = limits::STRANGERS.min(connections / 4);
        let people = limits::PEOPLE.min(connections / 2);
        Places {
            connections,
            strangers,
            strangers_per_address: limits::STRANGERS_PER_ADDRESS.min(strangers),
            people,
            people_per_address: limits::PEOPLE_PER_ADDRESS.min(people),
            streams: limits::STREAMS,
            streams_per_address: limits::STREAMS_PER_ADDRESS,
            streams_per_connection: limits::STREAMS_PER_CONNECTION,
            first_request: limits::FIRST_REQUEST,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Stranger,
    Person,
    Worker,
    /// Pushed out: closes as soon as it notices.
    Leaving,
}

struct Connection {
    origin: Origin,
    standing: Standing,
    streams: usize,
    /// Of a stranger: told when it is known, dropped when it has to go.
    waits: Option<oneshot::Sender<()>>,
}

/// Connections of one address.
#[derive(Debug, Default)]
struct Share {
    connections: usize,
    strangers: usize,
    people: usize,
    streams: usize,
}

#[derive(Default)]
struct Tally {
    next: u64,
    connections: BTreeMap<u64, Connection>,
    strangers: BTreeSet<u64>,
    people: usize,
    streams: usize,
    shares: HashMap<Origin, Share>,
}

impl Tally {
    fn share(&mut self, origin: Origin) -> &mut Share {
        self.shares.entry(origin).or_default()
    }

    /// Changes what a connection counts as.
    fn stand(&mut self, number: u64, now: Standing) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let (origin, before) = (connection.origin, connection.standing);
        connection.standing = now;
        self.count(origin, before, false);
        self.count(origin, now, true);
        match now {
            Standing::Stranger => self.strangers.insert(number),
            _ => self.strangers.remove(&number),
        };
    }

    fn count(&mut self, origin: Origin, standing: Standing, more: bool) {
        let change = |count: &mut usize| {
            *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
        };
        match standing {
            Standing::Stranger => change(&mut self.share(origin).strangers),
            Standing::Person => {
                change(&mut self.people);
                change(&mut self.share(origin).people);
            }
            Standing::Worker | Standing::Leaving => {}
        }
    }

    /// Shows the oldest stranger (of `origin`) the door.
    fn push_out(&mut self, origin: Option<Origin>) {
        let of = |number: &&u64| {
            let connection = self.connections.get(number);
            origin.is_none() || connection.map(|connection| connection.origin) == origin
        };
        let Some(oldest) = self.strangers.iter().find(of).copied() else { return };
        self.stand(oldest, Standing::Leaving);
        if let Some(connection) = self.connections.get_mut(&oldest) {
            connection.waits = None;
        }
    }

    fn leave(&mut self, number: u64) {
        let Some(gone) = self.connections.remove(&number) else { return };
        self.strangers.remove(&number);
        self.count(gone.origin, gone.standing, false);
        let share = self.share(gone.origin);
        share.connections = share.connections.saturating_sub(1);
        if share.connections == 0 {
            self.shares.remove(&gone.origin);
        }
    }
}

/// Counts who is connected.
#[derive(Clone)]
pub(super) struct Door {
    places: Places,
    tally: Arc<Mutex<Tally>>,
    refusals: Arc<Refusals>,
}

/// A place that a new connection has got.
pub(super) struct Admission {
    pub(super) peer: Peer,
    /// Resolves when it is known, or has to go.
    pub(super) known: oneshot::Receiver<()>,
    /// How long that may take.
    pub(super) first_request: Duration,
}

impl Door {
    pub(super) fn new(places: Places) -> Door {
        Door { places, tally: Arc::default(), refusals: Arc::default() }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// A place for a new connection; none if all are taken.
    pub(super) fn admit(&self, origin: Origin) -> Option<Admission> {
        let mut tally = self.tally();
        if tally.connections.len() >= self.places.connections {
            // The next one may find the place of this one.
            tally.push_out(None);
            return None;
        }
        if tally.share(origin).strangers >= self.places.strangers_per_address {
            tally.push_out(Some(origin));
        }
        if tally.strangers.len() >= self.places.strangers {
            tally.push_out(None);
        }
        let (waits, known) = oneshot::channel();
        tally.next = tally.next.saturating_add(1);
        let number = tally.next;
        let standing = Standing::Stranger;
        let connection = Connection { origin, standing, streams: 0, waits: Some(waits) };
        tally.connections.insert(number, connection);
        tally.strangers.insert(number);
        let share = tally.share(origin);
        share.connections = share.connections.saturating_add(1);
        share.strangers = share.strangers.saturating_add(1);
        drop(tally);
        let guest = Guest { number, origin, is_known: AtomicBool::new(false), door: self.clone() };
        let peer = Peer { guest: Arc::new(guest) };
        Some(Admission { peer, known, first_request: self.places.first_request })
    }
}

/// A connection's place; free again when the last of its calls is over.
struct Guest {
    number: u64,
    origin: Origin,
    is_known: AtomicBool,
    door: Door,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.door.tally().leave(self.number);
    }
}

/// Who makes a call: every request carries it.
#[derive(Clone)]
pub(super) struct Peer {
    guest: Arc<Guest>,
}

impl Peer {
    /// Where it comes from.
    pub(super) fn origin(&self) -> Origin {
        self.guest.origin
    }

    /// Notes a call with a wrong token.
    pub(super) fn refused(&self) {
        self.guest.door.refusals.note(self.guest.origin);
    }

    /// It has shown who it is.
    pub(super) fn recognise(&self) -> Result<(), Status> {
        if self.guest.is_known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (guest, places) = (&self.guest, self.guest.door.places);
        let mut tally = guest.door.tally();
        let of_address = tally.share(guest.origin).people;
        if tally.people >= places.people || of_address >= places.people_per_address {
            return Err(Status::resource_exhausted(
                "too many connections: close some, or try again",
            ));
        }
        let waits = tally.connections.get_mut(&guest.number).and_then(|it| it.waits.take());
        // Without it, it has been pushed out: its connection is about to close.
        let waits = waits.ok_or_else(|| Status::unavailable("came too late: try again"))?;
        tally.stand(guest.number, Standing::Person);
        guest.is_known.store(true, Ordering::Relaxed);
        // A connection that has just closed does not wait any more.
        waits.send(()).ok();
        Ok(())
    }

    /// It is a worker's while the place is kept.
    pub(super) fn as_worker(&self) -> WorkerPlace {
        self.guest.door.tally().stand(self.guest.number, Standing::Worker);
        WorkerPlace { peer: self.clone() }
    }

    /// A place for a stream that people watch.
    pub(super) fn stream(&self) -> Result<StreamPlace, Status> {
        let (guest, places) = (&self.guest, self.guest.door.places);
        let mut tally = guest.door.tally();
        let own = tally.connections.get(&guest.number).map_or(0, |connection| connection.streams);
        let of_address = tally.share(guest.origin).streams;
        let full = |of: &str| {
            Err(Status::resource_exhausted(format!(
                "too many open streams of {of}: close some, or try again"
            )))
        };
        if own >= places.streams_per_connection {
            return full("this connection");
        }
        if of_address >= places.streams_per_address {
            return full("this address");
        }
        if tally.streams >= places.streams {
            return full("all clients");
        }
        tally.change_streams(guest, true);
        Ok(StreamPlace { peer: self.clone() })
    }
}

impl Tally {
    fn change_streams(&mut self, guest: &Guest, more: bool) {
        let change = |count: &mut usize| {
            *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
        };
        change(&mut self.streams);
        change(&mut self.share(guest.origin).streams);
        if let Some(connection) = self.connections.get_mut(&guest.number) {
            change(&mut connection.streams);
        }
    }
}

/// The place of a worker's connection.
pub(super) struct WorkerPlace {
    peer: Peer,
}

impl Drop for WorkerPlace {
    fn drop(&mut self) {
        let guest = &self.peer.guest;
        guest.door.tally().stand(guest.number, Standing::Person);
    }
}

/// The place of a stream.
pub(super) struct StreamPlace {
    peer: Peer,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let guest = &self.peer.guest;
        guest.door.tally().change_streams(guest, false);
    }
}

#[cfg(test)]
mod tests;
