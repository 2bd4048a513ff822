//! Saves in the background: the training loop copies its shards into host memory and goes on; a thread writes, commits
//! and prunes.
//!
//! One set of host buffers exists and goes round: [`Saver::buffers`] hands it out, [`Saver::begin`] takes it, and it is
//! free again when that save has ended. So memory is bounded by one copy of the state, its pages are touched once and
//! later saves cost the training loop a plain copy, and a second save cannot begin while one is in flight.
//!
//! With several ranks each has a saver and saves its own pieces of the same checkpoints in the same order; they agree in
//! the background ([`Ranks`]), and none needs a barrier of its own. When to save, and whether to leave a save out, must
//! be decided for all of them (clocks and disks differ): say, by rank 0, from its [`Saver::in_flight`].

use crate::error::Result;
use crate::format::CheckpointId;
use crate::ranks::{Ranks, Word, first_failure};
use crate::replica::Replica;
use crate::retention::{Pruned, Retention};
use crate::run::{Meta, Run};
use crate::shard::{Piece, ShardReport, Transfer};
use crate::tensors::Kind;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Host memory of a snapshot.
pub type Buffers = Vec<Vec<f32>>;

/// Where a piece lies in the buffers; the same list serves every save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Hugging Face name.
    pub tensor: String,
    /// What the values are.
    pub kind: Kind,
    /// First element in the whole tensor.
    pub start: u64,
    /// Which buffer.
    pub buffer: usize,
    /// Elements of that buffer.
    pub range: Range<usize>,
}

/// The state of one rank at a step boundary.
#[derive(Debug)]
pub struct Snapshot {
    /// What the manifest will say; only the rank that commits uses it.
    pub meta: Meta,
    /// Pieces of this rank.
    pub slots: Arc<[Slot]>,
    /// Their values.
    pub buffers: Buffers,
    /// Where it goes.
    pub to: Target,
}

/// Where a snapshot goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A checkpoint on disk; before that, the memory of the nodes, if the saver has a [`Replica`].
    Disk,
    /// Only the memory of the nodes.
    Memory,
}

/// What to do when a save is asked for while one is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// Wait for it.
    Wait,
    /// Leave this save out.
    Skip,
}

/// A save that has ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Step and attempt.
    pub id: CheckpointId,
    /// Bytes this rank wrote.
    pub bytes: u64,
    /// From the first write to the last sync of this rank.
    pub write_time: Duration,
    /// The committed folder, on the rank that committed.
    pub committed: Option<PathBuf>,
    /// What retention removed, or why it could not; the checkpoint itself is safe either way.
    pub pruned: Option<std::result::Result<Pruned, String>>,
    /// Where it went.
    pub to: Target,
    /// Why memory does not hold it; the checkpoint on disk, if it was to have one, is safe either way.
    pub replica_problem: Option<String>,
}

/// Writes the snapshots of one rank.
pub struct Saver {
    run: Run,
    transfer: Transfer,
    retention: Option<Retention>,
    state: State,
}

/// What goes from save to save.
struct Held {
    ranks: Ranks,
    buffers: Buffers,
    replica: Option<Replica>,
}

enum State {
    Idle(Held),
    InFlight(JoinHandle<(Result<Saved>, Held)>),
    /// Only while the state changes hands.
    Changing,
}

impl Saver {
    /// A saver for one of `ranks`; `retention` is applied after every commit by the rank that commits.
    pub fn new(run: Run, ranks: Ranks, transfer: Transfer, retention: Option<Retention>) -> Saver {
        let state = State::Idle(Held { ranks, buffers: Vec::new(), replica: None });
        Saver { run, transfer, retention, state }
    }

    /// Uses these buffers, whose pages are touched already.
    #[must_use]
    pub fn with_buffers(mut self, buffers: Buffers) -> Saver {
        if let State::Idle(held) = &mut self.state {
            held.buffers = buffers;
        }
        self
    }

    /// Keeps every snapshot in the memory of the nodes as well; all ranks do, or none.
    #[must_use]
    pub fn with_replica(mut self, replica: Replica) -> Saver {
        if let State::Idle(held) = &mut self.state {
            held.replica = Some(replica);
        }
        self
    }

    /// Whether a save is being written.
    pub fn in_flight(&self) -> bool {
        matches!(&self.state, State::InFlight(thread) if !thread.is_finished())
    }

    /// The buffers for the next snapshot, as the last save left them (empty at first), and the outcome of a save that
    /// has ended since the last call. None for the buffers if one is in flight and `busy` is [`Busy::Skip`].
    pub fn buffers(&mut self, busy: Busy) -> (Option<Buffers>, Option<Result<Saved>>) {
        if busy == Busy::Skip && self.in_flight() {
            return (None, None);
        }
        let ended = self.wait();
        match &mut self.state {
            State::Idle(held) => (Some(std::mem::take(&mut held.buffers)), ended),
            _ => (None, ended),
        }
    }

    /// Begins to write `snapshot`. Returns at once; waits only if a save is still in flight, whose outcome is returned.
    pub fn begin(&mut self, snapshot: Snapshot) -> Option<Result<Saved>> {
        let ended = self.wait();
        if let State::Idle(held) = std::mem::replace(&mut self.state, State::Changing) {
            let job = Job {
                run: self.run.clone(),
                ranks: held.ranks,
                replica: held.replica,
                transfer: self.transfer,
                retention: self.retention,
            };
            self.state = State::InFlight(std::thread::spawn(move || job.save(snapshot)));
        }
        ended
    }

    /// The outcome of a save that has ended; none if there is none or it is still in flight.
    pub fn poll(&mut self) -> Option<Result<Saved>> {
        if self.in_flight() { None } else { self.wait() }
    }

