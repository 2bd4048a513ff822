//! Buckets between the ranks that hold the same parameters: gradients that are summed, updated shards that are gathered.

use super::{Lane, Values};
use crate::Result;
use crate::planted::{Bug, planted};
use crate::trace::{Awaited, Clock};
use lampyris_hfreduce::Reduction;
use lampyris_plan::program::Transfer;
use lampyris_plan::train_plan::Sharding;
use std::collections::BTreeMap;
use std::time::Instant;

/// Reductions or gathers under way.
#[derive(Debug, Default)]
pub struct BucketLane {
    under_way: BTreeMap<Transfer, (Instant, Reduction)>,
}

impl BucketLane {
    /// Waits for everything that is under way.
    ///
    /// # Errors
    /// A peer is gone or late.
    pub fn finish(&mut self) -> Result<()> {
        for (_started, reduction) in std::mem::take(&mut self.under_way).into_values() {
            reduction.wait_for_end()?;
        }
        Ok(())
    }
}

impl Lane for BucketLane {
    fn start(&mut self, transfer: Transfer, on: &mut Values<'_>) -> Result<()> {
        let (Transfer::Reduce { bucket } | Transfer::Gather { bucket }) = transfer else {
            unreachable!("{transfer} moves no bucket")
        };
        let group = on.state.share.buckets().buckets[bucket].group;
        let reducer = on.ranks.reducer(group).expect("the program moves buckets of several ranks");
        let shards = on.state.share.shards(bucket);
        let reduction = match transfer {
            Transfer::Gather { .. } if planted(Bug::StaleWeights) => return Ok(()),
            Transfer::Gather { .. } => {
                let weights = on.state.arrays[bucket].weights.shared.as_ref();
                reducer.gather(weights.expect("gathered weights are shared"), shards)?
            }
            _ => {
                let gradient = on.state.gradients.bucket(bucket).shared.as_ref();
                let gradient = gradient.expect("gradients of several ranks are shared");
                match on.state.share.sharding() {
                    Sharding::Replicated => reducer.all_reduce(gradient)?,
                    Sharding::Optimizer => reducer.reduce_scatter(gradient, shards)?,
                }
            }
        };
        self.under_way.insert(transfer, (Instant::now(), reduction));
        Ok(())
    }

    /// A gather of the step before may have been waited for already, see [`BucketLane::finish`].
    fn wait(&mut self, transfer: Transfer, _on: &mut Values<'_>, clock: &mut Clock) -> Result<()> {
        let Some((started, reduction)) = self.under_way.remove(&transfer) else {
            assert!(matches!(transfer, Transfer::Gather { .. }), "{transfer} is not under way");
            return Ok(());
        };
        clock.wait(Awaited::Transfer(transfer), started, || -> Result<(Instant, ())> {
            Ok((reduction.wait_for_end()?, ()))
        })
    }
}
