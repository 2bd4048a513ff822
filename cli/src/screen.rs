//! Everything a person sees: results on stdout, progress and errors on stderr. Nothing depends on colour.

mod attached;
pub(crate) mod checkpoints;
mod data_progress;
pub(crate) mod jobs;
mod ledger;
mod ranks;
mod report;
mod table;
mod training;

pub(crate) use attached::AttachedView;
pub(crate) use data_progress::DataProgress;
pub(crate) use ledger::ledger;
pub(crate) use ranks::ranks;
pub(crate) use report::report;
pub(crate) use training::TrainingView;

use crate::error::CliError;
use lampyris_plan::digest::Change;
use lampyris_recipes::RecipeError;
use std::fmt;
use std::io::{IsTerminal, Write};

/// A result: one line (or several) on stdout. A reader that has closed the pipe wants no more.
pub(crate) fn say(text: impl fmt::Display) {
    writeln!(std::io::stdout(), "{text}").ok();
}

/// A result as one line of JSON.
pub(crate) fn json(value: &impl serde::Serialize) {
    say(serde_json::to_string(value).expect("plain data becomes JSON"));
}

/// What was done about a job, in words or as JSON.
pub(crate) fn done(as_json: bool, job: &str, said: &str) {
    match as_json {
        true => json(&serde_json::json!({ "job": job, "said": said })),
        false => say(said),
    }
}

/// Columns of the terminal, or of COLUMNS; unlimited where neither is known.
pub(crate) fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || {
        let (_, columns) = std::io::stdout().is_terminal().then(console_size)??;
        Some(usize::from(columns))
    };
    columns.or_else(terminal).unwrap_or(usize::MAX)
}

/// A result that is shown again and again: on a terminal in place of what is there.
pub(crate) fn again(text: impl fmt::Display) {
    if std::io::stdout().is_terminal() {
        // Home, and clear to the end of the screen.
        write!(std::io::stdout(), "\x1b[H\x1b[J").ok();
    }
    say(text);
}

/// Rows and columns of the terminal.
fn console_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Something on the way: one line on stderr.
pub(crate) fn note(text: impl fmt::Display) {
    // In one piece: srun labels what arrives together as one line.
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).ok();
}

/// Changed values of a plan, each on its own line, after a colon.
pub(crate) fn changes(changes: &[Change]) -> String {
    let none = || "none".to_string();
    let line = |change: &Change| {
        let before = change.before.clone().unwrap_or_else(none);
        let after = change.after.clone().unwrap_or_else(none);
        format!("\n  {}: {before} -> {after}", change.key)
    };
    format!(":{}", changes.iter().map(line).collect::<String>())
}

/// Why the program ends: `error:`, `hint:`, and the end of the log if a rank failed.
pub(crate) fn error(error: &CliError) {
    note(error_text(error));
}

fn error_text(error: &CliError) -> String {
    // Problems of a recipe come with their own layout, heading included.
    let heading = match error {
        CliError::Recipe(RecipeError::Invalid { .. }) => "",
        _ => "error: ",
    };
    let mut text = format!("{heading}{error}");
    let hint = error.hint();
    if !hint.is_empty() {
        text.push_str(&format!("\nhint: {hint}"));
    }
    if let CliError::Rank { failure, .. } = error {
        text.push_str(&format!("\nlog: {}", failure.log.display()));
        for line in &failure.log_tail {
            text.push_str(&format!("\n  | {line}"));
        }
    }
    text
}
