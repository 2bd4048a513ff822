//! Saves in the background: the training loop copies its shards into host memory and goes on; a thread writes, commits
//! and prunes.
//!
//! One set of host buffers exists and goes round: [`Saver::buffers`] hands it out, [`Saver::begin`] takes it, and it is
//! free again when that save has ended. So memory is bounded by one copy of the state, its pages are touched once and
//! later saves cost the training loop a plain copy, and a second save cannot begin while one is in flight.

use crate::error::Result;
use crate::format::CheckpointId;
use crate::retention::{Pruned, Retention};
use crate::run::{Meta, Run};
use crate::shard::{Piece, ShardReport, Transfer};
use crate::tensors::Kind;
use lampyris_plan::Rank;
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
}

/// What to do when a save is asked for while one is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// Wait for it.
    Wait,
    /// Leave this save out.
    Skip,
}

/// Brings the reports of all ranks together: gets this rank's report (none if its shard failed, so that the others do
/// not wait for it) and returns all reports on rank 0, which commits, and none on the others.
pub type Gather = Box<dyn FnMut(Option<ShardReport>) -> Result<Option<Vec<ShardReport>>> + Send>;

/// The gather of a run with one rank.
pub fn one_rank() -> Gather {
    Box::new(|report| Ok(report.map(|report| vec![report])))
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
}

/// Writes the snapshots of one rank.
pub struct Saver {
    run: Run,
    rank: Rank,
    transfer: Transfer,
    retention: Option<Retention>,
    state: State,
}

enum State {
    Idle(Gather, Buffers),
    InFlight(JoinHandle<(Result<Saved>, Gather, Buffers)>),
    /// Only while the state changes hands.
    Changing,
}

impl Saver {
    /// A saver for `rank`; `retention` is applied after every commit by the rank that commits.
    pub fn new(
        run: Run,
        rank: Rank,
        transfer: Transfer,
        retention: Option<Retention>,
        gather: Gather,
    ) -> Saver {
        Saver { run, rank, transfer, retention, state: State::Idle(gather, Vec::new()) }
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
            State::Idle(_, buffers) => (Some(std::mem::take(buffers)), ended),
            _ => (None, ended),
        }
    }

    /// Begins to write `snapshot`. Returns at once; waits only if a save is still in flight, whose outcome is returned.
    pub fn begin(&mut self, snapshot: Snapshot) -> Option<Result<Saved>> {
        let ended = self.wait();
        if let State::Idle(gather, _) = std::mem::replace(&mut self.state, State::Changing) {
            let job = Job {
                run: self.run.clone(),
                rank: self.rank,
                transfer: self.transfer,
                retention: self.retention,
                gather,
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
                let (outcome, gather, buffers) =
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                self.state = State::Idle(gather, buffers);
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

/// One save, on its thread.
struct Job {
    run: Run,
    rank: Rank,
    transfer: Transfer,
    retention: Option<Retention>,
    gather: Gather,
}

impl Job {
    fn save(mut self, snapshot: Snapshot) -> (Result<Saved>, Gather, Buffers) {
        let id = snapshot.meta.id;
        let outcome = self.try_save(&snapshot);
        // Only the rank that commits may remove: another one could pull files away under its rename.
        if outcome.is_err() && self.rank == Rank(0) {
            self.run.abandon(id);
        }
        (outcome, self.gather, snapshot.buffers)
    }

    fn try_save(&mut self, snapshot: &Snapshot) -> Result<Saved> {
        let begun = Instant::now();
        let written = self.write(snapshot);
        let write_time = begun.elapsed();
        let all = (self.gather)(written.as_ref().ok().cloned());
        let bytes = written?.entry.data_bytes;
        let id = snapshot.meta.id;
        let committed = match all? {
            Some(reports) => Some(self.run.commit(&snapshot.meta, &reports)?),
            None => None,
        };
        let prune = |policy| {
            let pruned = self.run.prune(policy, Some(id.attempt), false);
            pruned.map_err(|e| e.to_string())
        };
        let pruned = self.retention.filter(|_| committed.is_some()).map(prune);
        Ok(Saved { id, bytes, write_time, committed, pruned })
    }

    fn write(&self, snapshot: &Snapshot) -> Result<ShardReport> {
        let pieces: Vec<Piece<'_>> = snapshot
            .slots
            .iter()
            .map(|slot| Piece {
                tensor: &slot.tensor,
                kind: slot.kind,
                start: slot.start,
                data: &snapshot.buffers[slot.buffer][slot.range.clone()],
            })
            .collect();
        self.run.write_shard(snapshot.meta.id, self.rank, &pieces, self.transfer)
    }
}
