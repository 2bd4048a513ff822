//! Whether what others say can be worked with: every text and number of every message has a bound, and a refusal names the
//! field. [`super::convert`] then only translates.

use crate::limits;
use lampyris_proto::v1;
use lampyris_proto::words::{self, name_problem, path_problem, text_problem};
use prost::Message;
use tonic::Status;

/// A refusal of one field.
pub(super) fn bad(field: &str, what: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {what}"))
}

fn number(field: &str, given: u64, least: u64, most: u64) -> Result<(), Status> {
    if given < least || given > most {
        return Err(bad(field, format_args!("{given} is not between {least} and {most}")));
    }
    Ok(())
}

/// A name that must be there.
pub(super) fn name(field: &str, given: &str) -> Result<(), Status> {
    name_problem(given).map_or(Ok(()), |problem| Err(bad(field, problem)))
}

/// A name, or nothing.
fn optional_name(field: &str, given: &str) -> Result<(), Status> {
    if given.is_empty() { Ok(()) } else { name(field, given) }
}

fn text(field: &str, given: &str, most: usize) -> Result<(), Status> {
    if given.len() > most {
        return Err(bad(field, format_args!("must be at most {most} bytes")));
    }
    text_problem(given).map_or(Ok(()), |problem| Err(bad(field, problem)))
}

/// What is to run, on `nodes` nodes at most.
pub(super) fn run(run: &v1::RunSpec, nodes: u32) -> Result<(), Status> {
    for (field, path) in [("run.run_dir", &run.run_dir), ("run.dataset", &run.dataset)] {
        path_problem(path).map_or(Ok(()), |problem| Err(bad(field, problem)))?;
    }
    let most = limits::RANKS.checked_div(nodes.into()).unwrap_or(limits::RANKS);
    if most == 0 {
        let most = limits::RANKS;
        return Err(bad("spec.nodes", format_args!("a job has at most {most} ranks")));
    }
    number("run.ranks_per_node", run.ranks_per_node.into(), 1, most)?;
    number("run.attempt_base", run.attempt_base, 0, limits::ATTEMPT_BASE)?;
    number("run.memory_bytes", run.memory_bytes, 0, limits::BYTES)?;
    number("run.disk_bytes", run.disk_bytes, 0, limits::BYTES)?;
    if run.build_id.is_empty() {
        return Err(bad("run.build_id", "required"));
    }
    text("run.build_id", &run.build_id, limits::BUILD_ID_BYTES)
}

/// What a worker says of itself.
pub(super) fn register(register: &v1::Register) -> Result<(), Status> {
    name("node", &register.node)?;
    text("boot_id", &register.boot_id, limits::IDENTITY_BYTES)?;
    text("instance", &register.instance, limits::IDENTITY_BYTES)?;
    text("place", &register.place, limits::IDENTITY_BYTES)?;
    if let Some(capacity) = &register.capacity {
        optional_name("capacity.group", &capacity.group)?;
        optional_name("capacity.zone", &capacity.zone)?;
        optional_name("capacity.switch", &capacity.switch)?;
        number("capacity.devices", capacity.devices.into(), 1, limits::DEVICES.into())?;
    }
    let hardware = register.hardware.as_ref().map_or(0, Message::encoded_len);
    number("hardware", hardware as u64, 0, limits::HARDWARE_BYTES as u64)?;
    let attempts = register.attempts.len() as u64;
    number("attempts", attempts, 0, limits::REPORTED_ATTEMPTS as u64)
}

/// That a worker lives.
pub(super) fn heartbeat(heartbeat: &v1::Heartbeat) -> Result<(), Status> {
    let attempts = heartbeat.attempts.len() as u64;
    number("attempts", attempts, 0, limits::HEARTBEAT_ATTEMPTS as u64)
}

/// A part of a log: its words are cut.
pub(super) fn log_chunk(chunk: &mut v1::LogChunk) -> Result<(), Status> {
    number("data", chunk.data.len() as u64, 0, limits::LOG_CHUNK_BYTES as u64)?;
    shorten(&mut chunk.error, limits::LOG_ERROR_BYTES);
    Ok(())
}

/// Cuts a text that only people read.
pub(super) fn shorten(text: &mut String, bytes: usize) {
    text.truncate(words::cut(text, bytes).len());
}

