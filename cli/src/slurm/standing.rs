//! How a run under Slurm stands: from what its shims have written (the truth) and what the queue says (a hint). Pure.

use super::queue::Row;
use crate::backend::Phase;

/// What the queue says about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Its row.
    Row(Row),
    /// The job has been forgotten.
    Gone,
    /// The queue does not answer.
    Silent(String),
}

/// Brings both together; `written` is what the run directory says for itself.
pub(crate) fn standing(hint: &Hint, written: (Phase, String)) -> (Phase, String) {
    let row = match hint {
        Hint::Row(row) => row,
        Hint::Gone => return over(written, "the queue has forgotten it"),
        Hint::Silent(why) => {
            let (phase, reason) = written;
            return (phase, format!("{reason}; the queue does not answer: {why}"));
        }
    };
    let never_started = written.0 == Phase::Queued;
    match row.state.as_str() {
        "PENDING" if never_started => (Phase::Queued, format!("waits: {}", row.reason)),
        "PENDING" => (Phase::Queued, format!("waits to go on: {}", row.reason)),
        "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "SPECIAL_EXIT" | "PREEMPTED"
        | "RESV_DEL_HOLD" => (Phase::Queued, format!("waits to go on: {}", row.state)),
        "CONFIGURING" => (Phase::Starting, "nodes are made ready".into()),
        "RUNNING" if never_started => (Phase::Starting, format!("starts on {}", row.nodes)),
        "RUNNING" if written.0 == Phase::Suspending => written,
        "RUNNING" => (Phase::Running, format!("on {}", row.nodes)),
        "COMPLETING" | "SIGNALING" | "STAGE_OUT" => (Phase::Stopping, row.state.clone()),
        "SUSPENDED" | "STOPPED" => (Phase::Suspended, "paused by Slurm, in memory".into()),
        "CANCELLED" => (Phase::Cancelled, "cancelled; `lampyris resume` continues it".into()),
        // Slurm's word alone is no success: a job that ends with 0 may have lost its last step.
        other => over(written, &format!("Slurm says {other}")),
    }
}

/// What the shims have written, where the job is over; `word` tells of those that were cut off.
fn over(written: (Phase, String), word: &str) -> (Phase, String) {
    match written.0 {
        Phase::Succeeded | Phase::Failed | Phase::Suspended => written,
        Phase::Queued => (Phase::Failed, format!("it never started: {word}")),
        _ => (Phase::Failed, format!("cut off before it could say how it ended: {word}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_slurm_has_its_phase() {
        let row = |state: &str| {
            Hint::Row(Row { state: state.into(), reason: "Priority".into(), nodes: "n1".into() })
        };
        let cases = [
            (row("PENDING"), Phase::Queued, Phase::Queued),
            (row("PENDING"), Phase::Suspended, Phase::Queued),
            (row("REQUEUED"), Phase::Suspended, Phase::Queued),
            (row("CONFIGURING"), Phase::Queued, Phase::Starting),
            (row("RUNNING"), Phase::Queued, Phase::Starting),
            (row("RUNNING"), Phase::Running, Phase::Running),
            (row("RUNNING"), Phase::Unknown, Phase::Running),
            (row("RUNNING"), Phase::Suspending, Phase::Suspending),
            (row("COMPLETING"), Phase::Running, Phase::Stopping),
            (row("CANCELLED"), Phase::Suspended, Phase::Cancelled),
            (row("COMPLETED"), Phase::Succeeded, Phase::Succeeded),
            (row("COMPLETED"), Phase::Running, Phase::Failed),
            (row("FAILED"), Phase::Suspended, Phase::Suspended),
            (row("OUT_OF_MEMORY"), Phase::Failed, Phase::Failed),
            (row("TIMEOUT"), Phase::Unknown, Phase::Failed),
            (row("A_NEW_STATE"), Phase::Queued, Phase::Failed),
            (Hint::Gone, Phase::Succeeded, Phase::Succeeded),
            (Hint::Gone, Phase::Running, Phase::Failed),
            (Hint::Silent("timed out".into()), Phase::Running, Phase::Running),
        ];
        for (hint, written, phase) in cases {
            let found = standing(&hint, (written, "why".into()));
            assert_eq!(found.0, phase, "{hint:?} over {written:?}");
        }
    }

    #[test]
    fn a_silent_queue_and_a_lost_job_are_told() {
        let silent = Hint::Silent("timed out".into());
        let told = standing(&silent, (Phase::Running, "runs".into())).1;
        assert_eq!(told, "runs; the queue does not answer: timed out");
        let lost = standing(&Hint::Gone, (Phase::Running, "runs".into())).1;
        assert_eq!(lost, "cut off before it could say how it ended: the queue has forgotten it");
    }
}
