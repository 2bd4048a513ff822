//! Collectives as pure data: per piece of the buffer, the list of actions a member carries out, in order.
//!
//! Every algorithm of this crate has the same shape: the buffer is cut into pieces, pieces are independent of each
//! other, and on one piece a member does a short fixed sequence of *send*, *add what a peer sent* and *copy what a
//! peer sent*. A [`Schedule`] is that list for one member. It is a function of (algorithm, members, slices, chunk) and
//! nothing else, so the order of every addition can be proved without running anything (`reference.rs` does), and
//! the engine that runs it is one loop for all algorithms.
//!
//! Members are indices inside a group; the engine maps them to ranks. Element ranges are in elements.

pub mod direct;
pub mod double_tree;
pub mod halving;
pub mod reference;
pub mod ring;

use std::collections::BTreeSet;
use std::ops::Range;

/// Which memory an action sends from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// What the caller put in, untouched (all-to-all, send).
    Input,
    /// The running sum, in the accumulator's type.
    Partial,
    /// The result, in the output's type.
    Output,
}

/// One step of a member on one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Own contribution into the running sum. Waits until the contribution exists (streamed operations).
    Begin,
    /// Send the piece to a member.
    Send {
        /// The receiving member.
        to: usize,
        /// What is sent.
        part: Part,
    },
    /// Add the partial sum that a member sent.
    Add {
        /// The sending member.
        from: usize,
    },
    /// The running sum is complete: round it once into the output.
    Finish,
    /// Copy the result that a member sent into the output.
    Copy {
        /// The sending member.
        from: usize,
    },
}

/// A contiguous run of elements and what one member does with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Number that both ends of a message use for this piece; below [`MAX_PIECES`].
    pub index: u32,
    /// Elements of the buffer. For all-to-all: of the input when it only sends, of the output when it only receives.
    pub range: Range<usize>,
    /// Carried out strictly in order.
    pub actions: Vec<Action>,
}

/// Pieces per operation: the index has 21 bits of the immediate.
pub const MAX_PIECES: usize = 1 << 21;

/// Element boundaries of slices and pieces are multiples of this many elements (64 bytes of fp32, one cache line), so
/// that two members never write one line.
pub const ALIGN: usize = 16;

/// What one member does in one operation. Pieces are in the order in which the member should begin them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The pieces.
    pub pieces: Vec<Piece>,
}

impl Schedule {
    /// Members that send something to this one, ascending.
    pub fn sources(&self) -> BTreeSet<usize> {
        self.actions()
            .filter_map(|action| match action {
                Action::Add { from } | Action::Copy { from } => Some(*from),
                _ => None,
            })
            .collect()
    }

    /// Members to whom this one sends something, ascending.
    pub fn targets(&self) -> BTreeSet<usize> {
        self.actions()
            .filter_map(|action| match action {
                Action::Send { to, .. } => Some(*to),
                _ => None,
            })
            .collect()
    }

    /// Elements sent, and elements received: the volume that docs/collectives.md states per algorithm.
    pub fn volume(&self) -> (usize, usize) {
        let mut volume = (0, 0);
        for piece in &self.pieces {
            for action in &piece.actions {
                match action {
                    Action::Send { .. } => volume.0 += piece.range.len(),
                    Action::Add { .. } | Action::Copy { .. } => volume.1 += piece.range.len(),
                    Action::Begin | Action::Finish => {}
                }
            }
        }
        volume
    }

    fn actions(&self) -> impl Iterator<Item = &Action> {
        self.pieces.iter().flat_map(|piece| &piece.actions)
    }
}

/// Cuts `elements` into `parts` nearly equal slices on [`ALIGN`] boundaries; later ones may be empty.
pub fn even_slices(elements: usize, parts: usize) -> Vec<Range<usize>> {
    let blocks = elements.div_ceil(ALIGN);
    let at = |part: usize| (blocks * part / parts * ALIGN).min(elements);
    (0..parts).map(|part| at(part)..at(part + 1)).collect()
}

/// One chunk of one slice. `index` is the same on every member.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) slice: usize,
    pub(crate) index: u32,
    pub(crate) range: Range<usize>,
}

/// Cuts slices into chunks of at most `chunk` elements, chunk-major: first chunk 0 of every slice, then chunk 1.
/// This order keeps all slices moving together, so that no link waits for the far end of one slice.
pub(crate) fn chunks(slices: &[Range<usize>], chunk: usize) -> Vec<Chunk> {
    let chunk = chunk.max(1);
    let rounds = slices.iter().map(|slice| slice.len().div_ceil(chunk)).max().unwrap_or(0);
    let mut out = Vec::new();
    for round in 0..rounds {
        for (slice, range) in slices.iter().enumerate() {
            let start = range.start + round * chunk;
            if start < range.end {
                let index = u32::try_from(out.len()).expect("bounded by MAX_PIECES");
                out.push(Chunk { slice, index, range: start..(start + chunk).min(range.end) });
            }
        }
    }
    out
}
