//! A view of one job of the scheduler while a person waits for it: a bar on a terminal, else lines.

use super::training::duration_text;
use super::{Bar, note};
use crate::backend::Phase;
use crate::backend::scheduler::phase;
use indicatif::HumanCount;
use lampyris_proto::v1;
use std::time::{Duration, Instant};

/// Between plain lines of steps.
const LINE_PERIOD: Duration = Duration::from_secs(5);

/// Shows a job as it changes.
pub(crate) struct AttachedView {
    bar: Bar,
    terminal: bool,
    said: String,
    step: u64,
    evaluated: Option<f64>,
    last_line: Option<Instant>,
}

impl AttachedView {
    /// A bar if stderr is a `terminal`, else lines.
    pub(crate) fn new(terminal: bool) -> AttachedView {
        let bar = Bar::new(terminal, None, "{bar:14} {pos}/{len}  {wide_msg}");
        let (said, step, evaluated, last_line) = (String::new(), 0, None, None);
        AttachedView { bar, terminal, said, step, evaluated, last_line }
    }

    /// Shows the job as it is now.
    pub(crate) fn show(&mut self, job: &v1::Job, now: Instant) {
        let state = phase(job.state());
        let reason = job.reason.clone().unwrap_or_default().text;
        let standing = format!("job {} is {}: {reason}", job.id, state.as_str());
        if standing != self.said {
            self.bar.line(&standing);
            self.said = standing;
        }
        if matches!(state, Phase::Running | Phase::Succeeded)
            && let Some(progress) = &job.progress
        {
            self.progress(progress, now);
        }
        if state.is_final() {
            self.bar.clear();
        }
    }

    fn progress(&mut self, progress: &v1::Progress, now: Instant) {
        let Some(figures) = progress.figures else {
            let doing = progress.ranks.first().map(|rank| rank.operation.clone());
            return self.bar.set_message(&doing.unwrap_or_default());
        };
        self.bar.set(progress.step, progress.total_steps);
        let left = progress.total_steps.saturating_sub(progress.step) as f64 * figures.step_s;
        let text = format!(
            "loss {:.4}  {} tokens/s  eta {}",
            figures.loss,
            HumanCount(figures.tokens_per_s as u64),
            duration_text(left),
        );
        if figures.bits_per_byte != self.evaluated
            && let Some(bits) = figures.bits_per_byte
        {
            self.bar.line(&format!("step {}: validation {bits:.4} bits per byte", progress.step));
            self.evaluated = Some(bits);
        }
        let at_end = progress.step == progress.total_steps;
        let due = at_end || self.last_line.is_none_or(|last| now - last >= LINE_PERIOD);
        if !self.terminal && progress.step != self.step && due {
            note(format_args!("step {}/{}  {text}", progress.step, progress.total_steps));
            self.last_line = Some(now);
        }
        self.step = progress.step;
        self.bar.set_message(&text);
    }
}
