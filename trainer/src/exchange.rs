//! Rows between tokens and experts: what the instructions `Dispatch` and `Combine` do, forward and backward.
//!
//! On one rank both are a permutation. Where the experts of a copy are shared out over ranks, rows travel
//! ([`lampyris_comm::dispatch`]): an instruction starts the exchange and returns at once, and the first instruction that
//! needs the rows waits ([`settle`]). Rows are rounded to the compute type by the segments before and behind, so a row
//! that travels and one that stays have the same bits; received rows lie in blocks of (expert, source rank), so every
//! product over them is one that a single rank would have computed too.

mod host;

use crate::Result;
use crate::micro::Micro;
use crate::planted::{Bug, planted};
use crate::trace::{Clock, Lane};
use host::{Received, Sent};
use lampyris_comm::dispatch::{Dispatcher, Options, Padding, Routes};
use lampyris_comm::{Group, Pending};
use lampyris_model::Blocks;
use lampyris_plan::program::Pass;
use lampyris_plan::segments::{Operation, Slot};
use lampyris_plan::train_plan::Compute;
use lampyris_torch::dim;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Rows of an expert are padded to a multiple of this: row bits of a product then do not depend on its row count, and
/// oneDNN keeps few primitives (fp32 needs 32, bf16 profits from 64).
pub fn row_padding(compute: Compute) -> usize {
    match compute {
        Compute::Fp32 => 32,
        Compute::Bf16 => 64,
    }
}

/// The exchange of rows among the ranks that share the experts of one copy of the network.
#[derive(Debug)]
pub struct Exchange {
    dispatcher: Dispatcher,
    owned: Owned,
}

/// The experts of this rank, and how their rows are cut into blocks.
#[derive(Debug, Clone, Copy)]
struct Owned {
    first: usize,
    experts: usize,
    /// Blocks of each expert: one per source rank in canonical reduction, else one.
    sources: usize,
}

impl Exchange {
    /// The exchange over `group`, whose members own the experts in equal consecutive runs. `by_source` keeps the rows of
    /// each source rank in a block of their own. Collective.
    ///
    /// # Errors
    /// The experts cannot be shared out, or the communicator has failed.
    pub fn new(
        group: &Group,
        experts: usize,
        compute: Compute,
        by_source: bool,
    ) -> Result<Exchange> {
        let pad = row_padding(compute);
        let padding = if by_source { Padding::Blocks(pad) } else { Padding::Experts(pad) };
        let dispatcher = Dispatcher::new(group, experts, Options { padding, path: None })?;
        let each = experts / group.len();
        let sources = if by_source { group.len() } else { 1 };
        let owned = Owned { first: group.member() * each, experts: each, sources };
        Ok(Exchange { dispatcher, owned })
    }
}

impl Owned {
    fn blocks(&self, routes: &Routes) -> Blocks {
        let starts = (0..self.experts).flat_map(|expert| {
            (0..self.sources).map(move |source| match self.sources {
                1 => routes.expert_rows(expert).start,
                _ => routes.block(expert, source).start,
            })
        });
        let offsets = starts.chain([routes.rows()]).map(dim).collect();
        Blocks { offsets, first: self.first, sources: self.sources }
    }
}

/// Rows under way, and their routing weights where the two travel together.
#[derive(Debug)]
pub struct Flight {
    /// What started it.
    pub operation: Operation,
    /// In which pass.
    pub pass: Pass,
    started: Instant,
    rows: Pending<(Sent, Received)>,
    weights: Option<Pending<(Sent, Received)>>,
    device: Device,
}

impl Flight {
    /// Waits. When all had arrived; rows, then weights.
    fn land(self) -> Result<(Instant, Vec<Tensor>)> {
        let (mut done, mut out) = (self.started, Vec::new());
        for part in [Some(self.rows), self.weights].into_iter().flatten() {
            done = done.max(part.ended()?);
            out.push(part.wait()?.1.into_tensor(self.device));
        }
        Ok((done, out))
    }
}

