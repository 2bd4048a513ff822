//! From a plan to a rank that can compute: network, state, sink, and its part among the other ranks.

use crate::Result;
use crate::executor::{Executor, Reader};
use crate::flat::Memory;
use crate::in_flight::InFlight;
use crate::norm::NormTable;
use crate::ranks::Ranks;
use crate::state::{Layout, State};
use crate::trace::Clock;
use lampyris_model::Network;
use lampyris_plan::buckets::Buckets;
use lampyris_plan::program::{self, Program, Shape};
use lampyris_plan::train_plan::{Compute, OptimizerPlan, Reduction, TrainPlan};
use lampyris_plan::{Inventory, ModelSpec};
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
    norm: NormTable,
    // Before the ranks: what is under way ends before the reducers do.
    in_flight: InFlight,
    /// The ranks of the job.
    pub ranks: Ranks,
}

impl Rank {
    /// A job of one rank with zeroed weights for sequences of at most `positions` tokens.
    pub fn alone(
        spec: &ModelSpec,
        positions: usize,
        compute: Compute,
        device: Device,
    ) -> Result<Rank> {
        let network = Network::new(spec, positions, device)?;
        let layout = Layout { compute, accumulators: 1, by_source: false, sharded: false };
        Rank::new(network, &layout, usize::MAX, device, Ranks::alone())
    }

    /// One rank of a plan, weights not yet set. Collective.
    pub fn of_plan(plan: &TrainPlan, device: Device, ranks: Ranks) -> Result<Rank> {
        let mut network = Network::new(&plan.model, plan.batch.sequence_length, device)?;
        network.inventory = Inventory::of(plan);
        let layout = Layout {
            compute: plan.compute,
            accumulators: plan.leaves_per_rank().ilog2() as usize + 1,
            by_source: plan.batch.reduction == Reduction::Canonical,
            sharded: plan.parallel.zero > 0,
        };
        Rank::new(network, &layout, plan.parallel.bucket_bytes, device, ranks)
    }

    fn new(
        network: Network,
        layout: &Layout,
        bucket_bytes: usize,
        device: Device,
        ranks: Ranks,
    ) -> Result<Rank> {
        let inventory = &network.inventory;
        let (mesh, index) = (ranks.mesh(), ranks.mesh().expert_index(ranks.rank()));
        let buckets = Buckets::new(inventory, bucket_bytes, |id| mesh.holds(index, inventory, id));
        let state = State::new(inventory, buckets, layout, Memory { device, ranks: &ranks })?;
        let in_flight = InFlight::new(&state, inventory, &network.graph);
        let norm = NormTable::new(inventory, bucket_bytes, mesh);
        let (compute, sink) = (layout.compute, Sink::new());
        Ok(Rank { network, state, compute, sink, norm, in_flight, ranks })
    }

    /// What a forward pass needs. Waits for weights that are still on their way.
    pub fn reader(&mut self) -> Result<Reader<'_>> {
        self.in_flight.finish_gathers()?;
        let Rank { network, state, compute, ranks, .. } = self;
        Ok(Reader { network, state, compute: *compute, ranks })
    }

    /// The step program of `plan` for so many micro-batches of this rank.
    pub fn program(&self, plan: &TrainPlan, micro_batches: usize) -> Program {
        let shape = Shape {
            micro_batches,
            leaves: plan.leaves_per_rank(),
            mesh: self.ranks.mesh(),
            sharded: plan.parallel.zero > 0,
        };
        let make = if plan.parallel.overlap { program::overlapped } else { program::sequential };
        make(&self.network.graph, &self.network.inventory, &self.state.buckets, &shape)
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
            ranks: &self.ranks,
            in_flight: &mut self.in_flight,
            norm: &self.norm,
        }
    }
}
