//! The way of a layer's rows in one micro-batch, from the gate's choice to the last gradient: everything that dispatch,
//! combine and both backward passes have to remember.

use lampyris_comm::dispatch::Handle;
use lampyris_model::{Blocks, Routing};

/// What is known of the way. Lanes fill it in as rows move.
#[derive(Debug)]
pub struct Route {
    /// The expert of each `[T, K]` slot, as the gate chose it.
    pub chosen: Vec<i64>,
    /// Between tokens and rows on this rank; from the start of the forward dispatch on.
    routing: Option<Routing>,
    /// Where the rows of the layer's experts lie; from the arrival of the forward dispatch on.
    pub blocks: Option<Blocks>,
    /// Between the ranks that share the experts, if rows travel; from the start of the forward dispatch on.
    handle: Option<Handle>,
}

impl Route {
    /// A choice from which nothing has followed yet.
    pub fn new(chosen: Vec<i64>) -> Route {
        Route { chosen, routing: None, blocks: None, handle: None }
    }

    /// The forward dispatch begins.
    pub fn begin(&mut self, routing: Routing, handle: Option<Handle>) {
        (self.routing, self.handle) = (Some(routing), handle);
    }

    /// Between tokens and rows on this rank.
    ///
    /// # Panics
    /// Before the forward dispatch.
    pub fn routing(&self) -> &Routing {
        self.routing.as_ref().expect("the forward dispatch comes first")
    }

    /// Between the ranks that share the experts.
    ///
    /// # Panics
    /// Before the forward dispatch, or if rows do not travel.
    pub fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("the forward dispatch comes first")
    }
}