/// Rows from tokens to experts; backward, row gradients back to their tokens.
pub fn dispatch(
    micro: &mut Micro,
    exchange: Option<&Exchange>,
    layer: usize,
    pass: Pass,
) -> Result<()> {
    let operation = Operation::Dispatch(layer);
    let parts = match pass {
        Pass::Forward => micro.read(operation),
        Pass::Backward => {
            let parts =
                [micro.gradient(Slot::Rows(layer)), micro.gradient(Slot::RowWeights(layer))];
            parts.map(|part| part.expect("experts give gradients to what they read")).into()
        }
    };
    let Some(exchange) = exchange else {
        let routing = micro.routing(layer).expect("the gate ran before dispatch");
        if pass == Pass::Backward {
            return land(micro, operation, pass, parts);
        }
        let blocks = routing.blocks();
        let (rows, weights) = routing.dispatch(&parts[0], &parts[1])?;
        micro.set_blocks(layer, blocks);
        return land(micro, operation, pass, vec![rows, weights]);
    };
    let routing = micro.routing(layer).expect("the gate ran before dispatch");
    let dispatcher = &exchange.dispatcher;
    let like = Rows::of(&parts[0]);
    let swapped = planted(Bug::SwapRoutingWeights) && pass == Pass::Forward;
    let weights = if swapped { parts[1].flip([1]) } else { parts[1].shallow_clone() };
    let (rows, weights) = (Sent::new(&parts[0]), Sent::new(&weights));
    let (handle, rows, weights) = match pass {
        Pass::Forward => {
            let (chosen, slots) = routing.chosen();
            let handle = dispatcher.start_route(chosen.to_vec(), slots)?;
            let make = move |routes: &Routes| like.received(routes.rows());
            let rows = dispatcher.start_dispatch(&handle, rows, like.bytes(), make)?;
            let make = |routes: &Routes| Rows::SCALAR.received(routes.rows());
            let bytes = Rows::SCALAR.bytes();
            let weights = dispatcher.start_dispatch_choices(&handle, weights, bytes, make)?;
            (handle, rows, weights)
        }
        Pass::Backward => {
            let choices = routing.chosen().0.len();
            let handle = micro.handle(layer).clone();
            let home = like.received(choices);
            let rows = dispatcher.start_combine(&handle, rows, like.bytes(), home)?;
            let (bytes, home) = (Rows::SCALAR.bytes(), Rows::SCALAR.received(choices));
            let weights = dispatcher.start_combine(&handle, weights, bytes, home)?;
            (handle, rows, weights)
        }
    };
    micro.set_handle(layer, handle);
    let device = parts[0].device();
    let started = Instant::now();
    micro.fly(Flight { operation, pass, started, rows, weights: Some(weights), device });
    Ok(())
}

/// Rows from experts back to their tokens; backward, token gradients to the rows of the experts.
pub fn combine(
    micro: &mut Micro,
    exchange: Option<&Exchange>,
    layer: usize,
    pass: Pass,
) -> Result<()> {
    let operation = Operation::Combine(layer);
    let input = match pass {
        Pass::Forward => micro.read(operation).remove(0),
        Pass::Backward => micro.gradient(Slot::Routed(layer)).expect("merge gives it a gradient"),
    };
    let routing = micro.routing(layer).expect("the gate ran before combine");
    let Some(exchange) = exchange else {
        let rows = match pass {
            Pass::Forward => input,
            Pass::Backward => routing.combine_backward(&input)?,
        };
        return land(micro, operation, pass, vec![rows]);
    };
    let (dispatcher, handle) = (&exchange.dispatcher, micro.handle(layer));
    let (like, sent) = (Rows::of(&input), Sent::new(&input));
    let rows = match pass {
        Pass::Forward => {
            let home = like.received(routing.chosen().0.len());
            dispatcher.start_combine(handle, sent, like.bytes(), home)?
        }
        Pass::Backward => {
            let make = move |routes: &Routes| like.received(routes.rows());
            dispatcher.start_dispatch(handle, sent, like.bytes(), make)?
        }
    };
    let (started, device) = (Instant::now(), input.device());
    micro.fly(Flight { operation, pass, started, rows, weights: None, device });
    Ok(())
}

