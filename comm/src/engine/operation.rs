//! One operation in flight: which piece is at which action, which landing slots are whose.
//!
//! Decides only: what is to be sent is handed to a [`Port`]. A piece's actions run strictly in order; an action that
//! writes a piece waits until no put reads it any more; a put waits until its target has shown its header and has a
//! free landing slot. Landing slots are given out in any order, which cannot deadlock: a piece that has landed is
//! consumed as soon as the pieces' earlier actions are through, and those never wait for this edge (docs/collectives.md
//! has the argument per algorithm).

#![allow(unsafe_code, reason = "adds and copies between the raw memories of an operation")]

use super::launch::{Launch, Port, Target};
use crate::error::{Error, Result};
use crate::ids::Rank;
use crate::memory::Memory;
use crate::schedule::{Action, Part};
use crate::transport::Lane;
use crate::wire::header::{HEADER_BYTES, Header, Imm};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// What is known of one neighbour.
struct Edge {
    rank: Rank,
    theirs: Option<Header>,
    seen: bool,
    left: bool,
    /// Landing slots at the neighbour that are free, one bit each.
    free: u32,
    waiting: VecDeque<(usize, Part)>,
    /// First byte of what it may fill here.
    landing: Memory,
}

struct Progress {
    next: usize,
    /// Listed among those whose contribution is awaited.
    gated: bool,
    /// Puts that read this piece.
    sending: usize,
}

/// An operation in flight.
pub(crate) struct Operation {
    pub(crate) launch: Launch,
    pub(crate) slot: u8,
    progress: Vec<Progress>,
    edges: BTreeMap<usize, Edge>,
    /// (from member, message index) to position in the schedule.
    receives: HashMap<(usize, u32), usize>,
    /// Landed, not yet consumed: (from member, message index) to landing slot.
    landed: HashMap<(usize, u32), u8>,
    /// Positions whose contribution is awaited.
    gated: VecDeque<usize>,
    open_pieces: usize,
    open_puts: usize,
    headers: Vec<[u8; HEADER_BYTES]>,
    pub(crate) completed: bool,
}

fn message_index(piece: u32, partial: bool) -> u32 {
    piece << 1 | u32::from(!partial)
}

impl Operation {
    /// Prepares it in `slot`; `landing` is the slot's part of the arena, at `landing_at` of region 0.
    pub(crate) fn new(
        launch: Launch,
        slot: u8,
        landing: Memory,
        landing_at: u64,
        me: Header,
    ) -> Self {
        let mut receives = HashMap::new();
        let (mut to, mut from) = (BTreeMap::new(), BTreeMap::new());
        for (at, piece) in launch.schedule.pieces.iter().enumerate() {
            for action in &piece.actions {
                match *action {
                    Action::Add { from: member } => {
                        receives.insert((member, message_index(piece.index, true)), at);
                        *from.entry(member).or_insert(0) += launch.size(&piece.range, true);
                    }
                    Action::Copy { from: member } => {
                        receives.insert((member, message_index(piece.index, false)), at);
                        *from.entry(member).or_insert(0) += launch.size(&piece.range, false);
                    }
                    Action::Send { to: member, part } => {
                        let partial = part == Part::Partial;
                        *to.entry(member).or_insert(0) += launch.size(&piece.range, partial);
                    }
                    Action::Begin | Action::Finish => {}
                }
            }
        }
        let per_edge = launch.landing_bytes * launch.landings;
        let mut edges = BTreeMap::new();
        let mut headers = Vec::new();
        for (number, &member) in launch.neighbours.iter().enumerate() {
            let start = number * per_edge;
            let header = Header {
                descriptor: launch.descriptor,
                slot,
                landings: u8::try_from(launch.landings).expect("at most Imm::LANDINGS"),
                landing_bytes: u32::try_from(launch.landing_bytes).expect("smaller than an arena"),
                landing_at: landing_at + start as u64,
                to_you: to.get(&member).copied().unwrap_or(0) as u64,
                from_you: from.get(&member).copied().unwrap_or(0) as u64,
                ..me
            };
            headers.push(header.encode());
            let edge = Edge {
                rank: launch.members[member],
                theirs: None,
                seen: false,
                left: false,
                free: 0,
                waiting: VecDeque::new(),
                landing: landing.slice(start..start + per_edge),
            };
            edges.insert(member, edge);
        }
        let progress = launch
            .schedule
            .pieces
            .iter()
            .map(|_| Progress { next: 0, gated: false, sending: 0 })
            .collect();
        let open_pieces = launch.schedule.pieces.len();
        Self {
            launch,
            slot,
            progress,
            edges,
            receives,
            landed: HashMap::new(),
            gated: VecDeque::new(),
            open_pieces,
            open_puts: 0,
            headers,
            completed: false,
        }
    }

