//! A formed communicator: the ranks of one generation, its two threads, and its end.
//!
//! The engine thread moves data, the control thread watches peers. Nothing is global: a process may hold several
//! communicators. Once failed it stays failed (every call returns the first cause); form the next generation instead.

use crate::connect::{Membership, Shares, connect};
use crate::control::{ControlPlane, Link};
use crate::engine::arena::Arena;
use crate::engine::queue::Queue;
use crate::engine::seats::Seats;
use crate::engine::{Engine, Settings, places};
use crate::error::{Error, Result};
use crate::group::Group;
use crate::ids::{Attempt, Generation, Node, Rank};
use crate::shared::{Counters, Shared};
use crate::table::Table;
use crate::transport::fake::FakeNet;
use crate::transport::routed::Routed;
use crate::transport::shm::Shm;
use crate::transport::tcp::Tcp;
use crate::transport::{Bell, Transport};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Settings of a communicator. Equal on all ranks, except `spin`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time to meet and connect.
    pub connect_timeout: Duration,
    /// A host that acknowledges nothing for so long has vanished.
    pub peer_timeout: Duration,
    /// Deadline of an operation that names none.
    pub operation_timeout: Duration,
    /// Most bytes of one piece.
    pub chunk_bytes: usize,
    /// Bytes that peers may have landed here per operation.
    pub landing_bytes: usize,
    /// Operations in flight: half of them collectives, a quarter sends, a quarter receives, so that none keeps the
    /// others from starting. Further ones queue. At least 4, at most 31. Each group of several ranks is sure of one of
    /// the places for collectives, so this also limits the groups there may be at a time.
    pub operations: usize,
    /// Tcp data sockets per pair, besides the one for headers and credits.
    pub data_sockets: u8,
    /// How long an idle engine polls before it sleeps. Zero where ranks outnumber cores.
    pub spin: Duration,
    /// Which algorithm for what.
    pub table: Table,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(60),
            peer_timeout: Duration::from_secs(5),
            operation_timeout: Duration::from_secs(600),
            chunk_bytes: 512 << 10,
            landing_bytes: 8 << 20,
            operations: 24,
            data_sockets: 1,
            spin: Duration::from_micros(20),
            table: Table::default(),
        }
    }
}

/// The ranks of one generation, connected.
#[derive(Debug)]
pub struct Communicator {
    inner: Arc<Inner>,
    world: Group,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) options: Options,
    pub(crate) nodes: Vec<Node>,
    /// How often a group over the same members was made: part of its number.
    pub(crate) groups: Mutex<std::collections::HashMap<Vec<Rank>, u64>>,
    engine: Option<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
}

impl Communicator {
    /// Meets the other ranks at the rendezvous and connects to all of them.
    ///
    /// # Errors
    /// When somebody is missing at the deadline (the error names them), or when the rendezvous refuses this rank.
    pub fn connect(me: &Membership, options: Options) -> Result<Self> {
        let arena = Arena::create(me.ranks, options.operations, options.landing_bytes)?;
        let bell = Arc::new(Bell::new()?);
        let sockets = 1 + options.data_sockets.max(1);
        let shares = Shares { arena: &arena.memory, bell: &bell };
        let (mesh, mailbox) = connect(me, sockets, options.connect_timeout, &shares)?;
        let local = Shm::new(mesh.local_index, mailbox, bell, mesh.locals);
        let mut transport: Box<dyn Transport> = if mesh.remotes.is_empty() {
            Box::new(local)
        } else {
            Box::new(Routed::new(local, Tcp::new(me.generation, mesh.remotes)?))
        };
        transport.register(Arc::clone(&arena.memory))?;
        let identity = Identity {
            rank: me.rank,
            ranks: me.ranks,
            attempt: me.attempt,
            generation: me.generation,
        };
        Self::assemble(identity, transport, arena, (mesh.control, mesh.nodes), options)
    }

    /// All ranks of a job inside this process over the fake transport, `per_node` to a node. For tests: the network
    /// behaves as the seed says.
    ///
    /// # Errors
    /// When the process has no file descriptor or memory left.
    pub fn fakes(
        ranks: usize,
        per_node: usize,
        seed: u64,
        options: &Options,
    ) -> Result<(Vec<Self>, Arc<FakeNet>)> {
        let net = FakeNet::new(ranks, seed)?;
        let mut links: Vec<Vec<Link>> = (0..ranks).map(|_| Vec::new()).collect();
        for above in 0..ranks {
            for below in 0..above {
                let (a, b) = UnixStream::pair().map_err(|e| Error::io("a socket pair", e))?;
                links[above].push(Link { rank: Rank::of(below), fd: a.into(), local: true });
                links[below].push(Link { rank: Rank::of(above), fd: b.into(), local: true });
            }
        }
        let nodes: Vec<Node> = (0..ranks)
            .map(|rank| Node(u32::try_from(rank / per_node).expect("fewer than 2^32 ranks")))
            .collect();
        // Every arena must be registered before anybody puts into it.
        let mut prepared = Vec::new();
        for rank in 0..ranks {
            let arena = Arena::create(ranks, options.operations, options.landing_bytes)?;
            let mut transport = net.transport(Rank::of(rank));
            transport.register(Arc::clone(&arena.memory))?;
            prepared.push((arena, transport));
        }
        let all =
            prepared.into_iter().zip(links).enumerate().map(|(rank, ((arena, fake), links))| {
                let (attempt, generation) = (Attempt(1), Generation(0));
                let identity = Identity { rank: Rank::of(rank), ranks, attempt, generation };
                Self::assemble(
                    identity,
                    Box::new(fake),
                    arena,
                    (links, nodes.clone()),
                    options.clone(),
                )
            });
        Ok((all.collect::<Result<_>>()?, net))
    }

