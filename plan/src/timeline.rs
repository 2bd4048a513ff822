//! How long a program takes at least: its critical path, from the time that each act computes and the time that each
//! transfer takes alone.
//!
//! One compute thread goes through the instructions in order. A transfer starts when its instruction has run and the link is
//! free, since transfers of a rank share one link in the order of their starts; the instruction that names it among its
//! needs waits. Gathers reach into the next step, so two steps are laid one after the other and the second counts.

use crate::program::{Act, Machine, Program, Task, Transfer, Value, run};
use serde::Serialize;
use std::collections::HashMap;
use std::convert::Infallible;

/// Seconds of one act.
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

/// The critical path of `program`.
pub fn bound(program: &Program, cost: impl Fn(Act) -> Cost) -> Bound {
    let mut timeline =
        Timeline { cost, now: 0.0, link: 0.0, arrivals: HashMap::new(), sums: Bound::default() };
    let mut ends = [0.0; 2];
    for end in &mut ends {
        timeline.sums = Bound::default();
        let Ok(()) = run(program, &mut timeline);
        *end = timeline.now;
    }
    Bound { step_s: ends[1] - ends[0], ..timeline.sums }
}

/// A clock that goes through a program.
struct Timeline<C> {
    cost: C,
    now: f64,
    /// When the link is free.
    link: f64,
    arrivals: HashMap<Transfer, f64>,
    /// Of the step that runs.
    sums: Bound,
}

impl<C: Fn(Act) -> Cost> Timeline<C> {
    fn act(&mut self, act: Act) -> Cost {
        let cost = (self.cost)(act);
        self.now += cost.compute_s;
        self.sums.compute_s += cost.compute_s;
        cost
    }
}

impl<C: Fn(Act) -> Cost> Machine for Timeline<C> {
    type Error = Infallible;

    fn wait(&mut self, transfer: Transfer) -> Result<(), Infallible> {
        // In the first step gathers of the one before are not under way.
        self.now = self.now.max(self.arrivals.remove(&transfer).unwrap_or(self.now));
        Ok(())
    }

    fn start(&mut self, transfer: Transfer) -> Result<(), Infallible> {
        let cost = self.act(Act::Start(transfer));
        self.link = self.link.max(self.now) + cost.transfer_s;
        self.arrivals.insert(transfer, self.link);
        self.sums.transfer_s += cost.transfer_s;
        Ok(())
    }

    fn compute(&mut self, task: Task) -> Result<(), Infallible> {
        self.act(Act::Run(task));
        Ok(())
    }

    fn free(&mut self, _value: Value) {}
}

#[cfg(test)]
mod tests;