/// Waits for the exchanges whose rows `operation` needs in this pass. `clock` takes the time of the wait.
pub fn settle(
    micro: &mut Micro,
    exchange: Option<&Exchange>,
    (operation, pass): (Operation, Pass),
    clock: &mut Clock,
) -> Result<()> {
    for flight in micro.take_flights(operation, pass) {
        let (began, by, started) = (flight.operation, flight.pass, flight.started);
        let parts = clock.wait(name(began, by), started, || flight.land())?;
        if let (Operation::Dispatch(layer), Pass::Forward, Some(exchange)) = (began, by, exchange) {
            let blocks = exchange.owned.blocks(micro.handle(layer).wait()?);
            micro.set_blocks(layer, blocks);
        }
        land(micro, began, by, parts)?;
    }
    Ok(())
}

/// Lane and name of an exchange in a trace: those of its instruction.
fn name(operation: Operation, pass: Pass) -> (Lane, impl FnOnce() -> String) {
    let (lane, what, layer) = match operation {
        Operation::Combine(layer) => (Lane::Combine, "Combine", layer),
        Operation::Dispatch(layer) => (Lane::Dispatch, "Dispatch", layer),
        Operation::Segment(_) => unreachable!("segments exchange nothing"),
    };
    let backward = if pass == Pass::Backward { " (backward)" } else { "" };
    (lane, move || format!("{what} layer {layer}{backward}"))
}

/// Rows have arrived: they become slot values or gradients.
fn land(micro: &mut Micro, operation: Operation, pass: Pass, parts: Vec<Tensor>) -> Result<()> {
    let (Operation::Dispatch(layer) | Operation::Combine(layer)) = operation else {
        unreachable!("segments exchange nothing")
    };
    let routing = micro.routing(layer).expect("the gate ran before any exchange");
    match (operation, pass) {
        (Operation::Dispatch(_), Pass::Forward) => micro.write(operation, parts),
        (Operation::Dispatch(_), Pass::Backward) => {
            let shifted = planted(Bug::ShiftedRows).then(|| parts[0].roll([1], [0]));
            let rows = shifted.as_ref().unwrap_or(&parts[0]);
            let (tokens, weights) = routing.dispatch_backward(rows, &parts[1])?;
            micro.contribute(operation, vec![Some(tokens), Some(weights)]);
        }
        (_, Pass::Forward) => {
            let tokens = routing.combine(&parts[0])?;
            micro.write(operation, vec![tokens]);
        }
        (_, Pass::Backward) => {
            micro.contribute(operation, parts.into_iter().map(Some).collect());
        }
    }
    Ok(())
}

/// Shape and type of one row.
#[derive(Debug, Clone, Copy)]
struct Rows {
    /// None: a number.
    width: Option<i64>,
    kind: Kind,
}

impl Rows {
    /// A routing weight or its gradient.
    const SCALAR: Rows = Rows { width: None, kind: Kind::Float };

    /// Those of `[rows, width]`.
    fn of(tensor: &Tensor) -> Rows {
        Rows { width: tensor.size().get(1).copied(), kind: tensor.kind() }
    }

    fn bytes(self) -> usize {
        let width = usize::try_from(self.width.unwrap_or(1)).expect("widths are positive");
        width * self.kind.elt_size_in_bytes()
    }

    fn received(self, rows: usize) -> Received {
        let shape: Vec<i64> = [dim(rows)].into_iter().chain(self.width).collect();
        Received::new(&shape, self.kind)
    }
}

#[cfg(test)]
mod tests;
