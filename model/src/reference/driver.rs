//! Runs a network's graph forward and backward on one micro-batch, operation by operation, as a rank's executor does but
//! without programs, buckets or leaves.

use crate::{MicroBatch, Network, Routing, Weights, head};
use lampyris_plan::segments::{Exchange, Operation, Segment, Slot};
use lampyris_torch::{Sink, WeightGradient, grad};
use std::collections::{BTreeMap, HashMap};
use tch::{Kind, Tensor};

/// A network with weights, ready to run.
pub(super) struct Driver {
    pub(super) network: Network,
    pub(super) weights: Weights,
    pub(super) biases: Vec<Vec<f32>>,
    /// Rows of an expert are padded to a multiple of this.
    pub(super) pad: usize,
}

/// What a micro-batch gives.
pub(super) struct Outcome {
    pub(super) loss_sums: Vec<f64>,
    pub(super) balance_sum: f64,
    /// fp32 gradient by parameter.
    pub(super) gradients: Vec<Tensor>,
    /// Values of all slots but the balance losses.
    pub(super) values: HashMap<Slot, Tensor>,
    /// Routing by layer.
    pub(super) routings: BTreeMap<usize, Routing>,
    /// Expert of each `[T, K]` slot by layer.
    pub(super) choices: BTreeMap<usize, Vec<i64>>,
}

/// A segment's inputs and attached outputs.
type Tape = (Vec<Tensor>, Vec<(Slot, Tensor)>);

struct Run<'a> {
    driver: &'a Driver,
    batch: &'a MicroBatch,
    sink: Sink,
    out: Outcome,
    tapes: HashMap<Segment, Tape>,
    slot_gradients: HashMap<Slot, Tensor>,
}

impl Driver {
    /// Views of the weights given by Hugging Face name: stacked as the inventory says, `compute` type or fp32.
    pub(super) fn new(
        network: Network,
        by_name: &BTreeMap<String, Tensor>,
        biases: Vec<Vec<f32>>,
        compute: Kind,
        pad: usize,
    ) -> Driver {
        use lampyris_plan::inventory::Storage;
        let stack = |p: &lampyris_plan::Parameter| {
            let parts: Vec<&Tensor> = p.parts.iter().map(|part| &by_name[&part.hf_name]).collect();
            let kind = if p.storage == Storage::Fp32 { Kind::Float } else { compute };
            Tensor::cat(&parts, 0).to_kind(kind)
        };
        let views = network.inventory.parameters.iter().map(stack).collect();
        Driver { network, weights: Weights { views }, biases, pad }
    }

    /// Forward and backward of `sum_k loss_scales[k] * loss_sums[k] + balance_scale * balance_sum`.
    pub(super) fn run(
        &self,
        batch: &MicroBatch,
        loss_scales: &[f64],
        balance_scale: f64,
    ) -> Outcome {
        let _no_grad = tch::no_grad_guard();
        let gradients = self.weights.views.iter().map(|w| w.zeros_like().to_kind(Kind::Float));
        let mut run = Run {
            driver: self,
            batch,
            sink: Sink::new(),
            out: Outcome {
                loss_sums: vec![0.0; loss_scales.len()],
                balance_sum: 0.0,
                gradients: gradients.collect(),
                values: HashMap::new(),
                routings: BTreeMap::new(),
                choices: BTreeMap::new(),
            },
            tapes: HashMap::new(),
            slot_gradients: HashMap::new(),
        };
        let operations = self.network.graph.forward();
        for &operation in &operations {
            run.forward(operation, loss_scales);
        }
        for &operation in operations.iter().rev() {
            run.backward(operation, balance_scale);
        }
        run.out
    }
}

