//! How long a program takes at least: its critical path, from the time that each instruction computes and the time that
//! each transfer takes alone.
//!
//! One compute thread runs the instructions in order. A transfer starts when its instruction has run and the link is
//! free, since transfers of a rank share one link in the order of their starts; the first instruction that needs what it
//! brings waits. Gathers reach into the next step, so two steps are laid one after the other and the second counts.

use crate::buckets::Buckets;
use crate::inventory::Inventory;
use crate::program::{Instruction, Pass, Program, readers};
use crate::segments::{Graph, Operation, Segment};
use serde::Serialize;
use std::collections::HashMap;

/// Seconds of one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// On the compute thread.
    pub compute_s: f64,
    /// Of the transfer that it starts, alone on the link; 0 if it starts none.
    pub transfer_s: f64,
}

/// What a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Bound {
    /// The whole step.
    pub step_s: f64,
    /// Of that, the compute thread's own work.
    pub compute_s: f64,
    /// Sum of all transfers, hidden or not.
    pub transfer_s: f64,
}

impl Bound {
    /// Share of the transfers that computation covers; 1 if there are none.
    pub fn hidden(&self) -> f64 {
        if self.transfer_s == 0.0 {
            return 1.0;
        }
        1.0 - (self.step_s - self.compute_s) / self.transfer_s
    }
}

/// What an instruction may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Transfer {
    Rows { micro: usize, operation: Operation, pass: Pass },
    Reduction(usize),
    Gather(usize),
}

/// The critical path of `program`.
pub fn bound(
    program: &Program,
    (graph, inventory, buckets): (&Graph, &Inventory, &Buckets),
    cost: impl Fn(&Instruction) -> Cost,
) -> Bound {
    let mut read_by: HashMap<Segment, Vec<usize>> = HashMap::new();
    for bucket in &buckets.buckets {
        for segment in readers(bucket, inventory, graph) {
            read_by.entry(segment).or_default().push(bucket.id);
        }
    }
    let (mut now, mut link) = (0.0f64, 0.0f64);
    let mut arrivals: HashMap<Transfer, f64> = HashMap::new();
    let mut ends = [0.0; 2];
    let mut sums = Bound::default();
    for end in &mut ends {
        sums = Bound::default();
        for instruction in &program.instructions {
            for transfer in needs(instruction, graph, &read_by, buckets.buckets.len()) {
                now = now.max(arrivals.remove(&transfer).unwrap_or(now));
            }
            let Cost { compute_s, transfer_s } = cost(instruction);
            now += compute_s;
            sums.compute_s += compute_s;
            if let Some(transfer) = starts(instruction) {
                link = link.max(now) + transfer_s;
                arrivals.insert(transfer, link);
                sums.transfer_s += transfer_s;
            }
        }
        *end = now;
    }
    Bound { step_s: ends[1] - ends[0], ..sums }
}

fn starts(instruction: &Instruction) -> Option<Transfer> {
    match *instruction {
        Instruction::Dispatch { micro, layer, pass } => {
            Some(Transfer::Rows { micro, operation: Operation::Dispatch(layer), pass })
        }
        Instruction::Combine { micro, layer, pass } => {
            Some(Transfer::Rows { micro, operation: Operation::Combine(layer), pass })
        }
        Instruction::ReduceBucket { bucket } => Some(Transfer::Reduction(bucket)),
        Instruction::GatherBucket { bucket } => Some(Transfer::Gather(bucket)),
        _ => None,
    }
}

fn needs(
    instruction: &Instruction,
    graph: &Graph,
    read_by: &HashMap<Segment, Vec<usize>>,
    buckets: usize,
) -> Vec<Transfer> {
    let (micro, operation, pass) = match *instruction {
        Instruction::Forward { micro, segment } => {
            (micro, Operation::Segment(segment), Pass::Forward)
        }
        Instruction::Backward { micro, segment } => {
            (micro, Operation::Segment(segment), Pass::Backward)
        }
        Instruction::Dispatch { micro, layer, pass } => (micro, Operation::Dispatch(layer), pass),
        Instruction::Combine { micro, layer, pass } => (micro, Operation::Combine(layer), pass),
        Instruction::GradNorm => return (0..buckets).map(Transfer::Reduction).collect(),
        _ => return Vec::new(),
    };
    let brings = |exchange: &Operation| {
        let (gives, takes) = match pass {
            Pass::Forward => (graph.writes(*exchange), graph.reads(operation)),
            Pass::Backward => (graph.reads(*exchange), graph.writes(operation)),
        };
        !matches!(exchange, Operation::Segment(_)) && gives.iter().any(|slot| takes.contains(slot))
    };
    let rows = graph.forward().into_iter().filter(brings);
    let mut out: Vec<Transfer> =
        rows.map(|operation| Transfer::Rows { micro, operation, pass }).collect();
    if let (Pass::Forward, Operation::Segment(segment)) = (pass, operation) {
        out.extend(read_by.get(&segment).into_iter().flatten().map(|&b| Transfer::Gather(b)));
    }
    out
}

#[cfg(test)]
mod tests;
