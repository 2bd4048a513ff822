//! What instructions and transfers cost, from logs of steps, and the least time that a program takes with these costs.

use crate::build::Rank;
use crate::trace::{Lane, Log, Transfer};
use lampyris_plan::program::Program;
use lampyris_plan::timeline::{self, Bound, Cost};
use std::collections::HashMap;
use std::time::Instant;

/// Seconds of every run, by instruction without its micro-batch.
#[derive(Debug, Default)]
pub struct Costs {
    computed: HashMap<String, Vec<f64>>,
    moved: HashMap<String, Vec<f64>>,
}

impl Costs {
    /// Counts the instructions of a step, waits left out.
    pub fn computation(&mut self, log: &Log) {
        let mut waits = log.transfers.iter().peekable();
        for span in &log.spans {
            let mut took = span.ended - span.started;
            while let Some(wait) = waits.next_if(|t| t.asked < span.ended) {
                if wait.asked >= span.started {
                    took = took.saturating_sub(wait.waited);
                }
            }
            let all = self.computed.entry(key(&span.instruction.to_string())).or_default();
            all.push(took.as_secs_f64());
        }
    }

    /// Counts the exchanges of rows of a step, each from its start to its end.
    pub fn exchanges(&mut self, log: &Log) {
        let rows = |t: &&Transfer| matches!(t.lane, Lane::Dispatch | Lane::Combine);
        for t in log.transfers.iter().filter(rows) {
            self.moved.entry(key(&t.name)).or_default().push((t.done - t.started).as_secs_f64());
        }
    }

    /// Counts the reductions and gathers of a step, each from the end of the one before it if it had started by then.
    pub fn buckets(&mut self, log: &Log) {
        for lane in [Lane::Reduce, Lane::Gather] {
            let mut of_lane: Vec<&Transfer> =
                log.transfers.iter().filter(|t| t.lane == lane).collect();
            of_lane.sort_by_key(|t| t.done);
            let mut free: Option<Instant> = None;
            for t in of_lane {
                let from = free.map_or(t.started, |free| free.max(t.started));
                let took = t.done.saturating_duration_since(from).as_secs_f64();
                self.moved.entry(key(&t.name)).or_default().push(took);
                free = Some(t.done);
            }
        }
    }

    /// The critical path of `program` on `rank`: instructions take their median, transfers what `of_transfers` makes of
    /// theirs.
    pub fn bound(
        &self,
        rank: &Rank,
        program: &Program,
        of_transfers: impl Fn(&[f64]) -> f64,
    ) -> Bound {
        let network = &rank.network;
        let sizes = (&network.graph, &network.inventory, &rank.state.buckets);
        timeline::bound(program, sizes, |instruction| {
            let name = key(&instruction.to_string());
            Cost {
                compute_s: self.computed.get(&name).map_or(0.0, |all| median(all)),
                transfer_s: self.moved.get(&name).map_or(0.0, |all| of_transfers(all)),
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

/// `Dispatch     m3 layer 1` as `Dispatch layer 1`.
fn key(name: &str) -> String {
    let is_micro = |word: &&str| {
        word.strip_prefix('m')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    name.split_whitespace().filter(|word| !is_micro(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Span;
    use lampyris_plan::program::Instruction;
    use std::time::Duration;

    #[test]
    fn waits_are_no_computation_and_queued_buckets_count_once() {
        let origin = Instant::now();
        let at = |ms: u64| origin + Duration::from_millis(ms);
        let reduce = |name: &str, done: u64| Transfer {
            lane: Lane::Reduce,
            name: name.to_string(),
            started: at(0),
            done: at(done),
            asked: at(12),
            waited: Duration::from_millis(done.saturating_sub(12)),
        };
        let span = |instruction, from, to| Span { instruction, started: at(from), ended: at(to) };
        let log = Log {
            spans: vec![
                span(Instruction::ReduceBucket { bucket: 0 }, 0, 1),
                span(Instruction::GradNorm, 11, 31),
            ],
            transfers: vec![
                reduce("ReduceBucket bucket 0", 8),
                reduce("ReduceBucket bucket 1", 28),
            ],
        };
        let mut costs = Costs::default();
        costs.computation(&log);
        costs.buckets(&log);
        let near = |found: &[f64], wanted: f64| {
            assert!(found.len() == 1 && (found[0] - wanted).abs() < 1e-9, "{found:?} {wanted}");
        };
        near(&costs.computed["GradNorm"], 0.004);
        near(&costs.computed["ReduceBucket bucket 0"], 0.001);
        near(&costs.moved["ReduceBucket bucket 0"], 0.008);
        near(&costs.moved["ReduceBucket bucket 1"], 0.020);
    }

    #[test]
    fn micro_batches_are_left_out_of_names() {
        assert_eq!(key("Dispatch     m3 layer 1 (backward)"), "Dispatch layer 1 (backward)");
        assert_eq!(key("Forward      m12 mtp_norm.3"), "Forward mtp_norm.3");
    }
}
