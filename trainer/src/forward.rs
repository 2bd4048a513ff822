//! Forward passes without gradients: evaluation, generation, comparison. They go through forward programs, on the same
//! lanes as a step.

use crate::lanes::{Lanes, Values};
use crate::micro::Micro;
use crate::ranks::Ranks;
use crate::state::State;
use crate::trace::Clock;
use crate::{Error, Result};
use lampyris_model::{MicroBatch, Network, head};
use lampyris_plan::program::{self, Machine, Program, Task, Transfer, Value};
use lampyris_plan::segments::{Operation, Segment};
use lampyris_torch::Sink;
use std::collections::HashMap;
use tch::Tensor;

/// A network with the state it reads: everything a forward pass needs.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The network.
    pub network: &'a Network,
    /// The rank's state.
    pub state: &'a State,
    /// The ranks of the job.
    pub ranks: &'a Ranks,
    pub(crate) lanes: &'a mut Lanes,
    /// The forward pass of the main model.
    pub(crate) main: &'a Program,
}

impl Reader<'_> {
    /// The main model's last hidden state `[T, d]`, which the head reads. Collective over the ranks that share experts.
    ///
    /// # Errors
    /// libtorch refuses, or a peer is gone.
    pub fn hidden(&mut self, batch: &MicroBatch) -> Result<Tensor> {
        let micro = self.forward(self.main, batch, false)?;
        Ok(micro.read(Operation::Segment(Segment::Head(0))).remove(0))
    }

    /// What the gates choose, by decoder layer, those of MTP layers among them: as [`MicroBatch::choices`] takes it.
    ///
    /// # Errors
    /// As [`Reader::hidden`].
    pub fn choices(&mut self, batch: &MicroBatch) -> Result<HashMap<usize, Vec<i64>>> {
        let micro = self.all_values(batch)?;
        let layers = 0..self.network.spec.all_layers();
        Ok(layers.filter_map(|layer| Some((layer, micro.route(layer)?.chosen.clone()))).collect())
    }

    /// Summed next-token loss of the batch, nats.
    ///
    /// # Errors
    /// As [`Reader::hidden`].
    pub fn loss_sum(&mut self, batch: &MicroBatch) -> Result<f64> {
        let hidden = self.hidden(batch)?;
        let weight = self.state.weights.get(self.network.head());
        tch::no_grad(|| Ok(head::forward(&hidden, weight, &batch.targets[0], 1.0, None)?.loss_sum))
    }

    /// The values of all slots, and what the gates chose.
    pub(crate) fn all_values(&mut self, batch: &MicroBatch) -> Result<Micro> {
        self.forward(&Program::forward(&self.network.graph, None), batch, true)
    }

    fn forward(&mut self, program: &Program, batch: &MicroBatch, keep: bool) -> Result<Micro> {
        let _no_grad = tch::no_grad_guard();
        let micros = [Micro::new(&self.network.graph)];
        let Reader { network, state, ranks, .. } = *self;
        let sink = Sink::new();
        let lanes = &mut *self.lanes;
        let mut pass = ForwardPass { network, state, ranks, lanes, sink, batch, micros, keep };
        program::run(program, &mut pass)?;
        let [micro] = pass.micros;
        Ok(micro)
    }
}

/// Goes through a forward program.
struct ForwardPass<'a> {
    network: &'a Network,
    state: &'a State,
    ranks: &'a Ranks,
    lanes: &'a mut Lanes,
    /// Stays empty: nothing runs backward.
    sink: Sink,
    batch: &'a MicroBatch,
    micros: [Micro; 1],
    /// Whether values stay after their last use.
    keep: bool,
}

impl Machine for ForwardPass<'_> {
    type Error = Error;

    fn wait(&mut self, transfer: Transfer) -> Result<()> {
        let ForwardPass { network, state, ranks, micros, .. } = self;
        let mut on = Values { micros, state, network, ranks };
        self.lanes.of(transfer).wait(transfer, &mut on, &mut Clock::default())
    }

    fn start(&mut self, transfer: Transfer) -> Result<()> {
        let ForwardPass { network, state, ranks, micros, .. } = self;
        let mut on = Values { micros, state, network, ranks };
        self.lanes.of(transfer).start(transfer, &mut on)
    }

    fn compute(&mut self, task: Task) -> Result<()> {
        let Task::Forward { segment, .. } = task else {
            unreachable!("a forward program has no {task}")
        };
        let [micro] = &mut self.micros;
        let inputs = micro.read(Operation::Segment(segment));
        let pass = Pass { network: self.network, state: self.state, batch: self.batch };
        let outputs = pass.segment(segment, &self.sink, micro, &inputs)?;
        micro.write(Operation::Segment(segment), outputs);
        Ok(())
    }

    fn free(&mut self, value: Value) {
        if !self.keep {
            self.micros[0].free(value);
        }
    }
}

/// What segments read beside their slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) network: &'a Network,
    pub(crate) state: &'a State,
    pub(crate) batch: &'a MicroBatch,
}

impl Pass<'_> {
    /// Runs a segment on `inputs`. A gate's choice is the beginning of the layer's route.
    pub(crate) fn segment(
        &self,
        segment: Segment,
        sink: &Sink,
        micro: &mut Micro,
        inputs: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let Pass { network, state, batch } = *self;
        let mut ctx = network.context(&state.weights, &state.biases, batch, sink);
        if let Segment::Experts(layer) = segment {
            ctx.blocks = micro.route(layer).and_then(|route| route.blocks.as_ref());
        }
        let out = network.forward(segment, &ctx, inputs)?;
        if let (Some(chosen), Segment::Attention(layer)) = (out.experts, segment) {
            micro.choose(layer, chosen);
        }
        Ok(out.slots)
    }
}
