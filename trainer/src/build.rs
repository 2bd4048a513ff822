//! From a plan to a rank that can compute: network, state, sink.

use crate::Result;
use crate::executor::{Executor, Reader};
use crate::state::{State, device_memory};
use crate::trace::Clock;
use lampyris_model::Network;
use lampyris_plan::ModelSpec;
use lampyris_plan::buckets::Buckets;
use lampyris_plan::train_plan::{Compute, OptimizerPlan, TrainPlan};
use lampyris_torch::Sink;
use tch::Device;

/// A rank's network with its state.
#[derive(Debug)]
pub struct Rank {
    /// The network.
    pub network: Network,
    /// Weights, moments, accumulators, progress.
    pub state: State,
    /// Compute type.
    pub compute: Compute,
    sink: Sink,
}

impl Rank {
    /// A rank with zeroed weights for sequences of at most `positions` tokens.
    pub fn new(
        spec: &ModelSpec,
        positions: usize,
        compute: Compute,
        leaves: usize,
        bucket_bytes: usize,
        device: Device,
    ) -> Result<Rank> {
        let network = Network::new(spec, positions, device)?;
        let buckets = Buckets::new(&network.inventory, bucket_bytes, |_| true);
        let accumulators = leaves.ilog2() as usize + 1;
        let allocate = device_memory(device);
        let state = State::new(&network.inventory, buckets, compute, accumulators, &allocate);
        Ok(Rank { network, state, compute, sink: Sink::new() })
    }

    /// The rank of a plan, weights not yet set.
    pub fn of_plan(plan: &TrainPlan, device: Device) -> Result<Rank> {
        let batch = &plan.batch;
        let bucket_bytes = plan.parallel.bucket_bytes;
        Rank::new(
            &plan.model,
            batch.sequence_length,
            plan.compute,
            plan.leaves_per_rank(),
            bucket_bytes,
            device,
        )
    }

    /// What a forward pass needs.
    pub fn reader(&self) -> Reader<'_> {
        Reader { network: &self.network, state: &self.state, compute: self.compute }
    }

    /// What a step needs.
    pub fn executor<'a>(
        &'a mut self,
        optimizer: &'a OptimizerPlan,
        clock: &'a mut Clock,
    ) -> Executor<'a> {
        Executor {
            network: &self.network,
            state: &mut self.state,
            sink: &mut self.sink,
            optimizer,
            compute: self.compute,
            clock,
        }
    }
}
