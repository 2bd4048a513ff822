//! When a rank saves, and what it tells the shim about it. The writing itself happens in the background
//! (`checkpoint::Saver`).

use crate::build::Rank;
use crate::link::Link;
use crate::{machine, snapshot};
use anyhow::{Context, Result};
use lampyris_checkpoint::tensors::TensorEntry;
use lampyris_checkpoint::{
    Busy, CheckpointId, Digests, Meta, Retention, Run, Saved, Saver, Slot, Snapshot, Transfer,
};
use lampyris_plan::train_plan::{CheckpointPlan, WhileSaving};
use lampyris_plan::{Attempt, Step, TrainPlan};
use lampyris_proto::rank::{self, from_rank::Body};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;

/// The saves of one attempt.
pub struct Saves {
    saver: Saver,
    attempt: Attempt,
    policy: CheckpointPlan,
    digests: Digests,
    fingerprint: BTreeMap<String, String>,
    tensors: Vec<TensorEntry>,
    slots: Arc<[Slot]>,
    last: Instant,
    last_step: Option<u64>,
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
        let ranks = rank.ranks.for_checkpoints()?;
        Ok(Saves {
            saver: Saver::new(run, ranks, Transfer::default(), Some(retention)),
            attempt,
            policy: plan.checkpoint.clone(),
            digests: Digests { numerics: digests.numerics, plan: digests.plan },
            fingerprint: machine::fingerprint(device),
            tensors: snapshot::tensors(&rank.network.inventory),
            slots: snapshot::slots(&rank.state, &rank.network.inventory, &rank.ranks),
            last: Instant::now(),
            last_step: None,
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
        if at_end && self.policy.at_end || !(by_step || by_time) {
            return Ok(());
        }
        let left_out = match self.policy.while_saving {
            WhileSaving::Wait => false,
            WhileSaving::Skip => busy,
            WhileSaving::ByPeriod => busy && !by_step,
        };
        if left_out { Ok(()) } else { self.begin(rank, link, Busy::Wait) }
    }

    /// Saves and waits until it is committed; nothing to do if this step is committed already.
    pub fn now(&mut self, rank: &Rank, link: &mut Link) -> Result<()> {
        if self.last_step != Some(rank.state.progress.step) {
            let what = "saving".to_string();
            link.send(Body::Operation(rank::Operation { what, done: 0, total: 0 }));
            self.begin(rank, link, Busy::Wait)?;
        }
        self.drain(link)
    }

    /// Waits for the save in flight. When it has ended, it is committed on all ranks.
    pub fn drain(&mut self, link: &mut Link) -> Result<()> {
        match self.saver.wait() {
            Some(outcome) => announce(link, outcome),
            None => Ok(()),
        }
    }

    fn reap(&mut self, link: &mut Link) -> Result<()> {
        match self.saver.poll() {
            Some(outcome) => announce(link, outcome),
            None => Ok(()),
        }
    }

    fn begin(&mut self, rank: &Rank, link: &mut Link, busy: Busy) -> Result<()> {
        let (buffers, ended) = self.saver.buffers(busy);
        if let Some(outcome) = ended {
            announce(link, outcome)?;
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
        if let Some(outcome) = self.saver.begin(Snapshot { meta, slots, buffers }) {
            announce(link, outcome)?;
        }
        self.last = Instant::now();
        self.last_step = Some(step);
        Ok(())
    }
}

fn announce(link: &mut Link, outcome: lampyris_checkpoint::Result<Saved>) -> Result<()> {
    let saved = outcome.context("saving a checkpoint")?;
    let path = saved.committed.map(|path| path.display().to_string()).unwrap_or_default();
    link.send(Body::Saved(rank::Saved {
        step: saved.id.step.0,
        path,
        bytes: saved.bytes,
        save_s: saved.write_time.as_secs_f64(),
    }));
    Ok(())
}
