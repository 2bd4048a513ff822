//! Runs a step program, one instruction after the other. Everything that overlaps in the system overlaps because of the
//! order of instructions; nothing here decides anything.

use crate::exchange;
use crate::micro::Micro;
use crate::optimizer::{self, GradNorm};
use crate::state::State;
use crate::trace::Clock;
use crate::{Error, Result};
use lampyris_model::{MicroBatch, Network, Routing, deepseek::bias, head};
use lampyris_plan::program::{Instruction, Pass, Program};
use lampyris_plan::segments::{Operation, Segment, Slot};
use lampyris_plan::train_plan::{Compute, OptimizerPlan};
use lampyris_torch::Sink;
use tch::Tensor;

/// Rows of an expert are padded to a multiple of this: row bits of a product then do not depend on its row count, and
/// oneDNN keeps few primitives (fp32 needs 32, bf16 profits from 64).
fn row_padding(compute: Compute) -> usize {
    match compute {
        Compute::Fp32 => 32,
        Compute::Bf16 => 64,
    }
}

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

/// What one step found.
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
}

impl Executor<'_> {
    /// Runs every instruction of `program` on `input`.
    pub fn run(&mut self, program: &Program, input: &StepInput) -> Result<StepReport> {
        assert_eq!(program.micro_batches, input.batches.len());
        // Autograd records inside segments only.
        let _no_grad = tch::no_grad_guard();
        let graph = &self.network.graph;
        let mut micros: Vec<Micro> = input.batches.iter().map(|_| Micro::new(graph)).collect();
        let mut report = StepReport {
            loss_sums: vec![0.0; graph.depths()],
            expert_counts: self.state.biases.iter().map(|b| vec![0; b.len()]).collect(),
            ..StepReport::default()
        };
        for &instruction in &program.instructions {
            let started = self.clock.start();
            match instruction {
                Instruction::BeginLeaf { leaf } => self.state.gradients.begin_leaf(leaf),
                Instruction::Forward { micro, segment } => {
                    self.forward(&mut micros[micro], micro, segment, input, &mut report)?;
                }
                Instruction::Backward { micro, segment } => {
                    self.backward(&mut micros[micro], segment, input)?;
                }
                Instruction::Weight { micro, segment } => {
                    for gradient in micros[micro].take_weight_gradients(segment) {
                        self.state.gradients.add(gradient)?;
                    }
                }
                Instruction::Dispatch { micro, layer, pass } => {
                    if pass == Pass::Forward {
                        count(&micros[micro], layer, &mut report.expert_counts);
                    }
                    exchange::dispatch(&mut micros[micro], layer, pass)?;
                }
                Instruction::Combine { micro, layer, pass } => {
                    exchange::combine(&mut micros[micro], layer, pass)?;
                }
                Instruction::FoldLeaf { bucket, leaf } => {
                    self.state.gradients.fold(bucket, leaf)?
                }
                Instruction::GradNorm => report.grad_norm = Some(self.grad_norm(&report)?),
                Instruction::UpdateShard { bucket } => {
                    let scale = report.grad_norm.map_or(1.0, |g| g.scale);
                    optimizer::update(self.state, bucket, self.optimizer, input.lr, scale)?;
                }
                Instruction::ReduceBucket { .. } | Instruction::GatherBucket { .. } => {
                    unreachable!("programs of one rank reduce and gather nothing")
                }
                Instruction::UpdateBias => self.update_bias(input.bias_speed, &report),
            }
            self.clock.stop(started, instruction);
        }
        Ok(report)
    }

    fn forward(
        &mut self,
        micro: &mut Micro,
        index: usize,
        segment: Segment,
        input: &StepInput,
        report: &mut StepReport,
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
            let (targets, scale) = (&batch.targets[depth], input.loss_scales[depth]);
            let out = head::forward(&hidden, weight, targets, scale, Some(&mut add))?;
            report.loss_sums[depth] += out.loss_sum;
            micro.keep_head_gradient(segment, out.input_gradient);
            return Ok(());
        }
        let leaves = micro.leaves(Operation::Segment(segment));
        let rank = Reader { network: self.network, state: self.state, compute: self.compute };
        let outputs = tch::with_grad(|| rank.segment(segment, batch, self.sink, micro, &leaves))?;
        if let Some(balance) = micro.record(segment, leaves, outputs) {
            report.balance_sum += balance;
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

    fn grad_norm(&self, report: &StepReport) -> Result<GradNorm> {
        let step = self.state.progress.step + 1;
        let bad = report.loss_sums.iter().position(|sum| !sum.is_finite());
        if let (true, Some(depth)) = (self.optimizer.nan_guard, bad) {
            return Err(Error::NotFinite { step, what: format!("loss at depth {depth}") });
        }
        optimizer::grad_norm(self.state, &self.network.inventory, self.optimizer)
    }

    fn update_bias(&mut self, speed: f64, report: &StepReport) {
        for (bias, counts) in self.state.biases.iter_mut().zip(&report.expert_counts) {
            bias::update(bias, counts, speed);
        }
    }
}

/// Adds the micro-batch's tokens per expert to the step's.
fn count(micro: &Micro, layer: usize, counts: &mut [Vec<u64>]) {
    let routing = micro.routing(layer).expect("the gate ran before dispatch");
    counts[layer].iter_mut().zip(&routing.counts).for_each(|(sum, count)| *sum += count);
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
            let padding = row_padding(self.compute);
            micro.set_routing(layer, Routing::new(experts, moe, padding, out.slots[0].device()));
        }
        Ok(out.slots)
    }

    /// Forward pass of the main model without gradients: the head's input `[T, d]`.
    pub fn hidden(&self, batch: &MicroBatch) -> Result<Tensor> {
        let sink = Sink::new();
        tch::no_grad(|| {
            let mut micro = Micro::new(&self.network.graph);
            for operation in self.network.graph.forward() {
                match operation {
                    Operation::Segment(Segment::Head(_)) => {
                        return Ok(micro.read(operation).remove(0));
                    }
                    Operation::Segment(segment) => {
                        let inputs = micro.read(operation);
                        let outputs = self.segment(segment, batch, &sink, &mut micro, &inputs)?;
                        micro.write(operation, outputs);
                    }
                    Operation::Dispatch(layer) => {
                        exchange::dispatch(&mut micro, layer, Pass::Forward)?;
                    }
                    Operation::Combine(layer) => {
                        exchange::combine(&mut micro, layer, Pass::Forward)?;
                    }
                }
            }
            unreachable!("every graph ends with a head")
        })
    }

    /// Summed next-token loss of the batch, nats.
    pub fn loss_sum(&self, batch: &MicroBatch) -> Result<f64> {
        let hidden = self.hidden(batch)?;
        let weight = self.state.weights.get(self.network.head());
        tch::no_grad(|| Ok(head::forward(&hidden, weight, &batch.targets[0], 1.0, None)?.loss_sum))
    }
}
