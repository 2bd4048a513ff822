//! One micro-batch in a step: slot values, tapes of segments, gradients on their way back, routes of its rows.

use crate::route::Route;
use lampyris_plan::program::Value;
use lampyris_plan::segments::{Graph, Operation, Segment, Slot};
use lampyris_torch::WeightGradient;
use std::collections::HashMap;
use std::sync::Arc;
use tch::Tensor;

/// What a segment's backward needs: its detached inputs and its attached outputs.
#[derive(Debug)]
pub struct Tape {
    /// Leaves in the order of [`Graph::reads`].
    pub leaves: Vec<Tensor>,
    /// Outputs with their slots.
    pub outputs: Vec<(Slot, Tensor)>,
}

/// What one reader of a slot gives to its gradient.
#[derive(Debug)]
enum Contribution {
    /// Its backward pass has not run.
    Pending,
    /// Its outputs do not depend on the slot.
    NoGradient,
    /// A part of the sum.
    Value(Tensor),
}

/// State of one micro-batch inside a step. What it holds and when it gives it back is the program's business.
#[derive(Debug)]
pub struct Micro {
    graph: Arc<Graph>,
    values: HashMap<Slot, Tensor>,
    /// By slot: one for each reader, in their order.
    gradients: HashMap<Slot, Vec<Contribution>>,
    tapes: HashMap<Segment, Tape>,
    queues: HashMap<Segment, Vec<WeightGradient>>,
    routes: HashMap<usize, Route>,
}

impl Micro {
    /// An empty micro-batch of a network with this graph.
    pub fn new(graph: &Arc<Graph>) -> Micro {
        Micro {
            graph: Arc::clone(graph),
            values: HashMap::new(),
            gradients: HashMap::new(),
            tapes: HashMap::new(),
            queues: HashMap::new(),
            routes: HashMap::new(),
        }
    }

    /// Values of the slots that `operation` reads.
    pub fn read(&self, operation: Operation) -> Vec<Tensor> {
        let value =
            |slot| self.values.get(&slot).expect("the program writes a slot before it is read");
        self.graph.reads(operation).into_iter().map(|slot| value(slot).shallow_clone()).collect()
    }

    /// The same as autograd leaves of their own.
    pub fn leaves(&self, operation: Operation) -> Vec<Tensor> {
        self.read(operation).into_iter().map(|x| x.detach().set_requires_grad(true)).collect()
    }

    /// Stores what `operation` wrote. Losses are not kept.
    pub fn write(&mut self, operation: Operation, outputs: Vec<Tensor>) {
        for (slot, output) in self.graph.writes(operation).into_iter().zip(outputs) {
            if !slot.is_loss() {
                self.values.insert(slot, output);
            }
        }
    }

    /// Takes over what `operation` wrote in another run of the same micro-batch, a gate's choice included.
    pub fn take_forward(&mut self, operation: Operation, other: &Micro) {
        for slot in self.graph.writes(operation) {
            if let Some(value) = other.values.get(&slot) {
                self.values.insert(slot, value.shallow_clone());
            }
        }
        if let Operation::Segment(Segment::Attention(layer)) = operation
            && let Some(route) = other.routes.get(&layer)
        {
            self.choose(layer, route.chosen.clone());
        }
    }

    /// Stores a segment's outputs, detached, and its tape. Returns the value of its balance loss, if it has one.
    pub fn record(
        &mut self,
        segment: Segment,
        leaves: Vec<Tensor>,
        outputs: Vec<Tensor>,
    ) -> Option<f64> {
        let slots = self.graph.writes(Operation::Segment(segment));
        debug_assert_eq!(slots.len(), outputs.len());
        let mut balance = None;
        for (&slot, output) in slots.iter().zip(&outputs) {
            if slot.is_loss() {
                balance = Some(output.double_value(&[]));
            } else {
                self.values.insert(slot, output.detach());
            }
        }
        let outputs = slots.into_iter().zip(outputs).collect();
        self.tapes.insert(segment, Tape { leaves, outputs });
        balance
    }

    /// The tape of a segment, once.
    pub fn take_tape(&mut self, segment: Segment) -> Tape {
        self.tapes.remove(&segment).expect("the program runs forward before backward")
    }

    /// Stores the gradients of `operation` to the slots it reads, in their order.
    pub fn contribute(&mut self, operation: Operation, gradients: Vec<Option<Tensor>>) {
        for (slot, gradient) in self.graph.reads(operation).into_iter().zip(gradients) {
            let readers = self.graph.readers(slot);
            let at = readers.iter().position(|&reader| reader == operation);
            let at = at.expect("an operation is among the readers of what it reads");
            let parts = self.gradients.entry(slot).or_default();
            parts.resize_with(readers.len(), || Contribution::Pending);
            parts[at] = gradient.map_or(Contribution::NoGradient, Contribution::Value);
        }
    }

    /// Gradient of a slot: contributions summed in the order of its readers, whatever the order in which they came. None if
    /// no reader depends on it.
    ///
    /// # Panics
    /// If a reader has not contributed: a wait or a backward pass is missing in the program.
    pub fn gradient(&mut self, slot: Slot) -> Option<Tensor> {
        let parts = self.gradients.remove(&slot).unwrap_or_default();
        assert_eq!(parts.len(), self.graph.readers(slot).len(), "nobody contributes to {slot:?}");
        let given = |(part, reader): (Contribution, &Operation)| match part {
            Contribution::Pending => panic!("{reader} has not contributed to {slot:?}"),
            Contribution::NoGradient => None,
            Contribution::Value(part) => Some(part),
        };
        let parts = parts.into_iter().zip(self.graph.readers(slot)).filter_map(given);
        parts.reduce(|sum, part| sum + part)
    }

    /// Keeps weight gradients for the segment's `Weight` instruction.
    pub fn queue_weight_gradients(&mut self, segment: Segment, gradients: Vec<WeightGradient>) {
        if !gradients.is_empty() {
            self.queues.insert(segment, gradients);
        }
    }

    /// Those gradients, once.
    pub fn take_weight_gradients(&mut self, segment: Segment) -> Vec<WeightGradient> {
        self.queues.remove(&segment).unwrap_or_default()
    }

    /// Stores the choice of a layer's gate: the expert of each `[T, K]` slot. The way of its rows begins here.
    pub fn choose(&mut self, layer: usize, chosen: Vec<i64>) {
        self.routes.insert(layer, Route::new(chosen));
    }

    /// The way of the layer's rows, where its gate has chosen.
    pub fn route(&self, layer: usize) -> Option<&Route> {
        self.routes.get(&layer)
    }

    /// The same, to go on with it.
    pub fn route_mut(&mut self, layer: usize) -> &mut Route {
        self.routes.get_mut(&layer).expect("the gate ran before any exchange")
    }

    /// Gives the memory of a value back.
    pub fn free(&mut self, value: Value) {
        match value {
            Value::Slot { slot, .. } => drop(self.values.remove(&slot)),
            Value::Gradient { slot, .. } => drop(self.gradients.remove(&slot)),
            Value::Tape { segment, .. } => drop(self.tapes.remove(&segment)),
            Value::Queue { segment, .. } => drop(self.queues.remove(&segment)),
            Value::Route { layer, .. } => drop(self.routes.remove(&layer)),
        }
    }

    /// Whether it holds nothing: at the end of a step.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
            && self.gradients.is_empty()
            && self.tapes.is_empty()
            && self.queues.is_empty()
            && self.routes.is_empty()
    }
}

#[cfg(test)]
mod tests;
