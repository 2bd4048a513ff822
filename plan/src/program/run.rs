//! The only interpreter of programs.

use super::{Act, Instruction, Program, Task, Transfer, Value};

/// What goes through a program: a rank that computes, or anything that wants to know what a rank will do.
pub trait Machine {
    /// What stops it.
    type Error;

    /// Returns when the transfer is complete and what it brings is in place.
    ///
    /// # Errors
    /// The machine's own.
    fn wait(&mut self, transfer: Transfer) -> Result<(), Self::Error>;

    /// Begins a transfer; returns at once.
    ///
    /// # Errors
    /// The machine's own.
    fn start(&mut self, transfer: Transfer) -> Result<(), Self::Error>;

    /// Computes.
    ///
    /// # Errors
    /// The machine's own.
    fn compute(&mut self, task: Task) -> Result<(), Self::Error>;

    /// Gives the memory of a value back.
    fn free(&mut self, value: Value);

    /// The instruction is over, waits and frees included.
    fn done(&mut self, _instruction: &Instruction) {}
}

/// Goes through a program, one instruction after the other.
///
/// # Errors
/// The first of the machine.
pub fn run<M: Machine>(program: &Program, machine: &mut M) -> Result<(), M::Error> {
    for instruction in &program.instructions {
        for &transfer in &instruction.needs {
            machine.wait(transfer)?;
        }
        match instruction.act {
            Act::Start(transfer) => machine.start(transfer)?,
            Act::Run(task) => machine.compute(task)?,
        }
        for &value in &instruction.frees {
            machine.free(value);
        }
        machine.done(instruction);
    }
    Ok(())
}