    fn assemble(
        me: Identity,
        transport: Box<dyn Transport>,
        arena: Arena,
        (links, nodes): (Vec<Link>, Vec<Node>),
        options: Options,
    ) -> Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let shared = Arc::new(Shared::new((me.rank, me.ranks), (me.attempt, me.generation), bell)?);
        let queue = Arc::new(Queue::new(Arc::clone(&shared)));
        let settings = Settings { spin: options.spin, lanes: options.data_sockets.max(1) };
        let seats = Seats::new(places(options.operations));
        let doors = (Arc::clone(&queue), Arc::clone(&seats));
        let engine = Engine::new(Arc::clone(&shared), doors, transport, arena, settings);
        let closing = Arc::new(AtomicBool::new(false));
        let control = ControlPlane::new(
            Arc::clone(&shared),
            links,
            options.peer_timeout,
            Arc::clone(&closing),
        )?;
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let name = format!("{name}-{}", me.rank);
            std::thread::Builder::new()
                .name(name)
                .spawn(run)
                .map_err(|source| Error::io("starting a communication thread", source))
        };
        let engine = Some(spawn("comm", Box::new(move || engine.run()))?);
        let control = Some(spawn("comm-ctl", Box::new(move || control.run()))?);
        let groups = Mutex::default();
        let inner =
            Inner { shared, queue, seats, options, nodes, groups, engine, control, closing };
        let inner = Arc::new(inner);
        let all: Vec<Rank> = (0..me.ranks).map(Rank::of).collect();
        let world = Group::new(Arc::clone(&inner), &all)?;
        Ok(Self { inner, world })
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.inner.shared.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.inner.shared.ranks
    }

    /// Which forming this is.
    pub fn generation(&self) -> Generation {
        self.inner.shared.generation
    }

    /// The node of a rank.
    pub fn node_of(&self, rank: Rank) -> Node {
        self.inner.nodes[rank.index()]
    }

    /// The settings it was formed with.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// All ranks.
    pub fn world(&self) -> Group {
        self.world.clone()
    }

    /// These ranks, in this order. Every member makes it, with the same list, in the same order among all groups that it
    /// shares with the other members; nothing is sent.
    ///
    /// # Errors
    /// When this rank is not in the list, a rank is in it twice or does not exist, or there are too many groups at a
    /// time: half of [`Options::operations`].
    pub fn group(&self, members: &[Rank]) -> Result<Group> {
        Group::new(Arc::clone(&self.inner), members)
    }

    /// Ends everything at once, here and on all ranks: every pending and later call fails with this reason. May be
    /// called from any thread, in any state.
    pub fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }

    /// A handle with which another thread can abort.
    pub fn aborter(&self) -> Aborter {
        Aborter(Arc::downgrade(&self.inner))
    }

    /// The cause when this communicator has failed.
    ///
    /// # Errors
    /// That cause.
    pub fn check(&self) -> Result<()> {
        self.inner.shared.check()
    }

    /// Bytes moved so far.
    pub fn counters(&self) -> &Counters {
        &self.inner.shared.counters
    }
}

/// Aborts a communicator from elsewhere; does not keep it alive.
#[derive(Debug, Clone)]
pub struct Aborter(std::sync::Weak<Inner>);

impl Aborter {
    /// See [`Communicator::abort`]. Nothing happens when it is closed already.
    pub fn abort(&self, reason: &str) {
        if let Some(inner) = self.0.upgrade() {
            inner.abort(reason);
        }
    }
}

impl Inner {
    fn abort(&self, reason: &str) {
        let rank = self.shared.rank;
        self.shared.fail(Error::Aborted { rank, reason: reason.into() });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        let own = std::thread::current().id();
        let join = |thread: Option<JoinHandle<()>>| {
            // Should one of them hold the last handle after all, it ends by itself.
            let other = thread.filter(|thread| thread.thread().id() != own);
            if other.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a communication thread panicked");
            }
        };
        join(self.engine.take());
        self.closing.store(true, Ordering::Release);
        self.shared.control_bell.ring();
        join(self.control.take());
    }
}

#[derive(Debug, Clone, Copy)]
struct Identity {
    rank: Rank,
    ranks: usize,
    attempt: Attempt,
    generation: Generation,
}