    /// Waits for the save in flight and returns its outcome; none if there is none.
    pub fn wait(&mut self) -> Option<Result<Saved>> {
        match std::mem::replace(&mut self.state, State::Changing) {
            State::InFlight(thread) => {
                let (outcome, held) =
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                self.state = State::Idle(held);
                Some(outcome)
            }
            other => {
                self.state = other;
                None
            }
        }
    }
}

impl Drop for Saver {
    /// A save in flight is finished, not cut off.
    fn drop(&mut self) {
        if let State::InFlight(thread) = std::mem::replace(&mut self.state, State::Changing) {
            thread.join().ok();
        }
    }
}

/// Bytes of this rank; on the rank that commits, the folder and what retention did.
type Ended = (u64, Option<PathBuf>, Option<std::result::Result<Pruned, String>>);

/// One save, on its thread.
struct Job {
    run: Run,
    ranks: Ranks,
    replica: Option<Replica>,
    transfer: Transfer,
    retention: Option<Retention>,
}

impl Job {
    fn save(mut self, snapshot: Snapshot) -> (Result<Saved>, Held) {
        let outcome = self.try_save(&snapshot);
        let Job { ranks, replica, .. } = self;
        (outcome, Held { ranks, buffers: snapshot.buffers, replica })
    }

    fn try_save(&mut self, snapshot: &Snapshot) -> Result<Saved> {
        let begun = Instant::now();
        let replica_problem = self.replicate(snapshot)?;
        match snapshot.to {
            Target::Disk => Ok(Saved { replica_problem, ..self.save_to_disk(snapshot)? }),
            Target::Memory => Ok(Saved {
                id: snapshot.meta.id,
                bytes: 4 * snapshot.slots.iter().map(|slot| slot.range.len() as u64).sum::<u64>(),
                write_time: begun.elapsed(),
                committed: None,
                pruned: None,
                to: Target::Memory,
                replica_problem,
            }),
        }
    }

    /// Keeps the snapshot in memory, if there is a replica, and forgets older ones when all ranks hold it. Returns what
    /// went wrong with that; an error only if a peer is gone.
    fn replicate(&mut self, snapshot: &Snapshot) -> Result<Option<String>> {
        let (id, rank) = (snapshot.meta.id, self.ranks.rank());
        let Some(replica) = self.replica.as_mut().filter(|replica| !replica.holds(id)) else {
            return Ok(None);
        };
        let parent = self.run.lineage().and_then(|lineage| lineage.parent_of(id.attempt));
        let manifest = parent.map(|parent| snapshot.meta.manifest(parent, self.ranks.world()));
        let kept = replica.keep(manifest, (id, rank), &snapshot.pieces(), self.transfer);
        let words = self.ranks.exchange(match kept {
            Ok(()) => Word::Good,
            Err(e) => Word::Failed(e.to_string()),
        });
        let problem = first_failure(&words?).map(|failure| failure.to_string());
        replica.agreed(id, rank, problem.is_none());
        Ok(problem)
    }

    fn save_to_disk(&mut self, snapshot: &Snapshot) -> Result<Saved> {
        let id = snapshot.meta.id;
        let begun = Instant::now();
        let written = self.write(snapshot).map_err(|e| self.run.explain(id.attempt, e));
        let write_time = begun.elapsed();
        let word = match &written {
            Ok(report) => Word::Written(id, report.entry.clone()),
            Err(e) => Word::Failed(e.to_string()),
        };
        // Where this fails nothing is removed: another rank may still be writing. The next attempt sweeps.
        let words = self.ranks.exchange(word)?;
        let ended = match first_failure(&words) {
            Some(failure) => written.and(Err(failure)),
            None => written.and_then(|own| {
                let done = self.commit(snapshot, own, &words);
                done.map_err(|e| self.run.explain(id.attempt, e))
            }),
        };
        // All ranks have ended their writes, so the rank that commits may remove them.
        if ended.is_err() && self.ranks.leads() {
            self.run.abandon(id);
        }
        let word = ended.as_ref().map_or_else(|e| Word::Failed(e.to_string()), |_| Word::Good);
        let words = self.ranks.exchange(word)?;
        let (bytes, committed, pruned) = ended?;
        match first_failure(&words) {
            Some(failure) => Err(failure),
            None => Ok(Saved {
                id,
                bytes,
                write_time,
                committed,
                pruned,
                to: Target::Disk,
                replica_problem: None,
            }),
        }
    }

    /// What the rank that commits does with the entries of all; the others are done.
    fn commit(&self, snapshot: &Snapshot, own: ShardReport, words: &[Word]) -> Result<Ended> {
        let bytes = own.entry.data_bytes;
        if !self.ranks.leads() {
            return Ok((bytes, None, None));
        }
        let id = snapshot.meta.id;
        let mut reports = vec![own];
        for word in &words[1..] {
            let Word::Written(of, entry) = word else { continue };
            reports.push(self.run.report_of(id, *of, entry)?);
        }
        let committed = self.run.commit(&snapshot.meta, &reports)?;
        let prune = |policy| {
            let pruned = self.run.prune(policy, Some(id.attempt), false);
            pruned.map_err(|e| e.to_string())
        };
        Ok((bytes, Some(committed), self.retention.map(prune)))
    }

    fn write(&self, snapshot: &Snapshot) -> Result<ShardReport> {
        let id = snapshot.meta.id;
        self.run.write_shard(id, self.ranks.rank(), &snapshot.pieces(), self.transfer)
    }
}

impl Snapshot {
    fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::with_capacity(self.slots.len());
        for slot in self.slots.iter() {
            pieces.push(Piece {
                tensor: &slot.tensor,
                kind: slot.kind,
                start: slot.start,
                data: &self.buffers[slot.buffer][slot.range.clone()],
            });
        }
        pieces
    }
}
