//! What was predicted of a run beside what was measured: memory, bytes between nodes, and the time of a step, whose least
//! is the critical path of its program with the times of this run's own instructions and transfers.

use crate::build::Rank;
use crate::costs::{Costs, fastest, median};
use crate::machine;
use crate::trace::Log;
use lampyris_plan::memory::RankMemory;
use lampyris_plan::program::Program;
use lampyris_plan::traffic::Traffic;
use lampyris_plan::{Shares, TrainPlan};
use std::collections::VecDeque;

/// Steps that are looked at: the last ones.
const STEPS: usize = 16;

/// Instructions that are kept of them, some ten megabytes; of longer programs the last step alone.
const MOST_SPANS: usize = 200_000;

/// One rank's measurements.
#[derive(Debug, Default)]
pub struct Measured {
    /// Logs of the last steps, and their wall time in seconds.
    steps: VecDeque<(Log, f64)>,
    /// Bytes sent to other nodes in them.
    network: VecDeque<u64>,
    sent_before: u64,
}

impl Measured {
    /// Keeps a step; `sent` is what the rank has sent to other nodes since it started.
    pub fn step(&mut self, log: Log, wall_s: f64, sent: u64) {
        let spans = |steps: &VecDeque<(Log, f64)>| -> usize {
            steps.iter().map(|(log, _)| log.spans.len()).sum()
        };
        while self.steps.len() == STEPS
            || !self.steps.is_empty() && spans(&self.steps) + log.spans.len() > MOST_SPANS
        {
            self.steps.pop_front();
            self.network.pop_front();
        }
        self.steps.push_back((log, wall_s));
        self.network.push_back(sent - self.sent_before);
        self.sent_before = sent;
    }

    /// One line: predicted and measured.
    pub fn beside_plan(
        &self,
        plan: &TrainPlan,
        rank: &Rank,
        (program, nodes): (&Program, usize),
    ) -> String {
        let mut costs = Costs::default();
        for (log, _) in &self.steps {
            costs.computation(log);
            costs.exchanges(log);
            costs.buckets(log);
        }
        let bound = costs.bound(program, fastest);
        let walls: Vec<f64> = self.steps.iter().map(|(_, wall)| *wall).collect();
        let inventory = &rank.network.inventory;
        let memory = RankMemory::of(plan, &Shares::of(plan), plan.batch.reduction).total();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut line = format!(
            "predicted and measured: a step {:.3} s at least, {:.3} s; memory of a rank {:.0} MiB without libtorch, {:.0} MiB with it",
            bound.step_s,
            median(&walls),
            mib(memory),
            mib(machine::peak_memory()),
        );
        if nodes > 1 {
            let planned = Traffic::of(plan, inventory, nodes).total().network;
            let sent: Vec<f64> = self.network.iter().map(|&bytes| mib(bytes)).collect();
            line += &format!(
                "; sent between nodes a step {:.2} MiB, {:.2} MiB",
                mib(planned),
                median(&sent)
            );
        }
        line
    }
}
