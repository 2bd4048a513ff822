//! The rank as a machine that goes through step programs. Everything that overlaps in the system overlaps because of the
//! order of instructions; nothing here decides anything.

use crate::forward::Pass;
use crate::lanes::{Lanes, Values};
use crate::micro::Micro;
use crate::norm;
use crate::optimizer::{self, GradNorm, Update};
use crate::planted::{Bug, planted};
use crate::ranks::Ranks;
use crate::state::State;
use crate::tally::Tally;
use crate::trace::{Awaited, Clock};
use crate::{Error, Result};
use lampyris_model::{MicroBatch, Network, deepseek::bias, head};
use lampyris_plan::program::{self, Instruction, Machine, Program, Task, Transfer, Value};
use lampyris_plan::segments::{Operation, Segment};
use lampyris_plan::train_plan::OptimizerPlan;
use lampyris_torch::Sink;
use std::time::Instant;
use tch::Tensor;

/// What one step works on.
#[derive(Debug)]
pub struct StepInput {
    /// Micro-batches in order.
    pub batches: Vec<MicroBatch>,
    /// Factor on the summed loss of each prediction depth: 1 / (valid tokens of the global batch), times the MTP weight.
    pub loss_scales: Vec<f64>,
    /// Factor on the summed balance losses: 1 / (sequences of the global batch).
    pub balance_scale: f64,
    /// Learning rate.
    pub lr: f64,
    /// Speed gamma of the gate biases.
    pub bias_speed: f64,
}

/// What one step found; of the global batch once `GradNorm` has run, of this rank's micro-batches before.
#[derive(Debug, Clone, Default)]
pub struct StepReport {
    /// Summed loss per prediction depth, nats.
    pub loss_sums: Vec<f64>,
    /// Summed balance losses, alpha included.
    pub balance_sum: f64,
    /// Norm and clipping.
    pub grad_norm: Option<GradNorm>,
    /// Tokens per expert by decoder layer.
    pub expert_counts: Vec<Vec<u64>>,
}

/// Executes programs on one rank's state.
#[derive(Debug)]
pub struct Executor<'a> {
    /// The network.
    pub network: &'a Network,
    /// The rank's state.
    pub state: &'a mut State,
    /// Collects weight gradients between `Backward` and `Weight`.
    pub sink: &'a mut Sink,
    /// Optimizer settings.
    pub optimizer: &'a OptimizerPlan,
    /// Times instructions and waits.
    pub clock: &'a mut Clock,
    /// The ranks of the job.
    pub ranks: &'a Ranks,
    /// What moves while this rank computes.
    pub lanes: &'a mut Lanes,
}

impl Executor<'_> {
    /// Runs every instruction of `program` on `input`.
    ///
    /// # Errors
    /// libtorch refuses, a peer is gone or late, or a loss or gradient is not finite.
    pub fn run(&mut self, program: &Program, input: &StepInput) -> Result<StepReport> {
        assert_eq!(program.micro_batches, input.batches.len());
        // Autograd records inside segments only.
        let _no_grad = tch::no_grad_guard();
        let graph = &self.network.graph;
        let micros = input.batches.iter().map(|_| Micro::new(graph)).collect();
        let tally = Tally::new(program.micro_batches, graph.depths(), &self.state.biases);
        self.clock.begin();
        let mut step = Step { rank: self, input, micros, tally, grad_norm: None };
        program::run(program, &mut step)?;
        let Step { micros, tally, grad_norm, .. } = step;
        debug_assert!(micros.iter().all(Micro::is_empty), "a step leaves nothing behind");
        let (loss_sums, balance_sum) = tally.sums();
        Ok(StepReport { loss_sums, balance_sum, grad_norm, expert_counts: tally.expert_counts })
    }

    /// Begins a transfer of `micros` or of the state on its lane.
    pub(crate) fn start(&mut self, transfer: Transfer, micros: &mut [Micro]) -> Result<()> {
        let Executor { state, network, ranks, lanes, .. } = self;
        let mut on = Values { micros, state, network, ranks };
        lanes.of(transfer).start(transfer, &mut on)
    }

    /// Waits for a transfer on its lane.
    pub(crate) fn wait(&mut self, transfer: Transfer, micros: &mut [Micro]) -> Result<()> {
        let Executor { state, network, ranks, lanes, clock, .. } = self;
        let mut on = Values { micros, state, network, ranks };
        lanes.of(transfer).wait(transfer, &mut on, clock)
    }
}

/// A step on its way through its program.
struct Step<'s, 'a> {
    rank: &'s mut Executor<'a>,
    input: &'s StepInput,
    micros: Vec<Micro>,
    tally: Tally,
    grad_norm: Option<GradNorm>,
}

impl Machine for Step<'_, '_> {
    type Error = Error;

    fn wait(&mut self, transfer: Transfer) -> Result<()> {
        self.rank.wait(transfer, &mut self.micros)
    }

    fn start(&mut self, transfer: Transfer) -> Result<()> {
        self.rank.start(transfer, &mut self.micros)
    }

