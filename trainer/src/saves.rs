//! When a rank saves, and what it tells the shim about it. The writing itself happens in the background
//! (`checkpoint::Saver`).

use crate::build::Rank;
use crate::link::Link;
use crate::{machine, replicas, snapshot};
use anyhow::{Context, Result};
use lampyris_checkpoint::tensors::{TensorEntry, training_tensors};
use lampyris_checkpoint::{
    Busy, CheckpointId, Digests, HostMemory, Meta, Replica, Retention, Run, Saved, Saver, Slot,
    Snapshot, Target, Transfer,
};
use lampyris_plan::train_plan::{CheckpointPlan, WhileSaving};
use lampyris_plan::{Attempt, Step, TrainPlan};
use lampyris_proto::rank::{self, from_rank::Body, note::Severity};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;

/// What becomes of saves, for the metrics.
#[derive(Debug, Clone, PartialEq)]
pub enum SaveEvent {
    /// The save after `step` is committed everywhere, or all ranks hold it in memory.
    Saved {
        /// Steps completed.
        step: u64,
        /// Where it went.
        to: Target,
        /// Bytes that this rank wrote.
        bytes: u64,
        /// How long training stood still for it, in seconds.
        stall_s: f64,
        /// From the first write to the last sync of this rank, in seconds.
        write_s: f64,
    },
    /// The save after `step` was left out: that of step `saving` was still being written.
    LeftOut {
        /// Steps completed.
        step: u64,
        /// The one in the way.
        saving: u64,
    },
}

/// The saves of one attempt.
pub struct Saves {
    saver: Saver,
    /// Of the snapshots that this host keeps in memory.
    memory: Option<HostMemory>,
    attempt: Attempt,
    policy: CheckpointPlan,
    digests: Digests,
    fingerprint: BTreeMap<String, String>,
    tensors: Vec<TensorEntry>,
    slots: Arc<[Slot]>,
    last: Instant,
    last_step: Option<u64>,
    /// The step whose snapshot was handed over last.
    writing: Option<u64>,
    /// How long training stood still for the last save.
    stall: Duration,
    /// The save in flight that was named last as the reason to leave one out.
    in_the_way: Option<u64>,
    events: Vec<SaveEvent>,
    /// Validation loss and the step at which it was measured.
    pub validation_loss: Option<(u64, f64)>,
}

impl Saves {
    /// Saves of `rank` into `run`.
    ///
    /// # Errors
    /// The communicator has failed. Collective.
    pub fn new(
        run: Run,
        attempt: Attempt,
        plan: &TrainPlan,
        rank: &Rank,
        device: Device,
    ) -> Result<Saves> {
        let digests = lampyris_plan::digest::Digests::of(plan);
        let retention = Retention {
            last: plan.checkpoint.keep.max(1),
            every_steps: plan.checkpoint.keep_every_steps,
            best: plan.checkpoint.keep_best,
        };
        let (ranks, neighbour) = rank.ranks.for_saves()?;
        let mut buffers = Vec::new();
        let policy = &plan.checkpoint;
        if policy.every_s > 0 || policy.every_steps > 0 || policy.replica_every_steps > 0 {
            // The first touch of memory costs several times what a copy costs: now, and not in the first save.
            snapshot::copy_out(&rank.state, &rank.network.inventory, &mut buffers)?;
        }
        let memory = (policy.replica_every_steps > 0).then(|| replicas::host_memory(run.dir()));
        let memory = memory.transpose()?;
        let mut saver = Saver::new(run, ranks, Transfer::default(), Some(retention));
        if let Some(memory) = &memory {
            saver = saver.with_replica(Replica::new(memory.clone(), rank.ranks.node(), neighbour));
        }
        Ok(Saves {
            saver: saver.with_buffers(buffers),
            memory,
            attempt,
            policy: plan.checkpoint.clone(),
            digests: Digests { numerics: digests.numerics, plan: digests.plan },
            fingerprint: machine::fingerprint(device),
            tensors: training_tensors(&rank.network.inventory),
            slots: snapshot::slots(&rank.state, &rank.network.inventory, &rank.ranks),
            last: Instant::now(),
            last_step: None,
            writing: None,
            stall: Duration::ZERO,
            in_the_way: None,
            events: Vec::new(),
            validation_loss: None,
        })
    }

    /// Whether a save by time is due, and whether one is in flight, for the ranks to agree on.
    pub fn due(&self) -> (bool, bool) {
        let period = Duration::from_secs(self.policy.every_s);
        let by_time = self.policy.every_s > 0 && self.last.elapsed() >= period;
        (by_time, self.saver.in_flight())
    }

