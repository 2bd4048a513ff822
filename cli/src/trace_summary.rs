//! Sums of a trace: for each kind of communication how long any of it was under way, and how long the compute thread
//! waited for it ("exposed").

use lampyris_plan::program::Instruction;
use lampyris_plan::timeline::{Bound, Cost};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Kinds, in the order of the table.
const KINDS: [&str; 5] = ["dispatch", "combine", "reduce", "gather", "optimizer"];

/// Instructions that a trace shows in the lane of the optimizer.
const INSTRUCTIONS: [&str; 3] = ["GradNorm", "UpdateShard", "UpdateBias"];

/// One line of a trace: a span, or a name of a process or thread.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    name: String,
    #[serde(default)]
    cat: String,
    /// Microseconds.
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
}

/// What one rank did, as far as its trace goes.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RankTrace {
    pub(crate) rank: usize,
    /// Optimizer steps.
    steps: usize,
    /// From the first instruction to the last, seconds.
    wall_s: f64,
    /// Median of a step, from one end to the next, seconds.
    pub(crate) step_s: Option<f64>,
    /// The least that a step can take: the program's critical path.
    pub(crate) bound: Option<Bound>,
    kinds: BTreeMap<String, Kind>,
    #[serde(skip)]
    bounds: Option<(f64, f64)>,
    /// Ends of steps, microseconds.
    #[serde(skip)]
    ends: Vec<f64>,
    /// Waits since the last instruction, microseconds: they are part of the next one's time.
    #[serde(skip)]
    waited: f64,
    /// By instruction, its micro-batch left out: seconds of every run without waits.
    #[serde(skip)]
    computed: BTreeMap<String, Vec<f64>>,
    /// By instruction: seconds of the fastest of the transfers that it started.
    #[serde(skip)]
    transfers: BTreeMap<String, f64>,
}

/// One kind of communication.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Kind {
    /// Transfers.
    count: u64,
    /// Time in which at least one was under way, from its start to its end, seconds.
    under_way_s: f64,
    /// Time in which the compute thread waited for one, seconds.
    exposed_s: f64,
    /// Microsecond at which all earlier ones had ended.
    #[serde(skip)]
    covered_to: f64,
}

impl RankTrace {
    pub(crate) fn new(rank: usize) -> RankTrace {
        RankTrace { rank, ..RankTrace::default() }
    }

    pub(crate) fn add(&mut self, event: &Event) {
        if let Some(kind) = event.name.strip_prefix("wait for ") {
            self.kinds.entry(kind.to_string()).or_default().exposed_s += event.dur / 1e6;
            self.waited += event.dur;
        } else if event.cat == "compute" || INSTRUCTIONS.iter().any(|i| event.name.starts_with(i)) {
            self.instruction(event);
        } else if KINDS.contains(&event.cat.as_str()) {
            self.transfer(event);
        }
    }

    fn instruction(&mut self, event: &Event) {
        let end = event.ts + event.dur;
        let (first, last) = self.bounds.unwrap_or((event.ts, end));
        let bounds = (first.min(event.ts), last.max(end));
        self.wall_s = (bounds.1 - bounds.0) / 1e6;
        self.bounds = Some(bounds);
        let alone = (event.dur - std::mem::take(&mut self.waited)).max(0.0) / 1e6;
        self.computed.entry(without_micro_batch(&event.name)).or_default().push(alone);
        if event.name == "UpdateBias" {
            self.steps += 1;
            self.ends.push(end);
            let mut steps: Vec<f64> =
                self.ends.windows(2).map(|pair| (pair[1] - pair[0]) / 1e6).collect();
            self.step_s = median(&mut steps);
        }
    }

    /// They are written when they are waited for: nearly in the order of their starts.
    fn transfer(&mut self, event: &Event) {
        let end = event.ts + event.dur;
        let kind = self.kinds.entry(event.cat.clone()).or_default();
        kind.count += 1;
        kind.under_way_s += (end - event.ts.max(kind.covered_to)).max(0.0) / 1e6;
        kind.covered_to = kind.covered_to.max(end);
        let fastest = self.transfers.entry(event.name.clone()).or_insert(f64::INFINITY);
        *fastest = fastest.min(event.dur / 1e6);
    }

    /// What an instruction costs: the median of its own computation, and the fastest of its transfers, which is the one
    /// that came nearest to having the link for itself.
    pub(crate) fn cost(&self, instruction: &Instruction) -> Cost {
        let name = without_micro_batch(&instruction.to_string());
        let computed = self.computed.get(&name).cloned();
        Cost {
            compute_s: computed.and_then(|mut all| median(&mut all)).unwrap_or(0.0),
            transfer_s: self.transfers.get(&name).copied().unwrap_or(0.0),
        }
    }
}

