//! Runs a step program, one instruction after the other. Everything that overlaps in the system overlaps because of the
//! order of instructions; nothing here decides anything.

use crate::exchange::{self, row_padding};
use crate::in_flight::InFlight;
use crate::micro::Micro;
use crate::norm::NormTable;
use crate::optimizer::{self, GradNorm, Update};
use crate::planted::{Bug, planted};
use crate::ranks::Ranks;
use crate::state::State;
use crate::tally::Tally;
use crate::trace::{Clock, Lane};
use crate::{Error, Result};
use lampyris_model::{MicroBatch, Network, Routing, deepseek::bias, head};
use lampyris_plan::program::{Instruction, Pass, Program};
use lampyris_plan::segments::{Operation, Segment, Slot};
use lampyris_plan::train_plan::{Compute, OptimizerPlan};
use lampyris_torch::Sink;
use std::collections::HashMap;
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
    /// Compute type.
    pub compute: Compute,
    /// Times each instruction.
    pub clock: &'a mut Clock,
    /// The ranks of the job.
    pub ranks: &'a Ranks,
    /// Reductions and gathers under way.
    pub in_flight: &'a mut InFlight,
    /// Where the sums of the gradient norm stand.
    pub norm: &'a NormTable,
}

impl Executor<'_> {
    /// Runs every instruction of `program` on `input`.
    pub fn run(&mut self, program: &Program, input: &StepInput) -> Result<StepReport> {
        assert_eq!(program.micro_batches, input.batches.len());
        // Autograd records inside segments only.
        let _no_grad = tch::no_grad_guard();
        let graph = &self.network.graph;
        let mut micros: Vec<Micro> = input.batches.iter().map(|_| Micro::new(graph)).collect();
        let mut tally = Tally::new(program.micro_batches, graph.depths(), &self.state.biases);
        let mut grad_norm = None;
        for &instruction in &program.instructions {
            let started = self.clock.start();
            match instruction {
                Instruction::BeginLeaf { leaf } => self.state.gradients.begin_leaf(leaf),
                Instruction::Forward { micro, segment } => {
                    self.settle(&mut micros[micro], Operation::Segment(segment), Pass::Forward)?;
                    self.in_flight.finish_gathers_of(segment, self.clock)?;
                    self.forward(&mut micros[micro], micro, segment, input, &mut tally)?;
                }
                Instruction::Backward { micro, segment } => {
                    self.settle(&mut micros[micro], Operation::Segment(segment), Pass::Backward)?;
                    self.backward(&mut micros[micro], segment, input)?;
                }
                Instruction::Weight { micro, segment } => {
                    for gradient in micros[micro].take_weight_gradients(segment) {
                        self.state.gradients.add(gradient)?;
                    }
                    if segment == Segment::Embed {
                        micros[micro].backward_is_complete();
                    }
                }
                Instruction::Dispatch { micro, layer, pass } => {
                    if pass == Pass::Forward {
                        tally.count(layer, micros[micro].routing(layer));
                    }
                    self.settle(&mut micros[micro], Operation::Dispatch(layer), pass)?;
                    exchange::dispatch(&mut micros[micro], self.ranks.exchange(), layer, pass)?;
                }
                Instruction::Combine { micro, layer, pass } => {
                    self.settle(&mut micros[micro], Operation::Combine(layer), pass)?;
                    exchange::combine(&mut micros[micro], self.ranks.exchange(), layer, pass)?;
                }
                Instruction::FoldLeaf { bucket, leaf } => {
                    self.state.gradients.fold(bucket, leaf)?
                }
                Instruction::ReduceBucket { bucket } => {
                    self.in_flight.reduce(self.state, self.ranks, bucket)?;
                }
                Instruction::GradNorm => grad_norm = Some(self.grad_norm(&mut tally)?),
                Instruction::UpdateShard { bucket } => {
                    let scale = grad_norm.map_or(1.0, |g: GradNorm| g.scale);
                    let update = Update { plan: self.optimizer, lr: input.lr, grad_scale: scale };
                    update.bucket(self.state, &self.network.inventory, bucket)?;
                }
                Instruction::GatherBucket { bucket } => {
                    self.in_flight.gather(self.state, self.ranks, bucket)?;
                }
                Instruction::UpdateBias => self.update_bias(input.bias_speed, &tally),
            }
            self.clock.stop(started, instruction);
        }
        let (loss_sums, balance_sum) = tally.sums();
        Ok(StepReport { loss_sums, balance_sum, grad_norm, expert_counts: tally.expert_counts })
    }

    /// Waits for the rows that `operation` needs.
    fn settle(&mut self, micro: &mut Micro, operation: Operation, pass: Pass) -> Result<()> {
        exchange::settle(micro, self.ranks.exchange(), (operation, pass), self.clock)
    }

    fn forward(
        &mut self,
        micro: &mut Micro,
        index: usize,
        segment: Segment,
        input: &StepInput,
        tally: &mut Tally,
    ) -> Result<()> {
        let batch = &input.batches[index];
        if let Segment::Head(depth) = segment {
            let hidden = micro.read(Operation::Segment(segment)).remove(0);
            let weight = self.state.weights.get(self.network.head());
            let gradients = &mut self.state.gradients;
            let mut add = |g| {
                gradients.add(g).map_err(|e| match e {
                    Error::Model(e) => e,
                    other => unreachable!("gradients fail in libtorch only: {other}"),
                })
            };
            let missing = planted(Bug::MissingMtp) && depth > 0 && !self.ranks.is_first();
            let scale = if missing { 0.0 } else { input.loss_scales[depth] };
            let targets = &batch.targets[depth];
            let out = head::forward(&hidden, weight, targets, scale, Some(&mut add))?;
            tally.loss(index, depth, out.loss_sum);
            micro.keep_head_gradient(segment, out.input_gradient);
            return Ok(());
        }
        let leaves = micro.leaves(Operation::Segment(segment));
        let Executor { network, compute, ranks, .. } = *self;
        let rank = Reader { network, state: self.state, compute, ranks };
        let outputs = tch::with_grad(|| rank.segment(segment, batch, self.sink, micro, &leaves))?;
        if let (Some(balance), Segment::Attention(layer)) =
            (micro.record(segment, leaves, outputs), segment)
        {
            tally.balance(index, layer, balance);
        }
        Ok(())
    }

    fn backward(&mut self, micro: &mut Micro, segment: Segment, input: &StepInput) -> Result<()> {
        if let Segment::Head(_) = segment {
            let gradient = micro.take_head_gradient(segment);
            micro.contribute(Operation::Segment(segment), vec![gradient]);
            return Ok(());
        }
        let tape = micro.take_tape(segment);
        let mut outputs = Vec::new();
        let mut gradients = Vec::new();
        for (slot, output) in tape.outputs {
            let gradient = match slot {
                Slot::Balance(_) => Some(output.ones_like() * input.balance_scale),
                _ => micro.gradient(slot),
            };
            if let Some(gradient) = gradient {
                outputs.push(output);
                gradients.push(gradient);
            }
        }
        let anchor = [self.network.anchor()];
        let inputs: Vec<&Tensor> = tape.leaves.iter().collect();
        let wanted = if inputs.is_empty() { &anchor[..] } else { &inputs };
        let results = lampyris_torch::grad(&outputs, &gradients, wanted)?;
        if !inputs.is_empty() {
            micro.contribute(Operation::Segment(segment), results);
        }
        micro.queue_weight_gradients(segment, self.sink.drain());
        Ok(())
    }

    /// Waits for all gradients, brings norm, losses and counts of all ranks together, and decides about clipping.
    fn grad_norm(&mut self, tally: &mut Tally) -> Result<GradNorm> {
        self.in_flight.finish_reductions(self.clock)?;
        let mut table = vec![0f64; self.norm.len()];
        self.norm.fill(self.state, &mut table)?;
        let ranks = self.ranks;
        let name = || "norm, losses and counts".to_string();
        self.clock.wait((Lane::Optimizer, name), Instant::now(), || -> Result<(Instant, ())> {
            tally.exchange(ranks, &mut table)?;
            Ok((Instant::now(), ()))
        })?;
        let step = self.state.progress.step + 1;
        let bad = tally.sums().0.iter().position(|sum| !sum.is_finite());
        if let (true, Some(depth)) = (self.optimizer.nan_guard, bad) {
            return Err(Error::NotFinite { step, what: format!("loss at depth {depth}") });
        }
        let squares = self.norm.squares(&table);
        optimizer::grad_norm(squares, &self.network.inventory, self.optimizer, step)
    }

    fn update_bias(&mut self, speed: f64, tally: &Tally) {
        for (bias, counts) in self.state.biases.iter_mut().zip(&tally.expert_counts) {
            bias::update(bias, counts, speed);
        }
    }
}

