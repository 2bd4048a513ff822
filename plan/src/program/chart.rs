//! Programs as text: what golden tests compare and people read.

use super::{Act, Instruction, Machine, Program, Task, Transfer, Value, run};
use crate::segments::{Exchange, Pass};
use std::convert::Infallible;
use std::fmt::{self, Write};

/// Where odd micro-batches stand.
const INDENT: usize = 40;
/// Where the transfers stand that an instruction waits for.
const WAITS: usize = 84;

/// One instruction a line, behind it the transfers that it waits for. Where micro-batches run in turns, every second one
/// stands to the right.
pub fn chart(program: &Program) -> String {
    let micros: Vec<usize> = program.acts().filter_map(Act::micro).collect();
    let mut chart = Chart { text: String::new(), waits: Vec::new(), in_turns: !micros.is_sorted() };
    let Ok(()) = run(program, &mut chart);
    chart.text
}

/// Writes a line for each instruction.
struct Chart {
    text: String,
    /// Of the next instruction.
    waits: Vec<String>,
    in_turns: bool,
}

impl Machine for Chart {
    type Error = Infallible;

    fn wait(&mut self, transfer: Transfer) -> Result<(), Infallible> {
        // The exchange that an instruction waits for is of its own micro-batch.
        self.waits.push(format!("{transfer:#}"));
        Ok(())
    }

    fn start(&mut self, _transfer: Transfer) -> Result<(), Infallible> {
        Ok(())
    }

    fn compute(&mut self, _task: Task) -> Result<(), Infallible> {
        Ok(())
    }

    fn free(&mut self, _value: Value) {}

    fn done(&mut self, instruction: &Instruction) {
        let odd = instruction.act.micro().is_some_and(|micro| micro % 2 == 1);
        let mut line = if odd && self.in_turns { " ".repeat(INDENT) } else { String::new() };
        line += &instruction.act.to_string();
        if !self.waits.is_empty() {
            let column = if self.in_turns { WAITS } else { INDENT };
            let waits = self.waits.join(", ");
            line = format!("{line:<column$}after {waits}");
            self.waits.clear();
        }
        let _infallible = writeln!(self.text, "{line}");
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Forward { micro, segment } => write!(f, "Forward      m{micro} {segment}"),
            Task::Loss { micro, depth, leaf } => {
                write!(f, "Loss         m{micro} head.{depth} leaf {leaf}")
            }
            Task::Backward { micro, segment } => write!(f, "Backward     m{micro} {segment}"),
            Task::Weight { micro, segment, leaf } => {
                write!(f, "Weight       m{micro} {segment} leaf {leaf}")
            }
            Task::FoldLeaf { bucket, leaf } => {
                write!(f, "FoldLeaf     bucket {bucket} leaf {leaf}")
            }
            Task::MergeSources { bucket } => write!(f, "MergeSources bucket {bucket}"),
            Task::GradNorm => write!(f, "GradNorm"),
            Task::UpdateShard { bucket } => write!(f, "UpdateShard  bucket {bucket}"),
            Task::UpdateBias => write!(f, "UpdateBias"),
        }
    }
}

/// `{:#}` leaves the micro-batch out.
impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transfer::Rows { micro, exchange, pass } => {
                let (name, layer) = match exchange {
                    Exchange::Dispatch(layer) => ("Dispatch", layer),
                    Exchange::Combine(layer) => ("Combine", layer),
                };
                let direction = if *pass == Pass::Forward { "" } else { " (backward)" };
                if f.alternate() {
                    return write!(f, "{name} layer {layer}{direction}");
                }
                write!(f, "{name:<12} m{micro} layer {layer}{direction}")
            }
            Transfer::Reduce { bucket } => write!(f, "ReduceBucket bucket {bucket}"),
            Transfer::Gather { bucket } => write!(f, "GatherBucket bucket {bucket}"),
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Run(task) => task.fmt(f),
            Act::Start(transfer) => transfer.fmt(f),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Slot { micro, slot } => write!(f, "m{micro} {slot:?}"),
            Value::Gradient { micro, slot } => write!(f, "m{micro} gradient of {slot:?}"),
            Value::Tape { micro, segment } => write!(f, "m{micro} tape of {segment}"),
            Value::Queue { micro, segment } => write!(f, "m{micro} weight gradients of {segment}"),
            Value::Route { micro, layer } => write!(f, "m{micro} route of layer {layer}"),
        }
    }
}
