//! The data step: a bar per phase on a terminal, one line per phase elsewhere.

use super::note;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lampyris_data::{Notice, Phase, Progress};
use std::cell::RefCell;

/// Draws the progress of `lampyris_data::prepare`.
pub(crate) struct DataProgress {
    shown: RefCell<Option<(Phase, ProgressBar)>>,
    terminal: bool,
}

impl DataProgress {
    /// Bars if stderr is a `terminal`.
    pub(crate) fn new(terminal: bool) -> DataProgress {
        DataProgress { shown: RefCell::new(None), terminal }
    }

    /// Removes the last bar.
    pub(crate) fn finish(&self) {
        if let Some((_, bar)) = self.shown.take() {
            bar.finish_and_clear();
        }
    }

    fn start(&self, phase: Phase, total: u64) {
        self.finish();
        if !self.terminal {
            note(format_args!("{} ({})", words(phase), HumanBytes(total)));
        }
        let target =
            if self.terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = "{msg:24} {bar:30} {bytes}/{total_bytes}  {elapsed}";
        let style = ProgressStyle::with_template(style).expect("the template is fixed");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        bar.set_message(words(phase));
        self.shown.replace(Some((phase, bar)));
    }
}

impl Progress for DataProgress {
    fn update(&self, phase: Phase, done: u64, total: u64) {
        if self.shown.borrow().as_ref().is_none_or(|(shown, _)| *shown != phase) {
            self.start(phase, total);
        }
        if let Some((_, bar)) = &*self.shown.borrow() {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn notice(&self, notice: Notice) {
        let text = match notice {
            Notice::CorruptCache { path, what } => {
                format!("{} {what}: preparing this data again", path.display())
            }
            Notice::Waiting => "another process prepares the same data: waiting for it".into(),
        };
        match &*self.shown.borrow() {
            Some((_, bar)) if self.terminal => bar.println(text),
            _ => note(text),
        }
    }
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Verify => "checking prepared data",
        Phase::Scan => "reading text",
        Phase::TrainTokenizer => "training the tokenizer",
        Phase::Tokenize => "tokenizing",
    }
}