/// A network with the state it reads: everything a forward pass needs.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// The network.
    pub network: &'a Network,
    /// The rank's state.
    pub state: &'a State,
    /// Compute type.
    pub compute: Compute,
    /// The ranks of the job.
    pub ranks: &'a Ranks,
}

impl Reader<'_> {
    /// Runs a segment on `inputs`; a gate's choice becomes the layer's routing.
    fn segment(
        &self,
        segment: Segment,
        batch: &MicroBatch,
        sink: &Sink,
        micro: &mut Micro,
        inputs: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let mut ctx = self.network.context(&self.state.weights, &self.state.biases, batch, sink);
        if let Segment::Experts(layer) = segment {
            ctx.blocks = micro.blocks(layer);
        }
        let out = self.network.forward(segment, &ctx, inputs)?;
        if let (Some(experts), Segment::Attention(layer)) = (&out.experts, segment) {
            let moe = self.network.spec.moe.as_ref().expect("only MoE layers gate");
            let device = out.slots[0].device();
            let routing = match self.ranks.exchange() {
                Some(_) => Routing::remote(experts, moe, device),
                None => Routing::new(experts, moe, row_padding(self.compute), device),
            };
            micro.set_routing(layer, routing);
        }
        Ok(out.slots)
    }

    /// Forward pass of the main model without gradients: the head's input `[T, d]`. Collective over the ranks that share
    /// experts.
    pub fn hidden(&self, batch: &MicroBatch) -> Result<Tensor> {
        let head = Operation::Segment(Segment::Head(0));
        Ok(self.walk(batch, Some(head))?.read(head).remove(0))
    }

    /// What the gates choose, by decoder layer, those of MTP layers among them: as [`MicroBatch::choices`] takes it.
    pub fn choices(&self, batch: &MicroBatch) -> Result<HashMap<usize, Vec<i64>>> {
        let micro = self.walk(batch, None)?;
        let chosen = |layer: usize| -> Option<(usize, Vec<i64>)> {
            let (experts, _) = micro.routing(layer)?.chosen();
            Some((layer, experts.iter().map(|&expert| i64::from(expert)).collect()))
        };
        Ok((0..self.network.spec.all_layers()).filter_map(chosen).collect())
    }

    /// All operations in forward order, without gradients; up to `end` if it is given. Heads are left out.
    pub(crate) fn walk(&self, batch: &MicroBatch, end: Option<Operation>) -> Result<Micro> {
        let sink = Sink::new();
        tch::no_grad(|| {
            let mut micro = Micro::new(&self.network.graph);
            let exchange = self.ranks.exchange();
            let operations = self.network.graph.forward();
            for operation in operations.into_iter().take_while(|o| Some(*o) != end) {
                let needs = (operation, Pass::Forward);
                exchange::settle(&mut micro, exchange, needs, &mut Clock::default())?;
                match operation {
                    Operation::Segment(Segment::Head(_)) => {}
                    Operation::Segment(segment) => {
                        let inputs = micro.read(operation);
                        let outputs = self.segment(segment, batch, &sink, &mut micro, &inputs)?;
                        micro.write(operation, outputs);
                    }
                    Operation::Dispatch(layer) => {
                        exchange::dispatch(&mut micro, exchange, layer, Pass::Forward)?;
                    }
                    Operation::Combine(layer) => {
                        exchange::combine(&mut micro, exchange, layer, Pass::Forward)?;
                    }
                }
            }
            if let Some(end) = end {
                let needs = (end, Pass::Forward);
                exchange::settle(&mut micro, exchange, needs, &mut Clock::default())?;
            }
            Ok(micro)
        })
    }

    /// Summed next-token loss of the batch, nats.
    pub fn loss_sum(&self, batch: &MicroBatch) -> Result<f64> {
        let hidden = self.hidden(batch)?;
        let weight = self.state.weights.get(self.network.head());
        tch::no_grad(|| Ok(head::forward(&hidden, weight, &batch.targets[0], 1.0, None)?.loss_sum))
    }
}