    fn compute(&mut self, task: Task) -> Result<()> {
        match task {
            Task::Forward { micro, segment } => self.forward(micro, segment),
            Task::Loss { micro, depth, leaf } => self.loss(micro, depth, leaf),
            Task::Backward { micro, segment } => self.backward(micro, segment),
            Task::Weight { micro, segment, leaf } => self.weight(micro, segment, leaf),
            Task::FoldLeaf { bucket, leaf } => self.rank.state.gradients.fold(bucket, leaf),
            Task::MergeSources { bucket } => self.rank.state.gradients.merge_sources(bucket),
            Task::GradNorm => self.grad_norm(),
            Task::UpdateShard { bucket } => self.update_shard(bucket),
            Task::UpdateBias => self.update_bias(),
        }
    }

    fn free(&mut self, value: Value) {
        self.micros[value.micro()].free(value);
    }

    fn done(&mut self, instruction: &Instruction) {
        self.rank.clock.lap(instruction.act);
    }
}

impl Step<'_, '_> {
    fn forward(&mut self, index: usize, segment: Segment) -> Result<()> {
        let micro = &mut self.micros[index];
        let leaves = micro.leaves(Operation::Segment(segment));
        let Executor { network, state, sink, .. } = &*self.rank;
        let pass = Pass { network, state, batch: &self.input.batches[index] };
        let outputs = tch::with_grad(|| pass.segment(segment, sink, micro, &leaves))?;
        let balance = micro.record(segment, leaves, outputs);
        let Segment::Attention(layer) = segment else { return Ok(()) };
        if let Some(balance) = balance {
            self.tally.balance(index, layer, balance);
        }
        if let Some(route) = micro.route(layer) {
            self.tally.count(layer, &route.chosen);
        }
        Ok(())
    }

    fn loss(&mut self, index: usize, depth: usize, leaf: usize) -> Result<()> {
        let operation = Operation::Segment(Segment::Head(depth));
        let micro = &mut self.micros[index];
        let hidden = micro.read(operation).remove(0);
        let Executor { network, state, ranks, .. } = &mut *self.rank;
        let weight = state.weights.get(network.head());
        let gradients = &mut state.gradients;
        let mut add = |gradient| gradients.add(&gradient, leaf);
        let missing = planted(Bug::MissingMtp) && depth > 0 && !ranks.is_first();
        let scale = if missing { 0.0 } else { self.input.loss_scales[depth] };
        let targets = &self.input.batches[index].targets[depth];
        let out = head::forward(&hidden, weight, targets, scale, Some(&mut add))?;
        self.tally.loss(index, depth, out.loss_sum);
        micro.contribute(operation, vec![out.input_gradient]);
        Ok(())
    }

    fn backward(&mut self, index: usize, segment: Segment) -> Result<()> {
        let micro = &mut self.micros[index];
        let tape = micro.take_tape(segment);
        let mut outputs = Vec::new();
        let mut gradients = Vec::new();
        for (slot, output) in tape.outputs {
            let gradient = match slot.is_loss() {
                true => Some(output.ones_like() * self.input.balance_scale),
                false => micro.gradient(slot),
            };
            if let Some(gradient) = gradient {
                outputs.push(output);
                gradients.push(gradient);
            }
        }
        let anchor = [self.rank.network.anchor()];
        let inputs: Vec<&Tensor> = tape.leaves.iter().collect();
        let wanted = if inputs.is_empty() { &anchor[..] } else { &inputs };
        let results = lampyris_torch::grad(&outputs, &gradients, wanted)?;
        if !inputs.is_empty() {
            micro.contribute(Operation::Segment(segment), results);
        }
        micro.queue_weight_gradients(segment, self.rank.sink.drain());
        Ok(())
    }

    fn weight(&mut self, index: usize, segment: Segment, leaf: usize) -> Result<()> {
        for gradient in self.micros[index].take_weight_gradients(segment) {
            self.rank.state.gradients.add(&gradient, leaf)?;
        }
        Ok(())
    }

    /// Brings norm, losses and counts of all ranks together, and decides about clipping.
    fn grad_norm(&mut self) -> Result<()> {
        let Executor { state, network, optimizer, clock, ranks, .. } = &mut *self.rank;
        let mut table = norm::table(state)?;
        let tally = &mut self.tally;
        clock.wait(Awaited::NormTable, Instant::now(), || -> Result<(Instant, ())> {
            tally.exchange(ranks, &mut table)?;
            Ok((Instant::now(), ()))
        })?;
        let step = state.progress.step + 1;
        let bad = tally.sums().0.iter().position(|sum| !sum.is_finite());
        if let (true, Some(depth)) = (optimizer.nan_guard, bad) {
            return Err(Error::NotFinite { step, what: format!("loss at depth {depth}") });
        }
        let squares = state.share.norm().sums(&table);
        self.grad_norm = Some(optimizer::grad_norm(squares, &network.inventory, optimizer, step)?);
        Ok(())
    }

    fn update_shard(&mut self, bucket: usize) -> Result<()> {
        let Executor { state, network, optimizer, .. } = &mut *self.rank;
        let grad_scale = self.grad_norm.map_or(1.0, |found| found.scale);
        let update = Update { plan: optimizer, lr: self.input.lr, grad_scale };
        update.bucket(state, &network.inventory, bucket)
    }

    fn update_bias(&mut self) -> Result<()> {
        let biases = &mut self.rank.state.biases;
        for (bias, counts) in biases.iter_mut().zip(&self.tally.expert_counts) {
            bias::update(bias, counts, self.input.bias_speed);
        }
        Ok(())
    }
}
