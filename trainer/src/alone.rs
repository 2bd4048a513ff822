//! The transfers of a step with its computation left out: what they take when they have the link and the processor for
//! themselves. `examples/overlap.rs` measures with it how much of them the whole step hides.

use crate::executor::Executor;
use crate::forward::Reader;
use crate::micro::Micro;
use crate::{Error, Result};
use lampyris_model::MicroBatch;
use lampyris_plan::program::{self, Instruction, Machine, Program, Task, Transfer, Value};
use lampyris_plan::segments::{Operation, Segment};

/// What the slots of a micro-batch hold after its forward pass, and how its gates chose.
#[derive(Debug)]
pub struct Filled(Micro);

impl Filled {
    /// Fills the slots of `batch`. Collective over the ranks that share experts.
    ///
    /// # Errors
    /// As a forward pass.
    pub fn new(reader: &mut Reader<'_>, batch: &MicroBatch) -> Result<Filled> {
        Ok(Filled(reader.all_values(batch)?))
    }
}

impl Executor<'_> {
    /// Runs the transfers of `program`, in their order and with the waits of all instructions. Segments take their outputs
    /// from `filled`, one by micro-batch; gradients are values of the same shapes. Weights, optimizer and progress stay as
    /// they are; gradients do not.
    ///
    /// # Errors
    /// As a step.
    pub fn run_transfers(&mut self, program: &Program, filled: &[Filled]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let micros = filled.iter().map(|_| Micro::new(&self.network.graph)).collect();
        self.clock.begin();
        program::run(program, &mut Replay { rank: self, filled, micros })
    }
}

/// Transfers on their way through a program.
struct Replay<'s, 'a> {
    rank: &'s mut Executor<'a>,
    filled: &'s [Filled],
    micros: Vec<Micro>,
}

impl Replay<'_, '_> {
    /// Gradients to what a segment reads.
    fn contribute(&mut self, micro: usize, segment: Segment) {
        let operation = Operation::Segment(segment);
        let gradients = self.filled[micro].0.read(operation).into_iter().map(Some).collect();
        self.micros[micro].contribute(operation, gradients);
    }
}

impl Machine for Replay<'_, '_> {
    type Error = Error;

    fn wait(&mut self, transfer: Transfer) -> Result<()> {
        self.rank.wait(transfer, &mut self.micros)
    }

    fn start(&mut self, transfer: Transfer) -> Result<()> {
        self.rank.start(transfer, &mut self.micros)
    }

    fn compute(&mut self, task: Task) -> Result<()> {
        match task {
            Task::Forward { micro, segment } => {
                let (operation, filled) = (Operation::Segment(segment), &self.filled[micro].0);
                self.micros[micro].take_forward(operation, filled);
            }
            Task::Loss { micro, depth, .. } => self.contribute(micro, Segment::Head(depth)),
            Task::Backward { micro, segment } => self.contribute(micro, segment),
            Task::Weight { .. }
            | Task::FoldLeaf { .. }
            | Task::MergeSources { .. }
            | Task::GradNorm
            | Task::UpdateShard { .. }
            | Task::UpdateBias => {}
        }
        Ok(())
    }

    fn free(&mut self, value: Value) {
        self.micros[value.micro()].free(value);
    }

    fn done(&mut self, instruction: &Instruction) {
        self.rank.clock.lap(instruction.act);
    }
}