/// `Dispatch     m3 layer 1` as `Dispatch layer 1`.
fn without_micro_batch(name: &str) -> String {
    let is_micro = |word: &&str| {
        word.strip_prefix('m')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    name.split_whitespace().filter(|word| !is_micro(word)).collect::<Vec<_>>().join(" ")
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// All ranks, a line for each kind.
pub(crate) fn table(ranks: &[RankTrace]) -> String {
    let mut out = String::from(
        "rank  steps    wall s  communication  transfers  under way s  exposed s  exposed / wall\n",
    );
    for rank in ranks {
        let line = |name: &str, kind: &Kind| {
            let share = 100.0 * kind.exposed_s / rank.wall_s.max(f64::MIN_POSITIVE);
            format!(
                "{:>4} {:>6} {:>9.3}  {name:<13} {:>10} {:>12.3} {:>10.3} {share:>13.1} %\n",
                rank.rank, rank.steps, rank.wall_s, kind.count, kind.under_way_s, kind.exposed_s
            )
        };
        let mut sum = 0.0;
        for name in KINDS {
            if let Some(kind) = rank.kinds.get(name) {
                out += &line(name, kind);
                sum += kind.exposed_s;
            }
        }
        let share = 100.0 * sum / rank.wall_s.max(f64::MIN_POSITIVE);
        let _infallible = writeln!(
            out,
            "{:>4} {:>6} {:>9.3}  {:<13} {:>10} {:>12} {sum:>10.3} {share:>13.1} %",
            rank.rank, rank.steps, rank.wall_s, "all", "", ""
        );
    }
    for rank in ranks {
        if let (Some(step), Some(bound)) = (rank.step_s, rank.bound) {
            let _infallible = write!(
                out,
                "\nrank {}: a step takes {:.1} ms (median); its instructions and transfers allow {:.1} ms, {:.1} ms of them computation: {:.2} x",
                rank.rank,
                step * 1e3,
                bound.step_s * 1e3,
                bound.compute_s * 1e3,
                step / bound.step_s.max(f64::MIN_POSITIVE)
            );
        }
    }
    out.trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lampyris_plan::program::Pass;
    use lampyris_plan::segments::Segment;

    #[test]
    fn waits_are_summed_and_overlapping_flights_count_once() {
        let lines = [
            r#"{"ph":"M","name":"process_name","pid":0,"args":{"name":"rank 0"}}"#,
            r#"{"ph":"X","name":"Forward m0 embed","cat":"compute","pid":0,"tid":0,"ts":1000000,"dur":1000000}"#,
            r#"{"ph":"X","name":"Dispatch layer 1","cat":"dispatch","pid":0,"tid":1,"ts":1000000,"dur":600000}"#,
            r#"{"ph":"X","name":"Dispatch layer 1","cat":"dispatch","pid":0,"tid":1,"ts":1500000,"dur":400000}"#,
            r#"{"ph":"X","name":"wait for dispatch","cat":"wait","pid":0,"tid":0,"ts":1500000,"dur":250000}"#,
            r#"{"ph":"X","name":"Forward      m0 experts.1","cat":"compute","pid":0,"tid":0,"ts":1500000,"dur":350000}"#,
            r#"{"ph":"X","name":"UpdateBias","cat":"optimizer","pid":0,"tid":5,"ts":2000000,"dur":500000}"#,
        ];
        let mut trace = RankTrace::new(3);
        lines.iter().for_each(|line| trace.add(&serde_json::from_str(line).expect("an event")));
        let dispatch = &trace.kinds["dispatch"];
        assert_eq!((trace.steps, trace.wall_s, dispatch.count), (1, 1.5, 2));
        assert!((dispatch.under_way_s - 0.9).abs() < 1e-9);
        assert!((dispatch.exposed_s - 0.25).abs() < 1e-9);
        let experts = Instruction::Forward { micro: 7, segment: Segment::Experts(1) };
        assert!((trace.cost(&experts).compute_s - 0.1).abs() < 1e-9, "waits are not its own");
        let pass = Pass::Forward;
        let dispatch = Instruction::Dispatch { micro: 2, layer: 1, pass };
        assert_eq!(trace.cost(&dispatch), Cost { compute_s: 0.0, transfer_s: 0.4 });
        let text = table(&[trace]);
        assert!(text.contains("   3      1     1.500  dispatch               2        0.900      0.250          16.7 %"), "{text}");
    }
}
