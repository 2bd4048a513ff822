//! Rows between tokens and experts where all experts are on this rank: a permutation. It is done when it is started.

use super::{Lane, Values, deliver, rows_of, taken};
use crate::Result;
use crate::trace::Clock;
use lampyris_model::Routing;
use lampyris_plan::program::Transfer;
use lampyris_plan::segments::{Exchange, Pass};

/// The permutation.
#[derive(Debug)]
pub struct LocalRows {
    /// Rows of an expert are padded to a multiple of this.
    padding: usize,
}

impl LocalRows {
    /// Rows of an expert padded to a multiple of `padding`.
    pub fn new(padding: usize) -> LocalRows {
        LocalRows { padding }
    }
}

impl Lane for LocalRows {
    fn start(&mut self, transfer: Transfer, on: &mut Values<'_>) -> Result<()> {
        let (micro, exchange, pass) = rows_of(transfer);
        let micro = &mut on.micros[micro];
        let mut parts = taken(micro, exchange, pass);
        match (exchange, pass) {
            (Exchange::Dispatch(layer), Pass::Forward) => {
                let moe = on.network.spec.moe.as_ref().expect("only MoE layers gate");
                let route = micro.route_mut(layer);
                let device = parts[0].device();
                let routing = Routing::new(&route.chosen, moe, self.padding, device);
                let (rows, weights) = routing.dispatch(&parts[0], &parts[1])?;
                parts = vec![rows, weights];
                route.blocks = Some(routing.blocks());
                route.begin(routing, None);
            }
            (Exchange::Combine(layer), Pass::Backward) => {
                parts = vec![micro.route_mut(layer).routing().combine_backward(&parts[0])?];
            }
            (Exchange::Dispatch(_), Pass::Backward) | (Exchange::Combine(_), Pass::Forward) => {}
        }
        deliver(micro, exchange, pass, parts)
    }

    fn wait(
        &mut self,
        _transfer: Transfer,
        _on: &mut Values<'_>,
        _clock: &mut Clock,
    ) -> Result<()> {
        Ok(())
    }
}