    /// Tells every neighbour, and begins every piece.
    pub(crate) fn start(&mut self, port: &mut dyn Port) -> Result<()> {
        for (header, edge) in self.headers.iter().zip(self.edges.values()) {
            let target =
                Target { peer: edge.rank, lane: Lane::CONTROL, offset: port.header_at(self.slot) };
            let source = Memory::of_const(header);
            port.put(target, source, Imm::Header { slot: self.slot }, Some(usize::MAX))?;
            self.open_puts += 1;
        }
        for at in 0..self.progress.len() {
            self.advance(at, port)?;
        }
        Ok(())
    }

    /// A neighbour's header has come.
    pub(crate) fn header(
        &mut self,
        ours: Rank,
        theirs: Header,
        from: Rank,
        port: &mut dyn Port,
    ) -> Result<()> {
        let (member, edge) = self.edge_of(from).ok_or_else(|| Error::Mismatch {
            ours,
            our_operation: "an operation without this neighbour".into(),
            theirs: from,
            their_operation: theirs.descriptor.to_string(),
        })?;
        edge.theirs = Some(theirs);
        edge.free = u32::try_from((1u64 << theirs.landings) - 1).expect("at most 32 landings");
        let own = Header::decode(&self.headers[self.edge_number(member)])
            .expect("encoded by this operation");
        let fits = theirs.descriptor == own.descriptor
            && theirs.to_you == own.from_you
            && theirs.from_you == own.to_you
            && theirs.landing_bytes as usize >= self.launch.landing_bytes;
        if !fits {
            let describe = |h: &Header| {
                format!("{}, sending {} B and expecting {} B", h.descriptor, h.to_you, h.from_you)
            };
            return Err(Error::Mismatch {
                ours,
                our_operation: describe(&own),
                theirs: from,
                their_operation: describe(&theirs),
            });
        }
        self.pump(member, port)?;
        let early: Vec<usize> = self
            .landed
            .keys()
            .filter(|(from, _)| *from == member)
            .map(|key| self.receives[key])
            .collect();
        early.into_iter().try_for_each(|at| self.advance(at, port))
    }

    /// A piece has landed.
    pub(crate) fn data(
        &mut self,
        from: Rank,
        index: u32,
        landing: u8,
        port: &mut dyn Port,
    ) -> Result<()> {
        let Some((member, _)) = self.edge_of(from) else { return Ok(()) };
        let Some(&at) = self.receives.get(&(member, index)) else {
            return Err(Error::Invalid(format!(
                "rank {from} sent piece {index}, which is not due"
            )));
        };
        self.landed.insert((member, index), landing);
        self.advance(at, port)
    }

    /// A neighbour has read our header.
    pub(crate) fn seen(&mut self, from: Rank) {
        if let Some((_, edge)) = self.edge_of(from) {
            edge.seen = true;
        }
    }

    /// A landing slot at a neighbour is free again.
    pub(crate) fn credit(&mut self, from: Rank, landing: u8, port: &mut dyn Port) -> Result<()> {
        let Some((member, edge)) = self.edge_of(from) else { return Ok(()) };
        edge.free |= 1 << landing;
        self.pump(member, port)
    }

