//! The thread that progresses all operations of a communicator.
//!
//! One loop: take new launches, poll the transport, hand each event to its operation, look at deadlines, sleep when
//! there is nothing. It never blocks on a peer. When the communicator's fate is sealed (a peer died, somebody aborted,
//! a deadline passed) it aborts the transport first, so that no memory is touched any more, and then fails every
//! operation with the cause.

pub(crate) mod arena;
pub(crate) mod lateness;
pub(crate) mod launch;
pub(crate) mod operation;
pub(crate) mod queue;
pub(crate) mod seats;

use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::memory::Memory;
use crate::shared::Shared;
use crate::transport::{Event, Put, PutId, Region, Transport};
use crate::wire::control::Entered;
use crate::wire::header::{Header, Imm};
use arena::Arena;
use launch::{Launch, Port, Target};
use operation::Operation;
use queue::{Class, Queue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use seats::Seats;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest sleep, so that a missed wake-up could never be more than this.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// How often a busy engine looks at deadlines.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// How long the control plane has to say what became of a peer whose data socket closed, before it counts as dead.
const VERDICT: Duration = Duration::from_millis(400);

/// How long closing waits for peers to acknowledge what they still owe.
const LINGER: Duration = Duration::from_secs(2);

/// Settings of the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) spin: Duration,
    pub(crate) lanes: u8,
}

/// Places for collectives among so many for all operations; sends and receives have half of the rest each.
pub(crate) fn places(operations: usize) -> usize {
    operations / 2
}

pub(crate) struct Engine {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    seats: Arc<Seats>,
    settings: Settings,
    outlet: Outlet,
    slots: Vec<Option<Operation>>,
    /// Headers of operations that this rank has not entered yet, by (group, sequence).
    early: HashMap<(u64, u64), Vec<(Rank, Header)>>,
    /// Waiting for a slot, by class.
    held: [VecDeque<Launch>; 3],
    suspects: Vec<(Rank, Instant)>,
    closing_since: Option<Instant>,
    checked: Instant,
}

/// The transport and what belongs to putting: the only thing operations see of the engine.
struct Outlet {
    transport: Box<dyn Transport>,
    arena: Arena,
    shared: Arc<Shared>,
    lanes: u8,
    slot: u8,
    puts: HashMap<PutId, (u8, usize)>,
}

impl Port for Outlet {
    fn put(&mut self, target: Target, source: Memory, imm: Imm, done: Option<usize>) -> Result<()> {
        let counters = &self.shared.counters;
        let bytes = source.len() as u64;
        if self.transport.is_network(target.peer) {
            counters.network.fetch_add(bytes, Ordering::Relaxed);
        } else {
            counters.shared_memory.fetch_add(bytes, Ordering::Relaxed);
            counters.host_memory.fetch_add(2 * bytes, Ordering::Relaxed);
        }
        let id = self.transport.put(Put {
            peer: target.peer,
            lane: target.lane,
            region: Region(0),
            offset: target.offset,
            source,
            imm: imm.encode(),
        })?;
        if let Some(at) = done {
            self.puts.insert(id, (self.slot, at));
        }
        Ok(())
    }

    fn header_at(&self, slot: u8) -> u64 {
        Arena::header_at(self.shared.rank, slot) as u64
    }

    fn touched(&self, bytes: usize) {
        self.shared.counters.host_memory.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn lanes(&self) -> u8 {
        self.lanes
    }
}

impl Engine {
    pub(crate) fn new(
        shared: Arc<Shared>,
        (queue, seats): (Arc<Queue>, Arc<Seats>),
        transport: Box<dyn Transport>,
        arena: Arena,
        settings: Settings,
    ) -> Self {
        let slots = (0..arena.operations).map(|_| None).collect();
        let lanes = settings.lanes;
        let outlet = Outlet {
            transport,
            arena,
            shared: Arc::clone(&shared),
            lanes,
            slot: 0,
            puts: HashMap::new(),
        };
        Self {
            shared,
            queue,
            seats,
            settings,
            outlet,
            slots,
            early: HashMap::new(),
            held: Default::default(),
            suspects: Vec::new(),
            closing_since: None,
            checked: Instant::now(),
        }
    }

    /// Runs until closed or failed. Never leaves a caller waiting: also a bug here ends every operation.
    pub(crate) fn run(mut self) {
        let run = std::panic::AssertUnwindSafe(|| self.run_to_end());
        let ended = std::panic::catch_unwind(run)
            .unwrap_or_else(|_| Err(Error::Invalid("the communication engine panicked".into())));
        if let Err(cause) = ended {
            self.shared.fail(cause);
        }
        let closed = || Error::Invalid("this communicator is closed".into());
        let cause = self.shared.fate().cloned().unwrap_or_else(closed);
        self.outlet.transport.abort();
        let operations = self.slots.iter_mut().flatten().map(|operation| &mut operation.launch);
        let held = self.held.iter_mut().flatten();
        let mut queued = self.queue.end();
        for launch in operations.chain(held).chain(&mut queued) {
            launch.end(Err(cause.clone()));
        }
    }

