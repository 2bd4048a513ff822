//! Jobs, nodes and events as tables that fit the terminal, and what one job is at.

use super::table::Table;
use super::training::duration_text;
use crate::backend::scheduler::priority_word;
use crate::backend::{JobDetails, JobRow, Phase, RankRow};
use indicatif::HumanCount;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use lampyris_plan::visible;
use lampyris_proto::v1;
use std::collections::BTreeMap;

/// Ranks of a job that `show` lists one by one; of more, those that are behind.
const MAX_RANKS: usize = 32;

/// One line per job.
pub(crate) fn jobs(rows: &[JobRow], width: usize) -> String {
    if rows.is_empty() {
        return "no jobs".into();
    }
    let mut table = Table::new(&[
        "job", "name", "user", "priority", "state", "nodes", "step", "loss", "tokens/s", "eta",
        "why",
    ]);
    for row in rows {
        let figure = |value: Option<f64>, show: &dyn Fn(f64) -> String| {
            value.filter(|_| row.phase == Phase::Running).map(show).unwrap_or_default()
        };
        table.row([
            row.id.clone(),
            row.name.clone(),
            row.user.clone(),
            row.priority.clone(),
            row.phase.as_str().into(),
            row.nodes.to_string(),
            steps(row.step, row.total_steps),
            figure(row.loss, &|loss| format!("{loss:.4}")),
            figure(row.tokens_per_s, &|speed| HumanCount(speed as u64).to_string()),
            figure(row.step_s, &|_| eta(row)),
            row.reason.clone(),
        ]);
    }
    table.text(width)
}

fn steps(step: u64, total: u64) -> String {
    match (step, total) {
        (0, 0) => String::new(),
        (step, 0) => step.to_string(),
        (step, total) => format!("{step}/{total}"),
    }
}

fn eta(row: &JobRow) -> String {
    let left = row.total_steps.saturating_sub(row.step) as f64;
    row.step_s.map(|step_s| duration_text(left * step_s)).unwrap_or_default()
}

/// All about one job.
pub(crate) fn job(job: &JobDetails, width: usize) -> String {
    let row = &job.row;
    let heading = format!("job {}  {}  {}", row.id, row.name, row.phase.as_str());
    let mut lines = vec![visible::line(&heading).into_owned()];
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<11} {}", visible::line(&value)));
        }
    };
    field("why", row.reason.clone());
    field("user", row.user.clone());
    field("priority", row.priority.clone());
    field("attempt", if row.attempt > 0 { row.attempt.to_string() } else { String::new() });
    field("nodes", job.node_names.join(", "));
    field("step", steps(row.step, row.total_steps));
    field(
        "checkpoint",
        if job.saved_step > 0 { format!("step {}", job.saved_step) } else { String::new() },
    );
    if let (Some(loss), Some(speed)) = (row.loss, row.tokens_per_s) {
        field("loss", format!("{loss:.4}"));
        field("tokens/s", HumanCount(speed as u64).to_string());
        field("eta", eta(row));
    }
    field("failure", job.failure.clone());
    field("run", row.run_dir.display().to_string());
    if let Some(behind) = behind(&job.ranks) {
        lines.push(visible::line(&behind).into_owned());
    }
    if !job.ranks.is_empty() {
        lines.push(ranks(&job.ranks, width));
    }
    lines.join("\n")
}

fn ranks(ranks: &[RankRow], width: usize) -> String {
    let slowest = ranks.iter().map(|rank| rank.step).min();
    let many = ranks.len() > MAX_RANKS;
    let shown = ranks.iter().filter(|rank| !many || Some(rank.step) == slowest).take(MAX_RANKS);
    let mut table = Table::new(&["rank", "node", "step", "for", "doing"]);
    for rank in shown {
        table.row([
            rank.rank.to_string(),
            rank.node.clone(),
            rank.step.to_string(),
            duration_text(rank.since_ms as f64 / 1e3),
            doing(rank),
        ]);
    }
    table.text(width)
}

fn doing(rank: &RankRow) -> String {
    match rank.operation.as_str() {
        "" => format!("step {}", rank.step.saturating_add(1)),
        operation => operation.into(),
    }
}

/// Which ranks have not entered what the others are at; `None` where all are at the same.
pub(crate) fn behind(ranks: &[RankRow]) -> Option<String> {
    let newest = ranks.iter().map(|rank| rank.step).max()?;
    let late: Vec<&RankRow> = ranks.iter().filter(|rank| rank.step < newest).collect();
    if !late.is_empty() {
        return Some(format!(
            "behind      {} not completed step {newest}",
            who(&late, ranks.len())
        ));
    }
    let mut groups: BTreeMap<String, Vec<&RankRow>> = BTreeMap::new();
    for rank in ranks {
        // "saving 3/8" and "saving 4/8" are the same operation.
        let what = doing(rank);
        let words = what.rsplit_once(' ').filter(|(_, count)| count.contains('/'));
        let what = words.map_or(what.clone(), |(what, _)| what.to_string());
        groups.entry(what).or_default().push(rank);
    }
    // Of two equally large groups, the one in a named operation waits for the one that still computes.
    let in_operation = |ranks: &[&RankRow]| !ranks[0].operation.is_empty();
    let (others, _) = groups.iter().max_by_key(|(_, r)| (r.len(), in_operation(r)))?;
    let late: Vec<&RankRow> =
        groups.iter().filter(|(what, _)| *what != others).flat_map(|(_, r)| r.clone()).collect();
    (!late.is_empty())
        .then(|| format!("behind      {} not entered \"{others}\"", who(&late, ranks.len())))
}