    /// A put of this operation is done; `at` as given to [`Port::put`].
    pub(crate) fn put_done(&mut self, at: usize, port: &mut dyn Port) -> Result<()> {
        self.open_puts -= 1;
        if at == usize::MAX {
            return Ok(());
        }
        self.progress[at].sending -= 1;
        self.advance(at, port)
    }

    /// Contributions may have appeared.
    pub(crate) fn contributions(&mut self, port: &mut dyn Port) -> Result<()> {
        for _ in 0..self.gated.len() {
            let at = self.gated.pop_front().expect("counted");
            self.progress[at].gated = false;
            self.advance(at, port)?;
        }
        Ok(())
    }

    /// A neighbour has left in good order: it will acknowledge nothing more.
    pub(crate) fn peer_left(&mut self, rank: Rank) {
        if let Some((_, edge)) = self.edge_of(rank) {
            edge.left = true;
        }
    }

    /// Neighbours that left without ever entering this operation.
    pub(crate) fn abandoned_by(&self) -> Option<Rank> {
        self.edges.values().find(|edge| edge.left && edge.theirs.is_none()).map(|edge| edge.rank)
    }

    /// Whether the caller can have its memory back.
    pub(crate) fn is_complete(&self) -> bool {
        self.open_pieces == 0
            && self.open_puts == 0
            && self.edges.values().all(|edge| edge.theirs.is_some())
    }

