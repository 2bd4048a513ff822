//! Sums of a trace: for each kind of communication how long any of it was under way, and how long the compute thread
//! waited for it ("exposed").

use lampyris_plan::program::{Act, Task, Transfer};
use lampyris_plan::timeline::{Bound, Cost};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Kinds, in the order of the table.
const KINDS: [&str; 5] = ["dispatch", "combine", "reduce", "gather", "optimizer"];

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
    #[serde(default)]
    args: Args,
}

/// What an event is of; nothing in traces of earlier releases.
#[derive(Debug, Default, Deserialize)]
struct Args {
    /// The instruction.
    act: Option<Act>,
    /// The transfer.
    transfer: Option<Transfer>,
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
    /// Seconds of every run without waits; acts that are alike are counted together.
    #[serde(skip)]
    computed: BTreeMap<Act, Vec<f64>>,
    /// Seconds of the fastest of the transfers that are alike.
    #[serde(skip)]
    transfers: BTreeMap<Transfer, f64>,
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
        } else if event.cat == "compute" || event.args.act.is_some() {
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
        let Some(act) = event.args.act else { return };
        self.computed.entry(act.alike()).or_default().push(alone);
        if act == Act::Run(Task::UpdateBias) {
            self.steps += 1;
            self.ends.push(end);
        }
    }

    /// Takes in that nothing follows.
    pub(crate) fn end(&mut self) {
        let steps = self.ends.windows(2).map(|pair| (pair[1] - pair[0]) / 1e6);
        self.step_s = median(&mut steps.collect::<Vec<f64>>());
    }

    /// They are written when they are waited for: nearly in the order of their starts.
    fn transfer(&mut self, event: &Event) {
        let end = event.ts + event.dur;
        let kind = self.kinds.entry(event.cat.clone()).or_default();
        kind.count += 1;
        kind.under_way_s += (end - event.ts.max(kind.covered_to)).max(0.0) / 1e6;
        kind.covered_to = kind.covered_to.max(end);
        if let Some(transfer) = event.args.transfer {
            let fastest = self.transfers.entry(transfer.alike()).or_insert(f64::INFINITY);
            *fastest = fastest.min(event.dur / 1e6);
        }
    }

    /// Whether the trace says which instruction an event is of: those of earlier releases do not.
    pub(crate) fn names_acts(&self) -> bool {
        !self.computed.is_empty()
    }

    /// What an act costs: the median of its own computation, and the fastest of its transfers, which is the one that came
    /// nearest to having the link for itself.
    pub(crate) fn cost(&self, act: Act) -> Cost {
        let computed = self.computed.get(&act.alike()).cloned();
        let transfer = match act {
            Act::Start(transfer) => self.transfers.get(&transfer.alike()).copied(),
            Act::Run(_) => None,
        };
        Cost {
            compute_s: computed.and_then(|mut all| median(&mut all)).unwrap_or(0.0),
            transfer_s: transfer.unwrap_or(0.0),
        }
    }
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
    use lampyris_plan::segments::{Exchange, Pass, Segment};
    use serde_json::json;

    #[test]
    fn waits_are_summed_and_overlapping_flights_count_once() {
        let dispatch =
            |micro| Transfer::Rows { micro, exchange: Exchange::Dispatch(1), pass: Pass::Forward };
        let forward = |micro, segment| Act::Run(Task::Forward { micro, segment });
        let act = |act: Act, cat: &str, ts: u32, dur: u32| json!({ "name": act.to_string(), "cat": cat, "ts": ts, "dur": dur, "args": { "act": act } });
        let moved = |micro, ts: u32, dur: u32| {
            let args = json!({ "transfer": dispatch(micro) });
            json!({ "name": "Dispatch", "cat": "dispatch", "ts": ts, "dur": dur, "args": args })
        };
        let lines = [
            json!({ "ph": "M", "name": "process_name", "args": { "name": "rank 0" } }),
            act(forward(0, Segment::Embed), "compute", 1_000_000, 1_000_000),
            moved(0, 1_000_000, 600_000),
            moved(1, 1_500_000, 400_000),
            json!({ "name": "wait for dispatch", "cat": "wait", "ts": 1_500_000, "dur": 250_000 }),
            act(forward(0, Segment::Experts(1)), "compute", 1_500_000, 350_000),
            act(Act::Run(Task::UpdateBias), "optimizer", 2_000_000, 500_000),
        ];
        let mut trace = RankTrace::new(3);
        for line in lines {
            trace.add(&serde_json::from_value(line).expect("an event"));
        }
        let kind = &trace.kinds["dispatch"];
        assert_eq!((trace.steps, trace.wall_s, kind.count), (1, 1.5, 2));
        assert!((kind.under_way_s - 0.9).abs() < 1e-9);
        assert!((kind.exposed_s - 0.25).abs() < 1e-9);
        let experts = forward(7, Segment::Experts(1));
        assert!((trace.cost(experts).compute_s - 0.1).abs() < 1e-9, "waits are not its own");
        let started = Act::Start(dispatch(2));
        assert_eq!(trace.cost(started), Cost { compute_s: 0.0, transfer_s: 0.4 });
        let text = table(&[trace]);
        assert!(text.contains("   3      1     1.500  dispatch               2        0.900      0.250          16.7 %"), "{text}");
    }

    /// Traces of earlier releases name instructions in words alone: their waits are summed, their bound is left out.
    #[test]
    fn a_trace_without_arguments_has_sums_but_no_bound() {
        let line =
            r#"{"ph":"X","name":"Forward m0 embed","cat":"compute","ts":1000000,"dur":1000000}"#;
        let mut trace = RankTrace::new(0);
        trace.add(&serde_json::from_str(line).expect("an event"));
        assert!((trace.wall_s - 1.0).abs() < 1e-9);
        assert!(!trace.names_acts());
    }
}
