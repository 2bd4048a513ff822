//! One micro-batch in flight: slot values, tapes of segments, gradients on their way back.

use crate::exchange::Flight;
use lampyris_comm::dispatch::Handle;
use lampyris_model::{Blocks, Routing};
use lampyris_plan::program::Pass;
use lampyris_plan::segments::{Graph, Operation, Segment, Slot};
use lampyris_torch::WeightGradient;
use std::collections::HashMap;
use std::rc::Rc;
use tch::Tensor;

/// What a segment's backward needs: its detached inputs and its attached outputs.
#[derive(Debug)]
pub struct Tape {
    /// Leaves in the order of [`Graph::reads`].
    pub leaves: Vec<Tensor>,
    /// Outputs with their slots.
    pub outputs: Vec<(Slot, Tensor)>,
}

/// State of one micro-batch inside a step.
#[derive(Debug)]
pub struct Micro {
    graph: Graph,
    readers: HashMap<Slot, Vec<Operation>>,
    values: HashMap<Slot, Tensor>,
    contributions: HashMap<Slot, Vec<Option<Tensor>>>,
    tapes: HashMap<Segment, Tape>,
    head_gradients: HashMap<Segment, Option<Tensor>>,
    weight_gradients: HashMap<Segment, Vec<WeightGradient>>,
    routing: HashMap<usize, Rc<Routing>>,
    blocks: HashMap<usize, Blocks>,
    handles: HashMap<usize, Handle>,
    flights: Vec<Flight>,
}

impl Micro {
    /// An empty micro-batch of a network with this graph.
    pub fn new(graph: &Graph) -> Micro {
        let mut readers: HashMap<Slot, Vec<Operation>> = HashMap::new();
        for operation in graph.forward() {
            for slot in graph.reads(operation) {
                readers.entry(slot).or_default().push(operation);
            }
        }
        Micro {
            graph: graph.clone(),
            readers,
            values: HashMap::new(),
            contributions: HashMap::new(),
            tapes: HashMap::new(),
            head_gradients: HashMap::new(),
            weight_gradients: HashMap::new(),
            routing: HashMap::new(),
            blocks: HashMap::new(),
            handles: HashMap::new(),
            flights: Vec::new(),
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

    /// Stores what `operation` wrote.
    pub fn write(&mut self, operation: Operation, outputs: Vec<Tensor>) {
        self.values.extend(self.graph.writes(operation).into_iter().zip(outputs));
    }

    /// Takes over what `operation` wrote in another run of the same micro-batch, a gate's choice included.
    pub fn take_forward(&mut self, operation: Operation, other: &Micro) {
        for slot in self.graph.writes(operation) {
            if let Some(value) = other.values.get(&slot) {
                self.values.insert(slot, value.shallow_clone());
            }
        }
        if let Operation::Segment(Segment::Attention(layer)) = operation
            && let Some(routing) = other.routing.get(&layer)
        {
            self.routing.insert(layer, Rc::clone(routing));
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
            if let Slot::Balance(_) = slot {
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

    /// Stores the input gradient that a head made in its forward pass.
    pub fn keep_head_gradient(&mut self, segment: Segment, gradient: Option<Tensor>) {
        self.head_gradients.insert(segment, gradient);
    }

    /// That gradient, once.
    pub fn take_head_gradient(&mut self, segment: Segment) -> Option<Tensor> {
        self.head_gradients.remove(&segment).flatten()
    }

    /// Stores the gradients of `operation` to the slots it reads, in their order.
    pub fn contribute(&mut self, operation: Operation, gradients: Vec<Option<Tensor>>) {
        for (slot, gradient) in self.graph.reads(operation).into_iter().zip(gradients) {
            let readers = &self.readers[&slot];
            let at = readers.iter().position(|&reader| reader == operation);
            let at = at.expect("an operation is among the readers of what it reads");
            let parts = self.contributions.entry(slot).or_default();
            parts.resize_with(readers.len(), || None);
            parts[at] = gradient;
        }
    }

    /// Gradient of a slot: contributions summed in the order of its readers, whatever the order in which they came.
    pub fn gradient(&mut self, slot: Slot) -> Option<Tensor> {
        let parts = self.contributions.remove(&slot)?;
        parts.into_iter().flatten().reduce(|sum, part| sum + part)
    }

    /// Its activations go; queued weight gradients stay.
    pub fn backward_is_complete(&mut self) {
        let weight_gradients = std::mem::take(&mut self.weight_gradients);
        *self = Micro { weight_gradients, ..Micro::new(&self.graph) };
    }

    /// Keeps weight gradients for the segment's `Weight` instruction.
    pub fn queue_weight_gradients(&mut self, segment: Segment, gradients: Vec<WeightGradient>) {
        self.weight_gradients.insert(segment, gradients);
    }

    /// Those gradients, once.
    pub fn take_weight_gradients(&mut self, segment: Segment) -> Vec<WeightGradient> {
        self.weight_gradients.remove(&segment).unwrap_or_default()
    }

    /// Stores the routing of a layer.
    pub fn set_routing(&mut self, layer: usize, routing: Routing) {
        self.routing.insert(layer, Rc::new(routing));
    }

    /// The routing of a layer.
    pub fn routing(&self, layer: usize) -> Option<&Routing> {
        self.routing.get(&layer).map(Rc::as_ref)
    }

    /// Stores where the rows of the layer's experts lie.
    pub fn set_blocks(&mut self, layer: usize, blocks: Blocks) {
        self.blocks.insert(layer, blocks);
    }

    /// Where the rows of the layer's experts lie, from its dispatch on.
    pub fn blocks(&self, layer: usize) -> Option<&Blocks> {
        self.blocks.get(&layer)
    }

    /// Stores the way that a layer's rows took to other ranks.
    pub fn set_handle(&mut self, layer: usize, handle: Handle) {
        self.handles.insert(layer, handle);
    }

    /// The way that a layer's rows took to other ranks.
    pub fn handle(&self, layer: usize) -> &Handle {
        self.handles.get(&layer).expect("the forward dispatch comes first")
    }

    /// Keeps an exchange until somebody needs its rows.
    pub fn fly(&mut self, flight: Flight) {
        self.flights.push(flight);
    }

    /// The exchanges under way on which `operation` depends in this pass.
    pub fn take_flights(&mut self, operation: Operation, pass: Pass) -> Vec<Flight> {
        let graph = &self.graph;
        let needed = |flight: &mut Flight| {
            let (gives, takes) = match pass {
                Pass::Forward => (graph.writes(flight.operation), graph.reads(operation)),
                Pass::Backward => (graph.reads(flight.operation), graph.writes(operation)),
            };
            flight.pass == pass && gives.iter().any(|slot| takes.contains(slot))
        };
        self.flights.extract_if(.., needed).collect()
    }
}