    /// Whether no word about this operation can arrive any more, so that its slot can be used again.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_complete()
            && self.edges.values().all(|edge| edge.left || (edge.seen && edge.all_free()))
    }

    /// Neighbours whose header has not come.
    pub(crate) fn not_entered(&self) -> impl Iterator<Item = Rank> {
        self.edges.values().filter(|edge| edge.theirs.is_none()).map(|edge| edge.rank)
    }

    /// Neighbours that owe a piece or an acknowledgement.
    pub(crate) fn owing(&self) -> Vec<Rank> {
        let mut members: Vec<usize> = Vec::new();
        for (piece, progress) in self.launch.schedule.pieces.iter().zip(&self.progress) {
            if let Some(Action::Add { from } | Action::Copy { from }) =
                piece.actions.get(progress.next)
            {
                members.push(*from);
            }
        }
        members.extend(self.edges.iter().filter(|(_, e)| !e.waiting.is_empty()).map(|(m, _)| *m));
        members.sort_unstable();
        members.dedup();
        members.into_iter().map(|member| self.launch.members[member]).collect()
    }

    fn edge_of(&mut self, rank: Rank) -> Option<(usize, &mut Edge)> {
        self.edges.iter_mut().find(|(_, edge)| edge.rank == rank).map(|(m, edge)| (*m, edge))
    }

    fn edge_number(&self, member: usize) -> usize {
        self.edges.range(..member).count()
    }

    /// Runs the piece's actions until one has to wait.
    fn advance(&mut self, at: usize, port: &mut dyn Port) -> Result<()> {
        while let Some(&action) =
            self.launch.schedule.pieces[at].actions.get(self.progress[at].next)
        {
            let done = match action {
                Action::Send { to, part } => {
                    self.progress[at].next += 1;
                    self.progress[at].sending += 1;
                    let edge = self.edges.get_mut(&to).expect("targets are neighbours");
                    edge.waiting.push_back((at, part));
                    self.pump(to, port)?;
                    continue;
                }
                Action::Begin => self.begin(at, port),
                _ if self.progress[at].sending > 0 => false,
                Action::Add { from } => self.receive(at, from, true, port)?,
                Action::Copy { from } => self.receive(at, from, false, port)?,
                Action::Finish => self.finish(at, port),
            };
            if !done {
                return Ok(());
            }
            self.progress[at].next += 1;
            if matches!(action, Action::Finish | Action::Copy { .. })
                && let Some(stream) = &self.launch.stream
            {
                stream.finished(&self.launch.schedule.pieces[at].range);
            }
        }
        let progress = &mut self.progress[at];
        if progress.sending == 0 && progress.next != usize::MAX {
            progress.next = usize::MAX;
            self.open_pieces -= 1;
        }
        Ok(())
    }

    fn begin(&mut self, at: usize, port: &mut dyn Port) -> bool {
        let range = self.launch.schedule.pieces[at].range.clone();
        if let Some(stream) = &self.launch.stream {
            if !stream.ready(&range) {
                if !std::mem::replace(&mut self.progress[at].gated, true) {
                    self.gated.push_back(at);
                }
                return false;
            }
            return true;
        }
        let input = self.launch.part(Part::Input, &range);
        let partial = self.launch.part(Part::Partial, &range);
        if input.same_start(partial) {
            return true;
        }
        // SAFETY: the operation owns its memories until it completes; input and running sum are distinct.
        let (partial, input) = unsafe { (partial.bytes_mut(), input.bytes()) };
        match self.launch.arithmetic.widen {
            Some(widen) => widen(partial, input),
            None => partial.copy_from_slice(input),
        }
        port.touched(partial.len() + input.len());
        true
    }

    fn finish(&mut self, at: usize, port: &mut dyn Port) -> bool {
        let range = &self.launch.schedule.pieces[at].range;
        if let Some(round) = self.launch.arithmetic.round {
            let output = self.launch.part(Part::Output, range);
            let partial = self.launch.part(Part::Partial, range);
            // SAFETY: the operation owns its memories until it completes; no put reads this piece now.
            let (output, partial) = unsafe { (output.bytes_mut(), partial.bytes()) };
            round(output, partial);
            port.touched(output.len() + partial.len());
        }
        true
    }

    /// Adds or copies what landed; `false` when it has not.
    fn receive(&mut self, at: usize, from: usize, add: bool, port: &mut dyn Port) -> Result<bool> {
        let piece = &self.launch.schedule.pieces[at];
        let index = message_index(piece.index, add);
        let edge = &self.edges[&from];
        // Lanes are not ordered among each other: a piece can overtake its sender's header.
        let Some(slot) = edge.theirs.map(|header| header.slot) else { return Ok(false) };
        let Some(landing) = self.landed.remove(&(from, index)) else { return Ok(false) };
        let part = if add { Part::Partial } else { Part::Output };
        let target = self.launch.part(part, &piece.range);
        let start = usize::from(landing) * self.launch.landing_bytes;
        let came = edge.landing.slice(start..start + target.len());
        // SAFETY: no put reads this piece now; the landing slot is ours until the credit below.
        let (target, came) = unsafe { (target.bytes_mut(), came.bytes()) };
        if add {
            (self.launch.arithmetic.add)(target, came);
            port.touched(3 * came.len());
        } else {
            target.copy_from_slice(came);
            port.touched(2 * came.len());
        }
        let target = Target { peer: edge.rank, lane: Lane::CONTROL, offset: 0 };
        port.put(target, Memory::EMPTY, Imm::Credit { slot, landing }, None)?;
        Ok(true)
    }

    /// Sends what waits for this neighbour, as far as its landing slots go.
    fn pump(&mut self, member: usize, port: &mut dyn Port) -> Result<()> {
        let edge = self.edges.get_mut(&member).expect("a neighbour");
        let Some(theirs) = edge.theirs else { return Ok(()) };
        while edge.free != 0
            && let Some((at, part)) = edge.waiting.pop_front()
        {
            let landing = u8::try_from(edge.free.trailing_zeros()).expect("below 32");
            edge.free &= edge.free - 1;
            let piece = &self.launch.schedule.pieces[at];
            let index = message_index(piece.index, part == Part::Partial);
            let lane =
                Lane(1 + u8::try_from(index % u32::from(port.lanes())).expect("below lanes"));
            let offset = theirs.landing_at + u64::from(landing) * u64::from(theirs.landing_bytes);
            let source = self.launch.part(part, &piece.range);
            let imm = Imm::Data { slot: theirs.slot, landing, index };
            self.open_puts += 1;
            port.put(Target { peer: edge.rank, lane, offset }, source, imm, Some(at))?;
        }
        Ok(())
    }
}

impl Edge {
    fn all_free(&self) -> bool {
        self.theirs.is_some_and(|theirs| self.free.count_ones() == u32::from(theirs.landings))
    }
}
