//! The data step: a bar per phase on a terminal, one line per phase elsewhere.

use super::{Bar, note};
use indicatif::HumanBytes;
use lampyris_data::{Counted, LeftOut, Notice, Phase, Progress};
use std::cell::RefCell;

/// Draws the progress of `lampyris_data::prepare`.
pub(crate) struct DataProgress {
    shown: RefCell<Option<(Phase, Bar)>>,
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
            bar.clear();
        }
    }

    fn start(&self, phase: Phase, total: u64) {
        self.finish();
        if !self.terminal {
            note(format_args!("{} ({})", words(phase), HumanBytes(total)));
        }
        let style = "{msg:24} {bar:30} {bytes}/{total_bytes}  {elapsed}";
        let bar = Bar::new(self.terminal, Some(total), style);
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
            bar.set(done, total);
        }
    }

    fn notice(&self, notice: Notice) {
        let text = said(&notice);
        match &*self.shown.borrow() {
            Some((_, bar)) => bar.line(&text),
            None => note(text),
        }
    }
}

fn said(notice: &Notice) -> String {
    match notice {
        Notice::CorruptCache { path, what } => {
            format!("{} {what}: preparing this data again", path.display())
        }
        Notice::Waiting => "another process prepares the same data: waiting for it".into(),
        Notice::LeftOut(LeftOut { hidden, repeated }) => {
            let about = |what: &str, counted: &Counted| {
                let Counted { count, first } = counted;
                (*count > 0).then(|| format!("{count} {what} (the first is {})", first.display()))
            };
            let hidden = about("hidden or backup files and folders", hidden);
            let repeated = about("further names of files already taken", repeated);
            let all: Vec<String> = [hidden, repeated].into_iter().flatten().collect();
            format!("left out of what data.sources matches: {}", all.join(", "))
        }
        Notice::Mended { lines, path, line } => format!(
            "{lines} lines spell half a surrogate pair, which is no character: read with U+FFFD there (the first is \
             {}:{line})",
            path.display()
        ),
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
