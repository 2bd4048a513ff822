//! Who holds an operation up, said at its deadline from headers and from the last heartbeats.

use super::operation::Operation;
use crate::error::Error;
use crate::ids::Rank;
use crate::shared::Shared;
use std::time::Instant;

/// Heartbeats older than this mark a peer silent. It is not a death: a stopped process is silent too.
const SILENT_MS: u128 = 1500;

/// The error of an operation whose deadline has passed.
pub(crate) fn timeout(shared: &Shared, operation: &Operation) -> Error {
    let descriptor = operation.launch.descriptor;
    let no_header: Vec<Rank> = operation.not_entered().collect();
    let mut waiting = Vec::new();
    for &rank in operation.launch.members.iter().filter(|rank| **rank != shared.rank) {
        let (entered, last, silent) = shared.with_peer(rank, |peer| {
            let last = peer.entered.iter().find(|entered| entered.group == descriptor.group);
            let silent = peer.heard.map(|at| Instant::now().duration_since(at).as_millis());
            (last.is_some_and(|e| e.sequence >= descriptor.sequence), last.copied(), silent)
        });
        let heard = match silent {
            Some(ms) if ms > SILENT_MS => format!(", silent for {ms} ms (stopped?)"),
            _ => String::new(),
        };
        if !entered && (no_header.contains(&rank) || !operation.launch.neighbours_know(rank)) {
            let last = last.map_or_else(
                || "none of this group".into(),
                |e| format!("{} #{}", e.kind.name(), e.sequence),
            );
            waiting.push((rank, format!("has not entered it (its last operation: {last}{heard})")));
        }
    }
    if waiting.is_empty() {
        for rank in operation.owing() {
            let silent = shared.with_peer(rank, |peer| {
                peer.heard.map_or(0, |at| Instant::now().duration_since(at).as_millis())
            });
            let heard = if silent > SILENT_MS {
                format!(" and is silent for {silent} ms (stopped?)")
            } else {
                String::new()
            };
            waiting.push((rank, format!("has entered it but owes data{heard}")));
        }
    }
    Error::Timeout {
        operation: descriptor.to_string(),
        timeout_ms: u64::try_from(operation.launch.timeout.as_millis()).unwrap_or(u64::MAX),
        waiting,
    }
}
