//! Reductions and gathers that have begun and are not yet waited for.

use crate::Result;
use crate::ranks::Ranks;
use crate::state::State;
use lampyris_hfreduce::Reduction;
use lampyris_plan::inventory::Inventory;
use lampyris_plan::program::readers;
use lampyris_plan::segments::{Graph, Segment};
use std::collections::HashMap;

/// What runs under a rank's computation, by bucket.
#[derive(Debug)]
pub struct InFlight {
    reductions: Vec<Option<Reduction>>,
    gathers: Vec<Option<Reduction>>,
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
        self.reductions[bucket] = Some(reduction);
        Ok(())
    }

    /// Waits for all sums.
    pub fn finish_reductions(&mut self) -> Result<()> {
        for reduction in self.reductions.iter_mut().filter_map(Option::take) {
            reduction.wait()?;
        }
        Ok(())
    }

    /// Begins to bring the updated shards of a bucket to all its replicas.
    pub fn gather(&mut self, state: &State, ranks: &Ranks, bucket: usize) -> Result<()> {
        let array = &state.arrays[bucket];
        let group = state.buckets.buckets[bucket].group;
        if let (Some(shared), Some(reducer)) = (&array.weights.shared, ranks.reducer(group)) {
            self.gathers[bucket] = Some(reducer.gather(shared, &array.shards)?);
        }
        Ok(())
    }

    /// Waits for the weights that a segment reads.
    pub fn finish_gathers_of(&mut self, segment: Segment) -> Result<()> {
        let buckets = self.read_by.get(&segment).into_iter().flatten();
        for &bucket in buckets {
            if let Some(gather) = self.gathers[bucket].take() {
                gather.wait()?;
            }
        }
        Ok(())
    }

    /// Waits for all weights: before anything but a step reads them.
    pub fn finish_gathers(&mut self) -> Result<()> {
        for gather in self.gathers.iter_mut().filter_map(Option::take) {
            gather.wait()?;
        }
        Ok(())
    }
}
