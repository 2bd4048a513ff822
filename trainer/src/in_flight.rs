//! Reductions and gathers that have begun and are not yet waited for.

use crate::Result;
use crate::planted::{Bug, planted};
use crate::ranks::Ranks;
use crate::state::State;
use crate::trace::{Clock, Lane};
use lampyris_hfreduce::Reduction;
use lampyris_plan::inventory::Inventory;
use lampyris_plan::program::readers;
use lampyris_plan::segments::{Graph, Segment};
use std::collections::HashMap;
use std::time::Instant;

/// A reduction or gather, and when it began.
type Started = (Instant, Reduction);

/// What runs under a rank's computation, by bucket.
#[derive(Debug)]
pub struct InFlight {
    reductions: Vec<Option<Started>>,
    gathers: Vec<Option<Started>>,
    /// Buckets that a segment's forward pass reads.
    read_by: HashMap<Segment, Vec<usize>>,
}

impl InFlight {
    /// Nothing yet.
    pub fn new(state: &State, inventory: &Inventory, graph: &Graph) -> InFlight {
        let mut read_by: HashMap<Segment, Vec<usize>> = HashMap::new();
        for bucket in &state.buckets.buckets {
            for segment in readers(bucket, inventory, graph) {
                read_by.entry(segment).or_default().push(bucket.id);
            }
        }
        let none = || state.buckets.buckets.iter().map(|_| None).collect();
        InFlight { reductions: none(), gathers: none(), read_by }
    }

    /// Begins to sum a bucket's gradient over its replicas: to their shards where `state` is sharded, else to all.
    pub fn reduce(&mut self, state: &mut State, ranks: &Ranks, bucket: usize) -> Result<()> {
        state.gradients.merge_sources(bucket)?;
        let Some(shared) = &state.gradients.bucket(bucket).shared else { return Ok(()) };
        let group = state.buckets.buckets[bucket].group;
        let reducer = ranks.reducer(group).expect("a shared bucket has a reducer");
        let array = &state.arrays[bucket];
        // Weights are shared where their shards are gathered.
        let reduction = match array.weights.shared.is_some() {
            true => reducer.reduce_scatter(shared, &array.shards)?,
            false => reducer.all_reduce(shared)?,
        };
        self.reductions[bucket] = Some((Instant::now(), reduction));
        Ok(())
    }

    /// Waits for all sums. `clock` takes the time of the wait, here and below.
    pub fn finish_reductions(&mut self, clock: &mut Clock) -> Result<()> {
        for (bucket, reduction) in self.reductions.iter_mut().enumerate() {
            finish((Lane::Reduce, "ReduceBucket"), bucket, reduction.take(), clock)?;
        }
        Ok(())
    }

    /// Begins to bring the updated shards of a bucket to all its replicas.
    pub fn gather(&mut self, state: &State, ranks: &Ranks, bucket: usize) -> Result<()> {
        if planted(Bug::StaleWeights) {
            return Ok(());
        }
        let array = &state.arrays[bucket];
        let group = state.buckets.buckets[bucket].group;
        if let (Some(shared), Some(reducer)) = (&array.weights.shared, ranks.reducer(group)) {
            self.gathers[bucket] = Some((Instant::now(), reducer.gather(shared, &array.shards)?));
        }
        Ok(())
    }

    /// Waits for the weights that a segment reads.
    pub fn finish_gathers_of(&mut self, segment: Segment, clock: &mut Clock) -> Result<()> {
        for &bucket in self.read_by.get(&segment).into_iter().flatten() {
            finish((Lane::Gather, "GatherBucket"), bucket, self.gathers[bucket].take(), clock)?;
        }
        Ok(())
    }

    /// Waits for all weights: before anything but a step reads them.
    pub fn finish_gathers(&mut self) -> Result<()> {
        for (bucket, gather) in self.gathers.iter_mut().enumerate() {
            finish((Lane::Gather, ""), bucket, gather.take(), &mut Clock::default())?;
        }
        Ok(())
    }
}

/// Waits, if there is something to wait for; a trace names it like its instruction.
fn finish(
    (lane, instruction): (Lane, &str),
    bucket: usize,
    under_way: Option<Started>,
    clock: &mut Clock,
) -> Result<()> {
    let Some((started, reduction)) = under_way else { return Ok(()) };
    let name = || format!("{instruction} bucket {bucket}");
    clock.wait((lane, name), started, || -> Result<(Instant, ())> {
        Ok((reduction.wait_for_end()?, ()))
    })
}