    /// Saves if a step period has passed, or if the ranks have agreed that a time period has (`by_time`). While a save is
    /// in flight on any (`busy`), the plan says whether it waits or is left out; by default a step period is a promise and
    /// waits, a time period a wish. `at_end`: the final save follows.
    pub fn periodic(
        &mut self,
        rank: &Rank,
        link: &mut Link,
        (by_time, busy): (bool, bool),
        at_end: bool,
    ) -> Result<()> {
        self.reap(link)?;
        let step = rank.state.progress.step;
        let by_step = self.policy.every_steps > 0 && step.is_multiple_of(self.policy.every_steps);
        let every = self.policy.replica_every_steps;
        let to_memory = every > 0 && step.is_multiple_of(every);
        if at_end && self.policy.at_end || !(by_step || by_time || to_memory) {
            return Ok(());
        }
        if !(by_step || by_time) {
            // A wish: it never holds training up.
            return if busy { Ok(()) } else { self.begin(rank, link, Target::Memory) };
        }
        let left_out = match self.policy.while_saving {
            WhileSaving::Wait => false,
            WhileSaving::Skip => busy,
            WhileSaving::ByPeriod => busy && !by_step,
        };
        if left_out {
            self.leave_out(rank, link);
            return Ok(());
        }
        self.begin(rank, link, Target::Disk)
    }

    /// Says, once for each save that is in the way, that the save of this step is left out.
    fn leave_out(&mut self, rank: &Rank, link: &mut Link) {
        let Some(saving) = self.writing.filter(|_| self.in_the_way != self.writing) else {
            return;
        };
        self.in_the_way = Some(saving);
        let step = rank.state.progress.step;
        self.events.push(SaveEvent::LeftOut { step, saving });
        if rank.ranks.is_first() {
            let text = format!(
                "no checkpoint after step {step}: that of step {saving} is still being written; save less often, or let \
                 training wait with checkpoint.while_saving = \"wait\""
            );
            link.send(Body::Note(rank::Note { severity: Severity::Warning.into(), text }));
        }
    }

    /// What has become of saves since the last call.
    pub fn events(&mut self) -> Vec<SaveEvent> {
        std::mem::take(&mut self.events)
    }

    /// Saves and waits until it is committed; nothing to do if this step is committed already.
    pub fn now(&mut self, rank: &Rank, link: &mut Link) -> Result<()> {
        if self.last_step != Some(rank.state.progress.step) {
            let what = "saving".to_string();
            link.send(Body::Operation(rank::Operation { what, done: 0, total: 0 }));
            self.begin(rank, link, Target::Disk)?;
        }
        self.drain(link)
    }

    /// Waits for the save in flight. When it has ended, it is committed on all ranks.
    pub fn drain(&mut self, link: &mut Link) -> Result<()> {
        match self.saver.wait() {
            Some(outcome) => self.ended(link, outcome),
            None => Ok(()),
        }
    }

    /// Frees what memory keeps, when the run has ended or the newest state is on disk.
    pub fn free_memory(&self) {
        if let Some(memory) = &self.memory {
            memory.clear();
        }
    }

    fn reap(&mut self, link: &mut Link) -> Result<()> {
        match self.saver.poll() {
            Some(outcome) => self.ended(link, outcome),
            None => Ok(()),
        }
    }

    fn begin(&mut self, rank: &Rank, link: &mut Link, to: Target) -> Result<()> {
        let begun = Instant::now();
        let (buffers, ended) = self.saver.buffers(Busy::Wait);
        if let Some(outcome) = ended {
            self.ended(link, outcome)?;
        }
        let Some(mut buffers) = buffers else { return Ok(()) };
        snapshot::copy_out(&rank.state, &rank.network.inventory, &mut buffers)?;
        let step = rank.state.progress.step;
        let measured = self.validation_loss.filter(|(at, _)| *at == step);
        let meta = Meta {
            id: CheckpointId { step: Step(step), attempt: self.attempt },
            digests: self.digests.clone(),
            fingerprint: self.fingerprint.clone(),
            validation_loss: measured.map(|(_, loss)| loss),
            state: snapshot::progress_to_state(rank.state.progress),
            tensors: self.tensors.clone(),
        };
        let slots = Arc::clone(&self.slots);
        if let Some(outcome) = self.saver.begin(Snapshot { meta, slots, buffers, to }) {
            self.ended(link, outcome)?;
        }
        self.stall = begun.elapsed();
        self.writing = Some(step);
        if to == Target::Disk {
            self.last = Instant::now();
            self.last_step = Some(step);
        }
        Ok(())
    }

    /// Tells what has become of the save that was in flight.
    fn ended(
        &mut self,
        link: &mut Link,
        outcome: lampyris_checkpoint::Result<Saved>,
    ) -> Result<()> {
        let saved = outcome.context("saving a checkpoint")?;
        if let Some(problem) = &saved.replica_problem {
            let text = format!("memory keeps no snapshot of step {}: {problem}", saved.id.step);
            link.send(Body::Note(rank::Note { severity: Severity::Warning.into(), text }));
        }
        let (step, write_s) = (saved.id.step.0, saved.write_time.as_secs_f64());
        let (bytes, stall_s) = (saved.bytes, self.stall.as_secs_f64());
        self.events.push(SaveEvent::Saved { step, to: saved.to, bytes, stall_s, write_s });
        if saved.to == Target::Memory {
            return Ok(());
        }
        let path = saved.committed.map(|path| path.display().to_string()).unwrap_or_default();
        link.send(Body::Saved(rank::Saved { step, path, bytes, save_s: write_s }));
        Ok(())
    }
}
