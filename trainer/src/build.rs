//! From a rank's share to a rank that can compute: network, state, sink, and its part among the other ranks.

use crate::Result;
use crate::executor::Executor;
use crate::flat::Memory;
use crate::forward::Reader;
use crate::lanes::{Lane, Lanes, LocalRows, row_padding};
use crate::ranks::Ranks;
use crate::state::State;
use crate::trace::Clock;
use lampyris_model::Network;
use lampyris_plan::program::Program;
use lampyris_plan::segments::Segment;
use lampyris_plan::train_plan::{Compute, OptimizerPlan, TrainPlan};
use lampyris_plan::{ModelSpec, Share};
use lampyris_torch::Sink;
use std::sync::Arc;
use tch::Device;

/// A rank's network with its state.
#[derive(Debug)]
pub struct Rank {
    /// What of the job is this rank's.
    pub share: Share,
    /// The network.
    pub network: Network,
    /// Weights, moments, accumulators, progress.
    pub state: State,
    sink: Sink,
    /// The forward pass of the main model.
    main: Program,
    // Before the ranks: what is under way ends before the reducers do.
    lanes: Lanes,
    /// The ranks of the job.
    pub ranks: Ranks,
}

impl Rank {
    /// A job of one rank with zeroed weights for sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// The network cannot be computed.
    pub fn alone(
        spec: &ModelSpec,
        positions: usize,
        compute: Compute,
        device: Device,
    ) -> Result<Rank> {
        let share = Share::alone(spec, compute);
        let network = Network::new(spec, Arc::clone(share.inventory()), positions, device)?;
        Rank::new(share, network, device, Ranks::alone())
    }

    /// One rank of a plan, weights not yet set. Collective.
    ///
    /// # Errors
    /// The network cannot be computed, or a local rank does not do the same.
    pub fn of_plan(plan: &TrainPlan, device: Device, ranks: Ranks) -> Result<Rank> {
        let share = Share::of(plan, ranks.rank());
        let (inventory, positions) = (Arc::clone(share.inventory()), plan.batch.sequence_length);
        let network = Network::new(&plan.model, inventory, positions, device)?;
        Rank::new(share, network, device, ranks)
    }

    fn new(share: Share, network: Network, device: Device, mut ranks: Ranks) -> Result<Rank> {
        let state = State::new(&share, Memory { device, ranks: &ranks })?;
        let local = || Box::new(LocalRows::new(row_padding(share.compute())));
        let rows =
            ranks.take_rows().map_or_else(|| local() as Box<dyn Lane>, |rows| Box::new(rows));
        let main = Program::forward(&network.graph, Some(Segment::Head(0)));
        Ok(Rank { share, network, state, sink: Sink::new(), main, lanes: Lanes::new(rows), ranks })
    }

    /// What a forward pass needs. Waits for weights that are still on their way.
    ///
    /// # Errors
    /// A peer is gone or late.
    pub fn reader(&mut self) -> Result<Reader<'_>> {
        self.lanes.finish_gathers()?;
        let Rank { network, state, ranks, lanes, main, .. } = self;
        Ok(Reader { network, state, ranks, lanes, main })
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
            clock,
            ranks: &self.ranks,
            lanes: &mut self.lanes,
        }
    }
}
