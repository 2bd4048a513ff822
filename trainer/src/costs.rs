//! What acts and transfers cost, from logs of steps, and the least time that a program takes with these costs.

use crate::trace::Log;
use lampyris_plan::program::{Act, Program, Transfer};
use lampyris_plan::timeline::{self, Bound, Cost};
use std::collections::HashMap;
use std::time::Instant;

/// Seconds of every run; acts and transfers of different micro-batches that are alike are counted together.
#[derive(Debug, Default)]
pub struct Costs {
    computed: HashMap<Act, Vec<f64>>,
    moved: HashMap<Transfer, Vec<f64>>,
}

impl Costs {
    /// Counts the instructions of a step, waits left out.
    pub fn computation(&mut self, log: &Log) {
        let mut waits = log.waits.iter().peekable();
        for span in &log.spans {
            let mut took = span.ended - span.started;
            while let Some(wait) = waits.next_if(|t| t.asked < span.ended) {
                if wait.asked >= span.started {
                    took = took.saturating_sub(wait.waited);
                }
            }
            self.computed.entry(span.act.alike()).or_default().push(took.as_secs_f64());
        }
    }

    /// Counts the exchanges of rows of a step, each from its start to its end.
    pub fn exchanges(&mut self, log: &Log) {
        for wait in &log.waits {
            if let Some(transfer @ Transfer::Rows { .. }) = wait.transfer() {
                self.moved(transfer, (wait.done - wait.started).as_secs_f64());
            }
        }
    }

    /// Counts the reductions and gathers of a step, each from the end of the one before it if it had started by then.
    pub fn buckets(&mut self, log: &Log) {
        let is_reduction = |transfer: &Transfer| matches!(transfer, Transfer::Reduce { .. });
        for reductions in [true, false] {
            let mut moves: Vec<(Instant, Instant, Transfer)> = Vec::new();
            for wait in &log.waits {
                match wait.transfer() {
                    None | Some(Transfer::Rows { .. }) => {}
                    Some(transfer) if is_reduction(&transfer) != reductions => {}
                    Some(transfer) => moves.push((wait.started, wait.done, transfer)),
                }
            }
            moves.sort_by_key(|(_, done, _)| *done);
            let mut free: Option<Instant> = None;
            for (started, done, transfer) in moves {
                let from = free.map_or(started, |free| free.max(started));
                self.moved(transfer, done.saturating_duration_since(from).as_secs_f64());
                free = Some(done);
            }
        }
    }

    fn moved(&mut self, transfer: Transfer, took_s: f64) {
        self.moved.entry(transfer.alike()).or_default().push(took_s);
    }

    /// The critical path of `program`: acts take their median, transfers what `of_transfers` makes of theirs.
    pub fn bound(&self, program: &Program, of_transfers: impl Fn(&[f64]) -> f64) -> Bound {
        timeline::bound(program, |act| {
            let moved = match act {
                Act::Start(transfer) => self.moved.get(&transfer.alike()),
                Act::Run(_) => None,
            };
            Cost {
                compute_s: self.computed.get(&act.alike()).map_or(0.0, |all| median(all)),
                transfer_s: moved.map_or(0.0, |all| of_transfers(all)),
            }
        })
    }
}

/// The upper median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The smallest: of transfers, the one that came nearest to having the link for itself.
pub fn fastest(values: &[f64]) -> f64 {
    values.iter().copied().reduce(f64::min).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Awaited, Span, Wait};
    use lampyris_plan::program::Task;
    use lampyris_plan::segments::Segment;
    use std::time::Duration;

    #[test]
    fn waits_are_no_computation_and_queued_buckets_count_once() {
        let origin = Instant::now();
        let at = |ms: u64| origin + Duration::from_millis(ms);
        let reduce = |bucket: usize| Transfer::Reduce { bucket };
        let wait = |bucket: usize, done: u64| Wait {
            awaited: Awaited::Transfer(reduce(bucket)),
            started: at(0),
            done: at(done),
            asked: at(12),
            waited: Duration::from_millis(done.saturating_sub(12)),
        };
        let span = |act, from, to| Span { act, started: at(from), ended: at(to) };
        let norm = Act::Run(Task::GradNorm);
        let log = Log {
            spans: vec![span(Act::Start(reduce(0)), 0, 1), span(norm, 11, 31)],
            waits: vec![wait(0, 8), wait(1, 28)],
        };
        let mut costs = Costs::default();
        costs.computation(&log);
        costs.buckets(&log);
        let near = |found: &[f64], wanted: f64| {
            assert!(found.len() == 1 && (found[0] - wanted).abs() < 1e-9, "{found:?} {wanted}");
        };
        near(&costs.computed[&norm], 0.004);
        near(&costs.computed[&Act::Start(reduce(0))], 0.001);
        near(&costs.moved[&reduce(0)], 0.008);
        near(&costs.moved[&reduce(1)], 0.020);
    }

    #[test]
    fn micro_batches_are_counted_together() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let weight =
            |micro, leaf| Act::Run(Task::Weight { micro, segment: Segment::Attention(1), leaf });
        let span = |act| Span { act, started: now, ended: now + second };
        let log = Log { spans: vec![span(weight(0, 0)), span(weight(3, 1))], waits: vec![] };
        let mut costs = Costs::default();
        costs.computation(&log);
        assert_eq!(costs.computed[&weight(0, 0)], [1.0, 1.0]);
        assert_eq!(costs.computed.len(), 1);
    }
}
