//! A progress bar on stderr whose texts are escaped like all others; without a terminal it draws nothing.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lampyris_plan::visible;

/// The bar of a view.
pub(super) struct Bar {
    bar: ProgressBar,
    terminal: bool,
}

impl Bar {
    /// Drawn if stderr is a `terminal`; `style` is a template of indicatif.
    pub(super) fn new(terminal: bool, total: Option<u64>, style: &str) -> Bar {
        let target =
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = Bar { bar: ProgressBar::with_draw_target(total, target), terminal };
        bar.set_style(style);
        bar
    }

    pub(super) fn set_style(&self, style: &str) {
        let style = ProgressStyle::with_template(style).expect("templates are fixed");
        self.bar.set_style(style);
    }

    pub(super) fn set_message(&self, text: &str) {
        self.bar.set_message(visible::line(text).into_owned());
    }

    /// Where it stands and where its end is.
    pub(super) fn set(&self, position: u64, length: u64) {
        self.bar.set_length(length);
        self.bar.set_position(position);
    }

    pub(super) fn tick(&self) {
        if self.terminal {
            self.bar.tick();
        }
    }

    /// A line above the bar, or of its own where there is none.
    pub(super) fn line(&self, text: &str) {
        if self.terminal {
            self.bar.println(visible::block(&super::indented(text)));
        } else {
            super::note(text);
        }
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
