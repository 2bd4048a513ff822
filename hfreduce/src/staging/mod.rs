//! Staging: how the elements of a bucket come before the cores of the host, and how results come back.
//!
//! Two kinds behind one trait, so that one loop (`operation.rs`) carries out every collective on every bucket:
//! [`InPlace`] buckets lie in shared memory and need no copies; [`Copied`] ones pass through bounded rings.

mod copied;
mod in_place;
mod ring;

pub(crate) use copied::Copied;
pub(crate) use in_place::InPlace;

use crate::device::DeviceCopy;
use crate::error::Result;
use crate::flags::Turn;
use crate::route::{Piece, Route};
use lampyris_comm::Memory;

/// The two sides of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// What this rank reads from the buckets of its node.
    Input,
    /// What this rank writes to them.
    Output,
}

/// Brings pieces of the local ranks' buckets before the cores of this rank, and results back.
///
/// An operation is: `enter`, `begin`, then any interleaving of `advance` and, per side, `ready` and `done` for one piece
/// after the other in the order of the route, until `is_over`.
pub(crate) trait Staging: Send {
    /// Begins an operation. Returns when other local ranks may touch what this rank can reach.
    ///
    /// # Errors
    /// When a local rank does not enter in time, or the communicator has failed.
    fn enter(&mut self, turn: Turn) -> Result<()>;

    /// Takes the pieces of the operation.
    fn begin(&mut self, route: Route);

    /// This rank's next piece on a side; `None` after the last one.
    fn next(&self, side: Side) -> Option<&Piece>;

    /// Where the next piece on a side lies, once it may be read (one memory per bucket, in local order) or written (each
    /// memory gets the whole result). `None` while it may not, and after the last one.
    fn ready(&mut self, side: Side) -> Option<Vec<Memory>>;

    /// The next piece on a side has been read or written.
    fn done(&mut self, side: Side);

    /// Moves copies on without waiting; whether any began or ended.
    ///
    /// # Errors
    /// When the device refuses a copy, or one failed.
    fn advance(&mut self) -> Result<bool>;

    /// Whether all pieces are done and all copies have ended.
    fn is_over(&self) -> bool;

    /// Lets a moment pass when nothing could be done in `looks` looks in a row.
    ///
    /// # Errors
    /// When the communicator has failed or the operation is late.
    fn wait(&mut self, looks: u32) -> Result<()>;

    /// The buckets of all local ranks, where they lie in memory that this rank may read and write directly.
    fn in_place(&self) -> Option<&[Memory]>;

    /// Most elements of one piece.
    fn piece_elements(&self) -> usize;

    /// What copies, if anything does.
    fn device(&mut self) -> Option<&mut dyn DeviceCopy>;
}

/// One rank's own pieces on one side, and the next of them.
#[derive(Debug, Default)]
struct Cursor {
    pieces: Vec<Piece>,
    next: usize,
}

impl Cursor {
    fn new(pieces: Vec<Piece>) -> Self {
        Self { pieces, next: 0 }
    }

    fn get(&self) -> Option<&Piece> {
        self.pieces.get(self.next)
    }

    fn step(&mut self) {
        assert!(self.next < self.pieces.len(), "a piece is done once");
        self.next += 1;
    }

    fn is_over(&self) -> bool {
        self.next == self.pieces.len()
    }
}
