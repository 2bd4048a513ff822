//! Rows between tokens and experts where the experts of a copy are shared out over ranks ([`lampyris_comm::dispatch`]).
//!
//! Rows are rounded to the compute type by the segments before and behind, so a row that travels and one that stays have
//! the same bits; received rows lie in blocks of (expert, source rank), so every product over them is one that a single
//! rank would have computed too.

use super::host::{Received, Sent};
use super::{Lane, Values, deliver, row_padding, rows_of, taken};
use crate::Result;
use crate::planted::{Bug, planted};
use crate::trace::{Awaited, Clock};
use lampyris_comm::dispatch::{Dispatcher, Handle, Options, Padding, Routes};
use lampyris_comm::{Group, Pending};
use lampyris_model::{Blocks, Routing};
use lampyris_plan::program::Transfer;
use lampyris_plan::segments::{Exchange, Pass};
use lampyris_plan::train_plan::Compute;
use lampyris_torch::dim;
use std::collections::HashMap;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// The exchange of rows among the ranks that share the experts of one copy of the network.
#[derive(Debug)]
pub struct ExpertRows {
    dispatcher: Dispatcher,
    owned: Owned,
    under_way: HashMap<Transfer, Flight>,
}

/// The experts of this rank, and how their rows are cut into blocks.
#[derive(Debug, Clone, Copy)]
struct Owned {
    first: usize,
    experts: usize,
    /// Blocks of each expert: one per source rank in canonical reduction, else one.
    sources: usize,
}

impl ExpertRows {
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
    ) -> Result<ExpertRows> {
        let pad = row_padding(compute);
        let padding = if by_source { Padding::Blocks(pad) } else { Padding::Experts(pad) };
        let dispatcher = Dispatcher::new(group, experts, Options { padding, path: None })?;
        let each = experts / group.len();
        let sources = if by_source { group.len() } else { 1 };
        let owned = Owned { first: group.member() * each, experts: each, sources };
        Ok(ExpertRows { dispatcher, owned, under_way: HashMap::new() })
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
struct Flight {
    started: Instant,
    rows: Pending<(Sent, Received)>,
    weights: Option<Pending<(Sent, Received)>>,
    device: Device,
}

impl Flight {
    /// Waits; returns when the last part arrived, and the parts: rows, then weights.
    fn land(self) -> Result<(Instant, Vec<Tensor>)> {
        let (mut done, mut out) = (self.started, Vec::new());
        for part in [Some(self.rows), self.weights].into_iter().flatten() {
            done = done.max(part.ended()?);
            out.push(part.wait()?.1.into_tensor(self.device));
        }
        Ok((done, out))
    }
}

impl ExpertRows {
    /// Token rows and routing weights to experts. The way is agreed on first; its handle serves all later exchanges.
    fn dispatch(&self, routing: &Routing, parts: &[Tensor]) -> Result<(Handle, Flight)> {
        let weights = match planted(Bug::SwapRoutingWeights) {
            true => parts[1].flip([1]),
            false => parts[1].shallow_clone(),
        };
        let (chosen, slots) = routing.chosen();
        let handle = self.dispatcher.start_route(chosen.to_vec(), slots)?;
        let rows = self.to_experts(&handle, &parts[0])?;
        let make = |routes: &Routes| Rows::SCALAR.received(routes.rows());
        let (sent, bytes) = (Sent::new(&weights), Rows::SCALAR.bytes());
        let weights = self.dispatcher.start_dispatch_choices(&handle, sent, bytes, make)?;
        let device = parts[0].device();
        let flight = Flight { started: Instant::now(), rows, weights: Some(weights), device };
        Ok((handle, flight))
    }

    /// Rows by token to the blocks of their experts.
    fn to_experts(&self, handle: &Handle, rows: &Tensor) -> Result<Pending<(Sent, Received)>> {
        let like = Rows::of(rows);
        let make = move |routes: &Routes| like.received(routes.rows());
        Ok(self.dispatcher.start_dispatch(handle, Sent::new(rows), like.bytes(), make)?)
    }

    /// Rows of experts home to the (token, slot)s that chose them.
    fn home(
        &self,
        handle: &Handle,
        rows: &Tensor,
        like: Rows,
        choices: usize,
    ) -> Result<Pending<(Sent, Received)>> {
        let home = like.received(choices);
        Ok(self.dispatcher.start_combine(handle, Sent::new(rows), like.bytes(), home)?)
    }
}

impl Lane for ExpertRows {
    fn start(&mut self, transfer: Transfer, on: &mut Values<'_>) -> Result<()> {
        let (micro, exchange, pass) = rows_of(transfer);
        let micro = &mut on.micros[micro];
        let parts = taken(micro, exchange, pass);
        let (rows, device) = (&parts[0], parts[0].device());
        let route = micro.route_mut(exchange.layer());
        if let (Exchange::Dispatch(_), Pass::Forward) = (exchange, pass) {
            let moe = on.network.spec.moe.as_ref().expect("only MoE layers gate");
            let routing = Routing::remote(&route.chosen, moe, device);
            let (handle, flight) = self.dispatch(&routing, &parts)?;
            route.begin(routing, Some(handle));
            self.under_way.insert(transfer, flight);
            return Ok(());
        }
        let (handle, choices) = (route.handle(), route.chosen.len());
        let mut weights = None;
        let rows = match (exchange, pass) {
            (Exchange::Combine(_), Pass::Backward) => self.to_experts(handle, rows)?,
            (Exchange::Combine(_), Pass::Forward) => {
                self.home(handle, rows, Rows::of(rows), choices)?
            }
            (Exchange::Dispatch(_), _) => {
                let home = self.home(handle, rows, Rows::of(rows), choices)?;
                weights = Some(self.home(handle, &parts[1], Rows::SCALAR, choices)?);
                home
            }
        };
        let flight = Flight { started: Instant::now(), rows, weights, device };
        self.under_way.insert(transfer, flight);
        Ok(())
    }

    fn wait(&mut self, transfer: Transfer, on: &mut Values<'_>, clock: &mut Clock) -> Result<()> {
        let (micro, exchange, pass) = rows_of(transfer);
        let micro = &mut on.micros[micro];
        let flight = self.under_way.remove(&transfer).expect("the program starts what it needs");
        let started = flight.started;
        let parts = clock.wait(Awaited::Transfer(transfer), started, || flight.land())?;
        if let (Exchange::Dispatch(layer), Pass::Forward) = (exchange, pass) {
            let route = micro.route_mut(layer);
            route.blocks = Some(self.owned.blocks(route.handle().wait()?));
        }
        deliver(micro, exchange, pass, parts)
    }
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
