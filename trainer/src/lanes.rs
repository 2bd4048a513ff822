//! What moves while the compute thread goes on: a lane for each kind of [`Transfer`]. An instruction starts a transfer and
//! returns at once; the instruction that names it among its needs waits for it, and what it brings is then in place.
//!
//! A job of one rank has the same lanes: its rows are permuted where they lie ([`LocalRows`]).

mod bucket_lane;
mod expert_rows;
mod host;
mod local_rows;

pub use bucket_lane::BucketLane;
pub use expert_rows::ExpertRows;
pub use local_rows::LocalRows;

use crate::Result;
use crate::micro::Micro;
use crate::planted::{Bug, planted};
use crate::ranks::Ranks;
use crate::state::State;
use crate::trace::Clock;
use lampyris_model::Network;
use lampyris_plan::program::Transfer;
use lampyris_plan::segments::{Exchange, Operation, Pass, Slot};
use lampyris_plan::train_plan::Compute;
use std::fmt::Debug;
use tch::Tensor;

/// What lanes take from and bring to.
#[derive(Debug)]
pub struct Values<'a> {
    /// The micro-batches of the step.
    pub micros: &'a mut [Micro],
    /// Weights and gradients.
    pub state: &'a State,
    /// The network.
    pub network: &'a Network,
    /// The ranks of the job.
    pub ranks: &'a Ranks,
}

/// One way for transfers of a kind.
pub trait Lane: Debug {
    /// Begins a transfer; returns at once.
    ///
    /// # Errors
    /// libtorch refuses, or a peer is gone.
    fn start(&mut self, transfer: Transfer, on: &mut Values<'_>) -> Result<()>;

    /// Waits for a transfer and puts what it brings in place. `clock` takes the time of the wait.
    ///
    /// # Errors
    /// libtorch refuses, or a peer is gone or late.
    fn wait(&mut self, transfer: Transfer, on: &mut Values<'_>, clock: &mut Clock) -> Result<()>;
}

/// The lanes of a rank.
#[derive(Debug)]
pub struct Lanes {
    rows: Box<dyn Lane>,
    reductions: BucketLane,
    gathers: BucketLane,
}

impl Lanes {
    /// Lanes of which rows take `rows`.
    pub fn new(rows: Box<dyn Lane>) -> Lanes {
        Lanes { rows, reductions: BucketLane::default(), gathers: BucketLane::default() }
    }

    /// The lane of a transfer.
    pub fn of(&mut self, transfer: Transfer) -> &mut dyn Lane {
        match transfer {
            Transfer::Rows { .. } => &mut *self.rows,
            Transfer::Reduce { .. } => &mut self.reductions,
            Transfer::Gather { .. } => &mut self.gathers,
        }
    }

    /// Waits for all weights that a step has left under way: before anything but a step reads them.
    ///
    /// # Errors
    /// A peer is gone or late.
    pub fn finish_gathers(&mut self) -> Result<()> {
        self.gathers.finish()
    }
}

/// Rows of an expert are padded to a multiple of this: row bits of a product then do not depend on its row count, and
/// oneDNN keeps few primitives (fp32 needs 32, bf16 profits from 64).
pub fn row_padding(compute: Compute) -> usize {
    match compute {
        Compute::Fp32 => 32,
        Compute::Bf16 => 64,
    }
}

/// What an exchange takes: values of slots, or their gradients.
fn taken(micro: &mut Micro, exchange: Exchange, pass: Pass) -> Vec<Tensor> {
    let slots: &[Slot] = match (exchange, pass) {
        (_, Pass::Forward) => return micro.read(Operation::Exchange(exchange)),
        (Exchange::Dispatch(l), Pass::Backward) => &[Slot::Rows(l), Slot::RowWeights(l)],
        (Exchange::Combine(l), Pass::Backward) => &[Slot::Routed(l)],
    };
    let gradient = |slot: &Slot| micro.gradient(*slot).expect("segments depend on their rows");
    slots.iter().map(gradient).collect()
}

/// Rows have arrived: they become slot values or gradients.
fn deliver(micro: &mut Micro, exchange: Exchange, pass: Pass, parts: Vec<Tensor>) -> Result<()> {
    let operation = Operation::Exchange(exchange);
    match (exchange, pass) {
        (Exchange::Dispatch(_), Pass::Forward) => micro.write(operation, parts),
        (Exchange::Dispatch(layer), Pass::Backward) => {
            let shifted = planted(Bug::ShiftedRows).then(|| parts[0].roll([1], [0]));
            let rows = shifted.as_ref().unwrap_or(&parts[0]);
            let routing = micro.route_mut(layer).routing();
            let (tokens, weights) = routing.dispatch_backward(rows, &parts[1])?;
            micro.contribute(operation, vec![Some(tokens), Some(weights)]);
        }
        (Exchange::Combine(layer), Pass::Forward) => {
            let tokens = micro.route_mut(layer).routing().combine(&parts[0])?;
            micro.write(operation, vec![tokens]);
        }
        (Exchange::Combine(_), Pass::Backward) => {
            micro.contribute(operation, parts.into_iter().map(Some).collect());
        }
    }
    Ok(())
}

/// The micro-batch, exchange and direction of a transfer of rows.
fn rows_of(transfer: Transfer) -> (usize, Exchange, Pass) {
    match transfer {
        Transfer::Rows { micro, exchange, pass } => (micro, exchange, pass),
        other => unreachable!("{other} moves no rows"),
    }
}

#[cfg(test)]
mod tests;