impl Run<'_> {
    fn reads(&self, operation: Operation) -> Vec<Tensor> {
        let slots = self.driver.network.graph.reads(operation);
        slots.iter().map(|slot| self.out.values[slot].shallow_clone()).collect()
    }

    fn forward(&mut self, operation: Operation, loss_scales: &[f64]) {
        let outputs = match operation {
            Operation::Segment(Segment::Head(depth)) => {
                self.head(operation, depth, loss_scales[depth]);
                return;
            }
            Operation::Segment(segment) => self.segment(segment),
            Operation::Exchange(Exchange::Dispatch(layer)) => {
                let inputs = self.reads(operation);
                let (rows, weights) =
                    self.out.routings[&layer].dispatch(&inputs[0], &inputs[1]).unwrap();
                vec![rows, weights]
            }
            Operation::Exchange(Exchange::Combine(layer)) => {
                vec![self.out.routings[&layer].combine(&self.reads(operation)[0]).unwrap()]
            }
        };
        let slots = self.driver.network.graph.writes(operation);
        assert_eq!(slots.len(), outputs.len());
        for (slot, output) in slots.into_iter().zip(outputs) {
            match slot {
                Slot::Balance(_) => self.out.balance_sum += output.double_value(&[]),
                _ => _ = self.out.values.insert(slot, output.detach()),
            }
        }
    }

    fn segment(&mut self, segment: Segment) -> Vec<Tensor> {
        let driver = self.driver;
        let operation = Operation::Segment(segment);
        let inputs = self.reads(operation);
        let leaves: Vec<Tensor> =
            inputs.iter().map(|x| x.detach().set_requires_grad(true)).collect();
        let network = &driver.network;
        let mut ctx = network.context(&driver.weights, &driver.biases, self.batch, &self.sink);
        let blocks = match segment {
            Segment::Experts(layer) => self.out.routings.get(&layer).map(Routing::blocks),
            _ => None,
        };
        ctx.blocks = blocks.as_ref();
        let found = tch::with_grad(|| network.forward(segment, &ctx, &leaves)).unwrap();
        if let (Some(experts), Segment::Attention(layer)) = (found.experts, segment) {
            let moe = network.spec.moe.as_ref().unwrap();
            let routing = Routing::new(&experts, moe, driver.pad, tch::Device::Cpu);
            self.out.routings.insert(layer, routing);
            self.out.choices.insert(layer, experts);
        }
        let outputs: Vec<Tensor> = found.slots.iter().map(Tensor::shallow_clone).collect();
        let slots = network.graph.writes(operation).into_iter();
        self.tapes.insert(segment, (leaves, slots.zip(found.slots).collect()));
        outputs
    }

    fn head(&mut self, operation: Operation, depth: usize, scale: f64) {
        let driver = self.driver;
        let hidden = self.reads(operation).remove(0);
        let mut contributions = Vec::new();
        let mut keep = |entry: WeightGradient| {
            contributions.push(entry);
            Ok(())
        };
        let weight = driver.weights.get(driver.network.head());
        let targets = &self.batch.targets[depth];
        let found = head::forward(&hidden, weight, targets, scale, Some(&mut keep)).unwrap();
        self.out.loss_sums[depth] += found.loss_sum;
        contributions.into_iter().for_each(|entry| self.add(entry));
        self.contribute(operation, vec![found.input_gradient]);
    }

    fn backward(&mut self, operation: Operation, balance_scale: f64) {
        let found = match operation {
            Operation::Segment(Segment::Head(_)) => return,
            Operation::Segment(segment) => self.segment_backward(segment, balance_scale),
            Operation::Exchange(Exchange::Dispatch(layer)) => {
                let rows = &self.slot_gradients[&Slot::Rows(layer)];
                let weights = &self.slot_gradients[&Slot::RowWeights(layer)];
                let routing = &self.out.routings[&layer];
                let (tokens, weights) = routing.dispatch_backward(rows, weights).unwrap();
                vec![Some(tokens), Some(weights)]
            }
            Operation::Exchange(Exchange::Combine(layer)) => {
                let tokens = &self.slot_gradients[&Slot::Routed(layer)];
                vec![Some(self.out.routings[&layer].combine_backward(tokens).unwrap())]
            }
        };
        self.contribute(operation, found);
    }

    fn segment_backward(&mut self, segment: Segment, balance_scale: f64) -> Vec<Option<Tensor>> {
        let (leaves, outputs) = self.tapes.remove(&segment).expect("forward ran");
        let (mut values, mut weights) = (Vec::new(), Vec::new());
        for (slot, value) in outputs {
            let weight = match slot {
                Slot::Balance(_) => value.ones_like() * balance_scale,
                _ => self.slot_gradients[&slot].shallow_clone(),
            };
            values.push(value);
            weights.push(weight);
        }
        let anchor = [self.driver.network.anchor()];
        let inputs: Vec<&Tensor> = leaves.iter().collect();
        let wanted = if inputs.is_empty() { &anchor[..] } else { &inputs };
        let found = grad(&values, &weights, wanted).unwrap();
        self.sink.drain().into_iter().for_each(|entry| self.add(entry));
        if inputs.is_empty() { Vec::new() } else { found }
    }

    fn contribute(&mut self, operation: Operation, gradients: Vec<Option<Tensor>>) {
        let slots = self.driver.network.graph.reads(operation);
        for (slot, gradient) in slots.into_iter().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let sum = match self.slot_gradients.remove(&slot) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.slot_gradients.insert(slot, sum);
        }
    }

    fn add(&mut self, entry: WeightGradient) {
        let float = |x: Tensor| x.to_kind(Kind::Float);
        let gradients = &mut self.out.gradients;
        match entry {
            WeightGradient::Matmul { parameter, x, dy } => {
                gradients[parameter] += float(dy).tr().matmul(&float(x));
            }
            WeightGradient::Direct { parameter, gradient } => gradients[parameter] += gradient,
            WeightGradient::Embedding { parameter, ids, dy } => {
                gradients[parameter] = gradients[parameter].index_add(0, &ids, &float(dy));
            }
        }
    }
}
