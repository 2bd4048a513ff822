//! One collective on one bucket: the loop that reads pieces, adds them, and writes results, whatever the staging.
//!
//! Inside one node a piece is summed from all local buckets and written at once: two sweeps of memory in total. With more
//! nodes the sum of a piece leaves for the counterparts on the other nodes as soon as it is made ([`Column`]), and the
//! results come back while later pieces are summed.

#![allow(unsafe_code, reason = "runs kernels on memory shared with other processes")]

use crate::bucket::Inner;
use crate::column::{Column, Slices};
use crate::error::{Error, Result};
use crate::flags::{Counter, Turn};
use crate::kernels::Sum;
use crate::route::{Buckets, Collective, Route};
use crate::staging::{Side, Staging};
use crate::topology::Topology;
use lampyris_comm::{DType, Error as CommError, Memory, Streamed};
use std::ops::Range;
use std::sync::Arc;

/// This rank's part of one collective.
pub(crate) struct Operation {
    pub(crate) bucket: Arc<Inner>,
    pub(crate) collective: Collective,
    /// By rank.
    pub(crate) shards: Vec<Range<usize>>,
    pub(crate) turn: Turn,
}

impl Operation {
    /// Does this rank's part; what it returns still runs between the nodes.
    ///
    /// # Errors
    /// When the communicator fails, a rank is late, or the device fails; then the communicator is aborted.
    pub(crate) fn run(self, topology: &Topology) -> Result<Option<Streamed>> {
        let ended = if topology.grid.nodes == 1 {
            self.run_in_node(topology).map(|()| None)
        } else {
            self.run_between_nodes(topology).map(Some)
        };
        if let Err(error @ Error::Device(_)) = &ended {
            let rank = topology.local.members()[topology.grid.local];
            topology.local.fail(CommError::Aborted { rank, reason: error.to_string() });
        }
        ended
    }

    fn run_in_node(&self, topology: &Topology) -> Result<()> {
        let mut staging = self.bucket.staging();
        staging.enter(self.turn)?;
        let most = staging.piece_elements();
        staging.begin(Route::in_node(self.collective, &self.shards, most));
        self.stepper(topology, &mut **staging, None).run()?;
        self.bucket.flags.set(Counter::Done, self.turn.generation);
        Ok(())
    }

    fn run_between_nodes(&self, topology: &Topology) -> Result<Streamed> {
        let mut staging = self.bucket.staging();
        staging.enter(self.turn)?;
        let in_place = &self.bucket.in_place;
        let slices = Slices {
            all: topology.grid.column(&self.shards, topology.grid.local),
            node: topology.grid.node,
        };
        let generation = self.turn.generation;
        let column = Column::new(&self.bucket, generation, self.collective, &slices, in_place)?;
        let column = Arc::new(column);
        let streamed = if in_place.is_empty() {
            self.exchange_copied(topology, &mut **staging, &column, &slices)?
        } else {
            self.exchange_in_place(topology, &mut **staging, &column, &slices)?
        };
        self.stepper(topology, &mut **staging, Some(&column)).run()?;
        column.local_part_done();
        Ok(streamed)
    }

    /// The exchange begins at once: sums leave piece by piece, and what is gathered lies where it leaves from.
    fn exchange_in_place(
        &self,
        topology: &Topology,
        staging: &mut dyn Staging,
        column: &Arc<Column>,
        slices: &Slices,
    ) -> Result<Streamed> {
        let streamed = column.start(&topology.cross, slices)?;
        // No other rank works on this rank's pieces, nor this rank on theirs: it need not know them.
        let mut orders = vec![Vec::new(); topology.grid.locals];
        orders[topology.grid.local] = streamed.order().to_vec();
        staging.begin(self.route(topology, &orders, true));
        Ok(streamed)
    }

    /// Every rank copies pieces for all local ranks, so it knows the order of each. What is gathered leaves once this
    /// rank's shard has been copied to the host: one part in `nodes x locals` of the bucket.
    fn exchange_copied(
        &self,
        topology: &Topology,
        staging: &mut dyn Staging,
        column: &Arc<Column>,
        slices: &Slices,
    ) -> Result<Streamed> {
        let element = if self.collective.adds() { DType::F32 } else { self.bucket.dtype };
        let chunk_bytes = staging.piece_elements() * element.bytes();
        let cross = topology.cross.with_chunk_bytes(chunk_bytes);
        let mut orders = Vec::new();
        for local in 0..topology.grid.locals {
            let column = topology.grid.column(&self.shards, local);
            orders.push(Column::order(&cross, self.collective, self.bucket.dtype, &column)?);
        }
        column.follow(&orders[topology.grid.local]);
        staging.begin(self.route(topology, &orders, false));
        if !self.collective.adds() {
            self.stepper(topology, staging, Some(column)).read_all()?;
        }
        column.start(&cross, slices)
    }

