//! A view of the shim's events while a run trains: a bar on a terminal, else plain lines; and what the final report
//! needs of them. Decides nothing.

use super::{Bar, note};
use indicatif::{HumanBytes, HumanCount};
use lampyris_proto::rank::from_rank::Body;
use lampyris_proto::rank::{Evaluated, Operation, Saved, StepDone};
use lampyris_proto::rank::{Note, note::Severity};
use lampyris_proto::{Rank, Step};
use lampyris_worker::report::Report;
use lampyris_worker::shim::{Event, SuspendReason};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// Between plain lines; the first step always has its own.
const LINE_PERIOD: Duration = Duration::from_secs(5);

/// Weight of the newest step in the step time from which the remaining time follows: about the last 20 steps count.
const ETA_WEIGHT: f64 = 0.05;

/// Reads events until the shim has ended.
pub(crate) struct TrainingView {
    bar: Bar,
    terminal: bool,
    last_line: Option<Instant>,
    step_s: f64,
    report: Report,
}

impl TrainingView {
    /// A bar if stderr is a `terminal`, else lines.
    pub(crate) fn new(terminal: bool) -> TrainingView {
        let bar = Bar::new(terminal, None, "{spinner} {wide_msg}");
        bar.set_message("starting lampyris-rank");
        TrainingView { bar, terminal, last_line: None, step_s: 0.0, report: Report::default() }
    }

    /// Shows `events` as they come, and gives back what is worth keeping.
    pub(crate) fn watch(mut self, events: &Receiver<Event>) -> Report {
        while let Ok(event) = events.recv() {
            self.show(event, Instant::now());
        }
        self.bar.clear();
        self.report
    }

    fn show(&mut self, event: Event, now: Instant) {
        match event {
            Event::Started { rank, pid, .. } => {
                self.bar.set_message(&format!("rank {rank} starts (process {pid})"));
            }
            Event::Suspending { stay_stopped, reason } => {
                self.bar.line(&suspending_text(stay_stopped, reason));
            }
            Event::NotAtBoundary { ranks, waited } => self.bar.line(&late_text(&ranks, waited)),
            Event::Said { rank, body } => self.said(rank, body, now),
        }
        self.bar.tick();
    }

    fn said(&mut self, rank: Rank, body: Body, now: Instant) {
        match body {
            Body::Note(note) => self.bar.line(&note_text(rank, &note)),
            // Everything else is the same on all ranks.
            _ if rank != Rank(0) => {}
            body => self.said_first(body, now),
        }
    }

    fn said_first(&mut self, body: Body, now: Instant) {
        let first = self.report.first_step.is_none();
        self.report.note(&body);
        match body {
            Body::Ready(ready) => {
                let (device, threads) = (ready.device, ready.threads);
                self.bar.line(&format!("training on {device}, {threads} threads"));
            }
            Body::Operation(operation) => self.bar.set_message(&operation_text(&operation)),
            Body::StepDone(step) => self.step(&step, first, now),
            Body::Evaluated(evaluated) => self.bar.line(&evaluated_text(&evaluated)),
            Body::Saved(saved) => self.bar.line(&saved_text(&saved)),
            // Report or outcome tell of these.
            Body::Sample(_) | Body::Finished(_) | Body::Suspended(_) | Body::Failed(_) => {}
            Body::Note(_) => {}
        }
    }

    fn step(&mut self, step: &StepDone, first: bool, now: Instant) {
        self.step_s = match first {
            true => step.step_s,
            false => self.step_s + ETA_WEIGHT * (step.step_s - self.step_s),
        };
        if first {
            self.bar.set_style("{bar:14} {pos}/{len}  {wide_msg}");
        }
        self.bar.set(step.step, step.total_steps);
        let figures = figures(step, self.step_s);
        let due = self.last_line.is_none_or(|last| now - last >= LINE_PERIOD);
        if !self.terminal && (due || step.step == step.total_steps) {
            note(format_args!("step {}/{}  {figures}", step.step, step.total_steps));
            self.last_line = Some(now);
        }
        self.bar.set_message(&figures);
    }
}

/// What a step line says after the step: `step_s` is the smoothed step time in seconds.
fn figures(step: &StepDone, step_s: f64) -> String {
    let left = step.total_steps.saturating_sub(step.step) as f64 * step_s;
    format!(
        "loss {:.4}  lr {:.2e}  {} tokens/s  eta {}",
        step.loss,
        step.lr,
        HumanCount(step.tokens_per_s as u64),
        duration_text(left),
    )
}

/// `4m10s`; seconds alone under a minute, days over a day. Anything not finite is `?`.
pub(super) fn duration_text(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".into();
    }
    let total = seconds.max(0.0).round() as u64;
    let (days, hours, minutes) = (total / 86_400, total / 3_600 % 24, total / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{total}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", total % 60),
        (0, ..) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

fn operation_text(operation: &Operation) -> String {
    match operation.total {
        0 => operation.what.clone(),
        total => format!("{} {}/{total}", operation.what, operation.done),
    }
}

fn evaluated_text(evaluated: &Evaluated) -> String {
    format!(
        "step {}: validation {:.4} bits per byte ({:.4} nats per token, {} tokens)",
        evaluated.step,
        evaluated.bits_per_byte,
        evaluated.nats_per_token,
        HumanCount(evaluated.tokens),
    )
}

fn saved_text(saved: &Saved) -> String {
    let (bytes, seconds) = (HumanBytes(saved.bytes), saved.save_s);
    format!("step {}: checkpoint of {bytes} saved in {seconds:.1} s", saved.step)
}

fn note_text(rank: Rank, note: &Note) -> String {
    let warning = if note.severity() == Severity::Warning { "warning: " } else { "" };
    let rank = if rank == Rank(0) { String::new() } else { format!("rank {rank}: ") };
    format!("{warning}{rank}{}", note.text)
}

fn suspending_text(stay_stopped: bool, reason: SuspendReason) -> String {
    let then = if stay_stopped { "and staying stopped" } else { "to continue later" };
    let again = match reason {
        SuspendReason::Signal(2) => {
            "; Ctrl-C again stops at once and loses what came after the last checkpoint"
        }
        _ => "",
    };
    format!("{reason}: checkpointing at the next step boundary {then}{again}")
}

fn late_text(ranks: &[(Rank, Step, String)], waited: Duration) -> String {
    let who: Vec<String> = ranks
        .iter()
        .map(|(rank, step, operation)| match operation.as_str() {
            "" => format!("rank {rank} (after step {step})"),
            doing => format!("rank {rank} (after step {step}, {doing})"),
        })
        .collect();
    let waited = duration_text(waited.as_secs_f64());
    format!("warning: {waited} after the request not at a step boundary: {}", who.join(", "))
}

#[cfg(test)]
mod tests;
