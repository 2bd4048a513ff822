//! The transfers of a step with its computation left out: what they take when they have the link and the processor for
//! themselves. `examples/overlap.rs` measures with it how much of them the whole step hides.

use crate::Result;
use crate::exchange;
use crate::executor::{Executor, Reader};
use crate::micro::Micro;
use lampyris_model::MicroBatch;
use lampyris_plan::program::{Instruction, Pass, Program};
use lampyris_plan::segments::{Operation, Segment};

/// What the slots of a micro-batch hold after its forward pass, and how its gates chose.
#[derive(Debug)]
pub struct Filled(Micro);

impl Filled {
    /// Fills the slots of `batch`. Collective over the ranks that share experts.
    ///
    /// # Errors
    /// As a forward pass.
    pub fn new(reader: &Reader<'_>, batch: &MicroBatch) -> Result<Filled> {
        Ok(Filled(reader.walk(batch, None)?))
    }
}

impl Executor<'_> {
    /// Runs the instructions of `program` that move anything, in their order and with the waits of all others. Segments
    /// take their outputs from `filled`, one by micro-batch; gradients are values of the same shapes. Weights, optimizer
    /// and progress stay as they are; gradients do not.
    ///
    /// # Errors
    /// As a step.
    pub fn run_alone(&mut self, program: &Program, filled: &[Filled]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let graph = &self.network.graph;
        let mut micros: Vec<Micro> = filled.iter().map(|_| Micro::new(graph)).collect();
        for &instruction in &program.instructions {
            let started = self.clock.start();
            self.transfer(instruction, &mut micros, filled)?;
            self.clock.stop(started, instruction);
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        instruction: Instruction,
        micros: &mut [Micro],
        filled: &[Filled],
    ) -> Result<()> {
        let exchange = self.ranks.exchange();
        match instruction {
            Instruction::Forward { micro, segment } => {
                let operation = Operation::Segment(segment);
                let needs = (operation, Pass::Forward);
                exchange::settle(&mut micros[micro], exchange, needs, self.clock)?;
                self.in_flight.finish_gathers_of(segment, self.clock)?;
                if !matches!(segment, Segment::Head(_)) {
                    micros[micro].take_forward(operation, &filled[micro].0);
                }
            }
            Instruction::Backward { micro, segment } => {
                let operation = Operation::Segment(segment);
                let needs = (operation, Pass::Backward);
                exchange::settle(&mut micros[micro], exchange, needs, self.clock)?;
                let gradients = filled[micro].0.read(operation).into_iter().map(Some).collect();
                micros[micro].contribute(operation, gradients);
            }
            Instruction::Weight { micro, segment: Segment::Embed } => {
                micros[micro] = Micro::new(&self.network.graph);
            }
            Instruction::Dispatch { micro, layer, pass } => {
                let needs = (Operation::Dispatch(layer), pass);
                exchange::settle(&mut micros[micro], exchange, needs, self.clock)?;
                exchange::dispatch(&mut micros[micro], exchange, layer, pass)?;
            }
            Instruction::Combine { micro, layer, pass } => {
                let needs = (Operation::Combine(layer), pass);
                exchange::settle(&mut micros[micro], exchange, needs, self.clock)?;
                exchange::combine(&mut micros[micro], exchange, layer, pass)?;
            }
            Instruction::ReduceBucket { bucket } => {
                self.in_flight.reduce(self.state, self.ranks, bucket)?;
            }
            Instruction::GradNorm => self.in_flight.finish_reductions(self.clock)?,
            Instruction::GatherBucket { bucket } => {
                self.in_flight.gather(self.state, self.ranks, bucket)?;
            }
            Instruction::BeginLeaf { .. }
            | Instruction::FoldLeaf { .. }
            | Instruction::Weight { .. }
            | Instruction::UpdateShard { .. }
            | Instruction::UpdateBias => {}
        }
        Ok(())
    }
}