    fn run_to_end(&mut self) -> Result<()> {
        let mut events = Vec::new();
        let mut idle_since: Option<Instant> = None;
        loop {
            self.shared.check()?;
            let mut busy = self.take_launches()?;
            self.outlet.transport.poll(&mut events);
            busy |= !events.is_empty();
            for event in events.drain(..) {
                self.handle(event)?;
            }
            if self.queue.take_contributions() {
                busy = true;
                self.each_operation(Operation::contributions)?;
            }
            self.sweep();
            if self.may_end() {
                return Ok(());
            }
            let now = Instant::now();
            let idle = !busy && now - *idle_since.get_or_insert(now) >= self.settings.spin;
            if idle || now - self.checked > CHECK_EVERY {
                self.check_time(now)?;
                self.checked = now;
            }
            if busy {
                idle_since = None;
            } else if idle {
                self.sleep(now);
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Enters what has a free slot of its class, in order within the class.
    fn take_launches(&mut self) -> Result<bool> {
        let (launches, closing) = self.queue.take();
        if closing {
            self.closing_since.get_or_insert_with(Instant::now);
        }
        let mut busy = !launches.is_empty();
        for launch in launches {
            self.held[Class::of(&launch) as usize].push_back(launch);
        }
        for class in [Class::Collective, Class::Send, Class::Receive] {
            while let Some(at) = self.admissible(class) {
                let launch = self.held[class as usize].remove(at).expect("a position in it");
                let free = self.slots.iter().position(Option::is_none).expect("admissible");
                self.enter(launch, u8::try_from(free).expect("at most Imm::OPERATIONS"))?;
                busy = true;
            }
        }
        Ok(busy)
    }

    /// Position of the oldest launch of a class that may enter: in order inside each group, and never in the last place of
    /// another group's (`seats.rs`).
    fn admissible(&self, class: Class) -> Option<usize> {
        let held = &self.held[class as usize];
        if held.is_empty() {
            return None;
        }
        let in_use = self.slots.iter().flatten().map(|operation| &operation.launch);
        let running: Vec<u64> = in_use
            .filter(|launch| Class::of(launch) == class)
            .map(|launch| launch.descriptor.group)
            .collect();
        let places = places(self.slots.len());
        if class != Class::Collective {
            return (running.len() < places / 2).then_some(0);
        }
        let free = places - running.len();
        let running: HashSet<u64> = running.into_iter().collect();
        let spare = free > self.seats.vacant(&running);
        let enters = |launch: &Launch| spare || !running.contains(&launch.descriptor.group);
        held.iter().position(enters).filter(|_| free > 0)
    }

    fn enter(&mut self, launch: Launch, slot: u8) -> Result<()> {
        let d = launch.descriptor;
        self.shared.enter(Entered { group: d.group, sequence: d.sequence, kind: d.kind });
        let (landing, landing_at) = self.outlet.arena.landing(slot);
        let me = Header {
            attempt: self.shared.attempt,
            generation: self.shared.generation,
            descriptor: d,
            slot,
            landings: 0,
            landing_bytes: 0,
            landing_at: 0,
            to_you: 0,
            from_you: 0,
        };
        // Into its slot before its first word: whatever fails from here on also ends this operation.
        let operation = Operation::new(launch, slot, landing, landing_at, me);
        self.slots[usize::from(slot)] = Some(operation);
        self.with(slot, Operation::start)?;
        let rank = self.shared.rank;
        for (from, header) in self.early.remove(&(d.group, d.sequence)).unwrap_or_default() {
            self.with(slot, |operation, port| operation.header(rank, header, from, port))?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::PutDone(id) => {
                if let Some((slot, at)) = self.outlet.puts.remove(&id) {
                    self.with(slot, |operation, port| operation.put_done(at, port))?;
                }
                Ok(())
            }
            Event::PeerLost { peer } => {
                self.suspects.push((peer, Instant::now()));
                Ok(())
            }
            Event::Arrived { peer, imm } => {
                let imm = Imm::decode(imm).map_err(|error| {
                    Error::Invalid(format!("rank {peer} sent an immediate with a {error}"))
                })?;
                self.arrived(peer, imm)
            }
        }
    }

    fn arrived(&mut self, peer: Rank, imm: Imm) -> Result<()> {
        match imm {
            Imm::Data { slot, landing, index } => {
                self.with(slot, |operation, port| operation.data(peer, index, landing, port))
            }
            Imm::Header { slot } => self.header(peer, slot),
            Imm::Seen { slot } => self.with(slot, |operation, _| {
                operation.seen(peer);
                Ok(())
            }),
            Imm::Credit { slot, landing } => {
                self.with(slot, |operation, port| operation.credit(peer, landing, port))
            }
        }
    }

    #[allow(unsafe_code, reason = "reads the control slot that a peer has written")]
    fn header(&mut self, peer: Rank, slot: u8) -> Result<()> {
        // SAFETY: the peer wrote this slot before the immediate that brought us here, and writes it again only after
        // it has our `Seen`.
        let bytes = unsafe { self.outlet.arena.header(peer, slot).bytes() };
        let header = Header::decode(bytes)
            .map_err(|error| Error::Invalid(format!("rank {peer} wrote a header with {error}")))?;
        let own = (self.shared.attempt, self.shared.generation);
        if (header.attempt, header.generation) != own {
            tracing::debug!(rank = peer.0, ?header, "dropped a header of another generation");
            return Ok(());
        }
        let target = Target { peer, lane: crate::transport::Lane::CONTROL, offset: 0 };
        self.outlet.put(target, Memory::EMPTY, Imm::Seen { slot }, None)?;
        let key = (header.descriptor.group, header.descriptor.sequence);
        let entered = self.slots.iter().flatten().find(|operation| {
            let d = operation.launch.descriptor;
            !operation.completed && (d.group, d.sequence) == key
        });
        match entered.map(|operation| operation.slot) {
            Some(ours) => {
                let rank = self.shared.rank;
                self.with(ours, |operation, port| operation.header(rank, header, peer, port))
            }
            None => {
                self.early.entry(key).or_default().push((peer, header));
                Ok(())
            }
        }
    }

    fn with(
        &mut self,
        slot: u8,
        act: impl FnOnce(&mut Operation, &mut dyn Port) -> Result<()>,
    ) -> Result<()> {
        match self.slots.get_mut(usize::from(slot)).and_then(Option::as_mut) {
            Some(operation) => {
                self.outlet.slot = slot;
                act(operation, &mut self.outlet)
            }
            None => Err(Error::Invalid(format!("a peer named operation slot {slot}, not in use"))),
        }
    }

    fn each_operation(
        &mut self,
        act: impl Fn(&mut Operation, &mut dyn Port) -> Result<()>,
    ) -> Result<()> {
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_some() {
                self.with(u8::try_from(slot).expect("at most Imm::OPERATIONS"), &act)?;
            }
        }
        Ok(())
    }

    /// Completes what is complete and frees what is quiet.
    fn sweep(&mut self) {
        for slot in &mut self.slots {
            let Some(operation) = slot else { continue };
            if !operation.completed && operation.is_complete() {
                operation.completed = true;
                operation.launch.end(Ok(()));
            }
            if operation.completed && operation.is_quiet() {
                *slot = None;
            }
        }
    }

    fn may_end(&self) -> bool {
        let Some(since) = self.closing_since else { return false };
        let waiting = self.held.iter().any(|queue| !queue.is_empty());
        let running = self.slots.iter().flatten().any(|operation| !operation.completed);
        let quiet = self.slots.iter().all(Option::is_none);
        !waiting && !running && (quiet || since.elapsed() > LINGER)
    }

    /// Deadlines, verdicts over suspects, peers that left.
    fn check_time(&mut self, now: Instant) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        for operation in self.slots.iter_mut().flatten() {
            let members = Arc::clone(&operation.launch.members);
            for rank in members.iter() {
                if shared.with_peer(*rank, |peer| peer.left) {
                    operation.peer_left(*rank);
                }
            }
        }
        for operation in self.slots.iter().flatten().filter(|operation| !operation.completed) {
            if let Some(rank) = operation.abandoned_by() {
                let operation = operation.launch.descriptor.to_string();
                return Err(Error::PeerLeft { rank, operation });
            }
            if now >= operation.launch.deadline {
                return Err(lateness::timeout(&shared, operation));
            }
        }
        for (rank, since) in &self.suspects {
            let left = shared.with_peer(*rank, |peer| peer.left);
            if !left && now.duration_since(*since) > VERDICT {
                return Err(Error::PeerDead { rank: *rank, seen_by: shared.rank });
            }
        }
        self.suspects.retain(|(rank, _)| !shared.with_peer(*rank, |peer| peer.left));
        Ok(())
    }

    fn sleep(&mut self, now: Instant) {
        let deadlines = self
            .slots
            .iter()
            .flatten()
            .filter(|operation| !operation.completed)
            .map(|operation| operation.launch.deadline.saturating_duration_since(now));
        let verdict = self.suspects.first().map(|_| VERDICT / 4);
        let closing = self.closing_since.map(|_| Duration::from_millis(10));
        let most = deadlines.chain(verdict).chain(closing).fold(LONGEST_SLEEP, Duration::min);
        if !self.outlet.transport.arm() {
            return;
        }
        let bell = &self.shared.engine_bell;
        let mut fds = vec![PollFd::new(&**bell, PollFlags::IN)];
        let transport = self.outlet.transport.wait_on();
        fds.extend(transport.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let most = Timespec::try_from(most).expect("half a second at most");
        match poll(&mut fds, Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "the engine could not sleep"),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            bell.silence();
        }
    }
}