    fn route(&self, topology: &Topology, orders: &[Vec<Range<usize>>], direct: bool) -> Route {
        let first = topology.grid.node * topology.grid.locals;
        let own = &self.shards[first..first + topology.grid.locals];
        Route::between_nodes(self.collective, orders, own, direct)
    }

    fn stepper<'a>(
        &self,
        topology: &'a Topology,
        staging: &'a mut dyn Staging,
        column: Option<&'a Column>,
    ) -> Stepper<'a> {
        Stepper { collective: self.collective, dtype: self.bucket.dtype, topology, staging, column }
    }
}

/// The loop over the pieces of an operation.
struct Stepper<'a> {
    collective: Collective,
    dtype: DType,
    topology: &'a Topology,
    staging: &'a mut dyn Staging,
    /// Where sums go and results come from, when there are other nodes.
    column: Option<&'a Column>,
}

impl Stepper<'_> {
    /// Reads and writes all pieces.
    fn run(&mut self) -> Result<()> {
        let mut looks = 0;
        while !self.staging.is_over() {
            let mut moved = self.staging.advance()?;
            moved |= match self.column {
                None => self.reduce(),
                Some(column) => self.contribute(column) | self.deliver(column),
            };
            looks = self.after(moved, looks)?;
        }
        Ok(())
    }

    /// Reads all pieces, and writes none.
    fn read_all(&mut self) -> Result<()> {
        let column = self.column.expect("within a node every piece is written when it is read");
        let mut looks = 0;
        while self.staging.next(Side::Input).is_some() {
            let mut moved = self.staging.advance()?;
            moved |= self.contribute(column);
            looks = self.after(moved, looks)?;
        }
        Ok(())
    }

    /// Ends one round of the loop; returns the number of rounds in a row in which nothing moved.
    fn after(&mut self, moved: bool, looks: u32) -> Result<u32> {
        if moved {
            self.topology.local.check()?;
            return Ok(0);
        }
        self.staging.wait(looks)?;
        Ok(looks.saturating_add(1))
    }

    /// Within one node: from all inputs of a piece to all its outputs.
    fn reduce(&mut self) -> bool {
        let Some(inputs) = self.staging.ready(Side::Input) else { return false };
        let Some(outputs) = self.staging.ready(Side::Output) else { return false };
        self.move_piece(&inputs, &outputs, self.dtype);
        self.staging.done(Side::Input);
        self.staging.done(Side::Output);
        true
    }

    /// Between nodes: from all inputs of a piece to where the other nodes get it from.
    fn contribute(&mut self, column: &Column) -> bool {
        let Some(inputs) = self.staging.ready(Side::Input) else { return false };
        let range = self.staging.next(Side::Input).expect("it is ready").range.clone();
        let target = column.target_of(&range);
        // One rank per node whose bucket is the running sum: nothing is to be added here.
        let in_place = matches!(&inputs[..], [only] if only.same_start(target));
        if !in_place {
            self.move_piece(&inputs, &[target], DType::F32);
        }
        if self.collective.adds() {
            column.contribute(&range);
        }
        self.staging.done(Side::Input);
        true
    }

    /// Between nodes: a result that has come goes to the buckets of this node.
    fn deliver(&mut self, column: &Column) -> bool {
        let Some(piece) = self.staging.next(Side::Output) else { return false };
        // What this rank hands on to the others of its node never came from another node.
        let is_here = piece.buckets == Buckets::Others || column.is_finished(&piece.range);
        if !is_here {
            return false;
        }
        let from = column.output_of(&piece.range);
        let Some(outputs) = self.staging.ready(Side::Output) else { return false };
        self.copy(from, &outputs);
        self.staging.done(Side::Output);
        true
    }

    /// Adds the inputs, or moves the one input that there is. `output`: the type of a sum.
    fn move_piece(&self, inputs: &[Memory], outputs: &[Memory], output: DType) {
        if !self.collective.adds() {
            assert_eq!(inputs.len(), 1, "a gathered piece has one owner");
            self.copy(inputs[0], outputs);
            return;
        }
        let sum = Sum { inputs, outputs, input: self.dtype, output, order: self.topology.order };
        // SAFETY: the staging holds these memories for this rank alone until the piece is done, a column likewise; the
        // processor has the level that was detected.
        unsafe { sum.run(self.topology.level) };
        self.topology.local.touched(sum.bytes());
    }

    fn copy(&self, from: Memory, outputs: &[Memory]) {
        for to in outputs {
            // SAFETY: as for a sum; nothing is written to the memory that is read.
            unsafe { to.bytes_mut().copy_from_slice(from.bytes()) };
        }
        if !outputs.is_empty() {
            self.topology.local.touched((1 + outputs.len()) * from.len());
        }
    }
}