/// How far node `index` of an attempt is: only what it can know. Its ranks are its own, its name is what it is called here,
/// and the figures are rank 0's.
pub(super) fn progress(news: &mut v1::Progress, index: u64, ranks_per_node: u64, node: &str) {
    let first = index.saturating_mul(ranks_per_node);
    let own = first..first.saturating_add(ranks_per_node);
    news.ranks.retain(|rank| own.contains(&rank.rank));
    news.ranks.truncate(limits::RANKS as usize);
    for rank in &mut news.ranks {
        shorten(&mut rank.operation, limits::OPERATION_BYTES);
        node.clone_into(&mut rank.node);
    }
    if index != 0 {
        news.figures = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good_run() -> v1::RunSpec {
        v1::RunSpec {
            run_dir: "/runs/a".into(),
            dataset: "/data".into(),
            ranks_per_node: 8,
            build_id: "0123".into(),
            ..v1::RunSpec::default()
        }
    }

    fn refused(change: impl FnOnce(&mut v1::RunSpec)) -> String {
        let mut changed = good_run();
        change(&mut changed);
        run(&changed, 4).expect_err("refused").message().to_owned()
    }

    #[test]
    fn every_number_and_path_of_a_run_has_a_bound_and_a_name() {
        run(&good_run(), 4).expect("is good");
        assert!(refused(|run| run.attempt_base = u64::MAX).starts_with("run.attempt_base: "));
        assert!(refused(|run| run.ranks_per_node = 0).starts_with("run.ranks_per_node: "));
        assert!(refused(|run| run.ranks_per_node = 1_025).starts_with("run.ranks_per_node: "));
        assert!(refused(|run| run.memory_bytes = 1 << 62).starts_with("run.memory_bytes: "));
        assert!(refused(|run| run.disk_bytes = 1 << 62).starts_with("run.disk_bytes: "));
        assert!(refused(|run| run.run_dir = "/x/../../etc".into()).starts_with("run.run_dir: "));
        assert!(refused(|run| run.dataset = "data".into()).starts_with("run.dataset: "));
        assert!(refused(|run| run.build_id.clear()).starts_with("run.build_id: "));
        assert!(run(&good_run(), 5_000).expect_err("refused").message().contains("4096 ranks"));
    }

    fn good_register() -> v1::Register {
        let capacity = v1::Capacity { devices: 1, ..v1::Capacity::default() };
        v1::Register { node: "n1".into(), capacity: Some(capacity), ..v1::Register::default() }
    }

    fn refused_register(change: impl FnOnce(&mut v1::Register)) -> String {
        let mut changed = good_register();
        change(&mut changed);
        register(&changed).expect_err("refused").message().to_owned()
    }

    fn capacity_of(register: &mut v1::Register) -> &mut v1::Capacity {
        register.capacity.as_mut().expect("set")
    }

    #[test]
    fn every_word_and_number_of_a_registration_has_a_bound_and_a_name() {
        register(&good_register()).expect("is good");
        let escape = "\u{1b}]0;x\u{7}";
        assert!(refused_register(|it| it.node = escape.into()).starts_with("node: "));
        assert!(refused_register(|it| it.place = escape.into()).starts_with("place: "));
        for field in ["group", "zone", "switch"] {
            let message = refused_register(|it| match field {
                "group" => capacity_of(it).group = "a\u{202e}b".into(),
                "zone" => capacity_of(it).zone = "a\nb".into(),
                _ => capacity_of(it).switch = "x".repeat(200),
            });
            assert!(message.starts_with(&format!("capacity.{field}: ")), "{message}");
        }
        assert!(refused_register(|it| capacity_of(it).devices = u32::MAX).contains("devices"));
        let attempts = vec![v1::ReportedAttempt::default(); limits::REPORTED_ATTEMPTS + 1];
        assert!(refused_register(|it| it.attempts = attempts).starts_with("attempts: "));
        let cpu = "x".repeat(limits::HARDWARE_BYTES);
        let hardware = v1::Hardware { cpu, ..v1::Hardware::default() };
        assert!(refused_register(|it| it.hardware = Some(hardware)).starts_with("hardware: "));
    }

    #[test]
    fn a_node_speaks_for_its_own_ranks_alone() {
        let rank = |rank| v1::RankProgress {
            rank,
            node: "elsewhere".into(),
            operation: "x".repeat(10_000),
            ..v1::RankProgress::default()
        };
        let mut news = v1::Progress {
            ranks: (0..1_000).chain([u64::MAX]).map(rank).collect(),
            figures: Some(v1::StepFigures::default()),
            ..v1::Progress::default()
        };
        progress(&mut news, 3, 2, "n3");
        assert_eq!(news.ranks.iter().map(|rank| rank.rank).collect::<Vec<_>>(), [6, 7]);
        assert!(news.ranks.iter().all(|rank| rank.node == "n3" && rank.operation.len() == 200));
        assert_eq!(news.figures, None);
    }
}
