//! The ranks of a run as a table: step, what each is doing and for how long, and who is behind.

use super::training::duration_text;
use lampyris_plan::visible;
use lampyris_worker::shim::status::{RankStatus, State, Status};
use std::fmt::Write;

/// `nodes` as read at `now_ms` (since 1970); empty for a run that never started.
pub(crate) fn ranks(nodes: &[Status], now_ms: u64) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    write_ranks(&mut text, nodes, now_ms).ok();
    text.truncate(text.trim_end().len());
    text
}

fn write_ranks(out: &mut String, nodes: &[Status], now_ms: u64) -> std::fmt::Result {
    let Some(first) = nodes.first() else { return write!(out, "not started yet") };
    writeln!(out, "attempt {}, {} ranks on {} nodes", first.attempt, first.world, first.nodes)?;
    writeln!(out, "rank  node  host          step           for      doing")?;
    let slowest = nodes.iter().flat_map(|node| &node.ranks).map(|rank| rank.step).min();
    let fastest = nodes.iter().flat_map(|node| &node.ranks).map(|rank| rank.step).max();
    let uneven = slowest != fastest;
    for node in nodes {
        for rank in &node.ranks {
            let behind = uneven && Some(rank.step) == slowest && !node.ended();
            writeln!(out, "{}", line(node, rank, behind, now_ms))?;
        }
    }
    let told: usize = nodes.iter().map(|node| node.ranks.len()).sum();
    let unheard = first.world.saturating_sub(told as u64);
    if unheard > 0 {
        writeln!(out, "{unheard} ranks have not been heard of")?;
    }
    for node in nodes {
        write_end(out, node, now_ms)?;
    }
    Ok(())
}

fn line(node: &Status, rank: &RankStatus, behind: bool, now_ms: u64) -> String {
    let until = if node.ended() { node.written_ms } else { now_ms };
    let seconds = until.saturating_sub(rank.since_ms) as f64 / 1e3;
    let step = match rank.total_steps {
        0 => rank.step.to_string(),
        total => format!("{}/{total}", rank.step),
    };
    let doing = match rank.operation.as_str() {
        "" => format!("step {}", rank.step.saturating_add(1)),
        operation => operation.to_string(),
    };
    let behind = if behind { "  (behind)" } else { "" };
    let (number, place, host) = (rank.rank, rank.node, &node.host);
    let time = duration_text(seconds);
    let line =
        format!("{number:<4}  {place:<4}  {host:<12}  {step:<13}  {time:<7}  {doing}{behind}");
    visible::line(&line).into_owned()
}

fn write_end(out: &mut String, node: &Status, now_ms: u64) -> std::fmt::Result {
    let silent_ms = now_ms.saturating_sub(node.written_ms);
    let (number, host) = (node.node, visible::line(&node.host));
    match node.state {
        State::Silent => {
            let time = duration_text(silent_ms as f64 / 1e3);
            writeln!(out, "node {number} ({host}) has not written for {time}: its shim may be gone")
        }
        State::Running => Ok(()),
        State::Suspending => {
            writeln!(out, "node {number} ({host}) was asked to checkpoint and stop")
        }
        State::Finished => writeln!(out, "node {number} ({host}) finished"),
        State::Suspended => writeln!(out, "node {number} ({host}) checkpointed and stopped"),
        State::Lost => {
            writeln!(out, "node {number} ({host}) is lost: {}", visible::line(&node.reason))
        }
        State::Failed => {
            writeln!(out, "node {number} ({host}) failed: {}", visible::line(&node.reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node: u64, state: State, steps: [u64; 2]) -> Status {
        let rank = |index: u64| RankStatus {
            rank: 2 * node + index,
            node,
            pid: 100,
            step: steps[index as usize],
            total_steps: 20,
            operation: if index == 1 { "evaluating 3/8".into() } else { String::new() },
            since_ms: 50_000,
        };
        Status {
            attempt: 3,
            world: 4,
            nodes: 2,
            node,
            host: format!("n{node}"),
            pid: 9,
            process: None,
            state,
            exit_code: (state == State::Failed).then_some(1),
            reason: "rank 2 was killed by SIGKILL".into(),
            written_ms: 59_000,
            ranks: vec![rank(0), rank(1)],
        }
    }

    #[test]
    fn who_is_behind_and_how_a_node_ended() {
        let nodes = [node(0, State::Running, [12, 12]), node(1, State::Failed, [12, 11])];
        let expected = "\
attempt 3, 4 ranks on 2 nodes
rank  node  host          step           for      doing
0     0     n0            12/20          12s      step 13
1     0     n0            12/20          12s      evaluating 3/8
2     1     n1            12/20          9s       step 13
3     1     n1            11/20          9s       evaluating 3/8
node 1 (n1) failed: rank 2 was killed by SIGKILL";
        assert_eq!(ranks(&nodes, 62_000), expected);
        let text = ranks(&[node(0, State::Silent, [12, 11])], 92_000);
        let expected = "\
attempt 3, 4 ranks on 2 nodes
rank  node  host          step           for      doing
0     0     n0            12/20          42s      step 13
1     0     n0            11/20          42s      evaluating 3/8  (behind)
2 ranks have not been heard of
node 0 (n0) has not written for 33s: its shim may be gone";
        assert_eq!(text, expected);
        assert_eq!(ranks(&[], 0), "not started yet");
    }
}