fn who(late: &[&RankRow], all: usize) -> String {
    let one = |rank: &&RankRow| {
        let time = duration_text(rank.since_ms as f64 / 1e3);
        format!("rank {} on {} ({} for {time})", rank.rank, rank.node, doing(rank))
    };
    let named: Vec<String> = late.iter().take(4).map(one).collect();
    let more = match late.len() {
        0..=4 => String::new(),
        many => format!(" and {} more", many - 4),
    };
    let have = if late.len() == 1 { "has" } else { "have" };
    format!("{}{more}, of {all} ranks, {have}", named.join(", "))
}

/// One line per node.
pub(crate) fn nodes(nodes: &[v1::Node], width: usize) -> String {
    if nodes.is_empty() {
        return "no nodes; `lampyris worker` makes this machine one".into();
    }
    let mut table =
        Table::new(&["node", "group", "state", "devices", "cores", "memory", "jobs", "why"]);
    for node in nodes {
        let capacity = node.capacity.clone().unwrap_or_default();
        let hardware = node.hardware.clone().unwrap_or_default();
        let state = node.state().as_str_name().trim_start_matches("STATE_").to_lowercase();
        let state = if node.draining { format!("{state}, draining") } else { state };
        let jobs: Vec<String> = node.holdings.iter().map(|held| held.job.to_string()).collect();
        table.row([
            node.name.clone(),
            capacity.group,
            state,
            capacity.devices.to_string(),
            hardware.cores.to_string(),
            format!("{} GiB", hardware.memory_bytes >> 30),
            jobs.join(" "),
            node.reason.clone().unwrap_or_default().text,
        ]);
    }
    table.text(width)
}

/// One line per event.
pub(crate) fn events(events: &[v1::Event], width: usize) -> String {
    let mut table = Table::new(&["time", "about", "what"]);
    for event in events {
        table.row(event_cells(event));
    }
    table.text(width)
}

/// One event as it happens.
pub(crate) fn event(event: &v1::Event) -> String {
    visible::line(&event_cells(event).join("  ")).into_owned()
}

fn event_cells(event: &v1::Event) -> [String; 3] {
    let about = match &event.subject {
        Some(v1::event::Subject::Job(job)) => format!("job {job}"),
        Some(v1::event::Subject::Node(node)) => format!("node {node}"),
        None => String::new(),
    };
    let time = event.time.and_then(|time| Timestamp::from_second(time.seconds).ok());
    let time =
        time.map(|time| time.to_zoned(TimeZone::system()).strftime("%m-%d %H:%M:%S").to_string());
    [time.unwrap_or_default(), about, event.reason.clone().unwrap_or_default().text]
}

/// A quota-like line of a submitted job.
pub(crate) fn submitted(job: &v1::Job) -> String {
    let spec = job.spec.clone().unwrap_or_default();
    let reason = job.reason.clone().unwrap_or_default().text;
    let priority = priority_word(spec.priority());
    let text = format!("job {} ({}, priority {priority}): {reason}", job.id, spec.name);
    visible::line(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rank: u64, step: u64, operation: &str, seconds: u64) -> RankRow {
        let (node, operation) = (format!("n{}", rank / 2), operation.into());
        RankRow { rank, node, step, operation, since_ms: seconds * 1000 }
    }

    #[test]
    fn who_has_not_entered_what_is_named_with_its_node() {
        let even = [rank(0, 4, "", 1), rank(1, 4, "", 2)];
        assert_eq!(behind(&even), None);
        let late = [rank(0, 5, "", 3), rank(1, 5, "", 3), rank(2, 4, "", 70), rank(3, 5, "", 3)];
        assert_eq!(
            behind(&late).unwrap(),
            "behind      rank 2 on n1 (step 5 for 1m10s), of 4 ranks, has not completed step 5"
        );
        let saves = [rank(0, 5, "saving 1/8", 3), rank(1, 5, "", 9), rank(2, 5, "saving 2/8", 3)];
        assert_eq!(
            behind(&saves).unwrap(),
            "behind      rank 1 on n0 (step 6 for 9s), of 3 ranks, has not entered \"saving\""
        );
        let two = [rank(0, 5, "all-reduce", 9), rank(1, 5, "", 9)];
        assert!(behind(&two).unwrap().starts_with("behind      rank 1 on n0"));
        assert_eq!(behind(&[]), None);
    }

    #[test]
    fn a_table_fits_and_a_long_reason_is_cut() {
        let row = JobRow {
            id: "7".into(),
            name: "debug_moe".into(),
            user: "ann".into(),
            phase: Phase::Running,
            reason: "attempt 1 runs on all its nodes, and this goes on for longer than it should"
                .into(),
            priority: "normal".into(),
            nodes: 2,
            attempt: 1,
            step: 5,
            total_steps: 20,
            loss: Some(2.5),
            tokens_per_s: Some(12345.6),
            step_s: Some(4.0),
            run_dir: "/runs/a".into(),
        };
        let text = jobs(&[row], 100);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        for part in ["12,345", "1m00s", "5/20", "2.5000", "…"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
