//! Everything a person sees: results on stdout, progress and errors on stderr. Nothing depends on colour.
//!
//! Names, paths, reasons and texts that were not written here come from recipes, other machines and models. What a
//! terminal would obey in them is escaped at the last place before it: [`say`], [`note`], [`error()`] and [`Bar`] let no
//! control character through but the line breaks of a layout. So that a name with a line break cannot forge a line of
//! that layout, tables, fields and lists take their values through [`visible::line`].

mod attached;
mod bar;
pub(crate) mod checkpoints;
mod data_progress;
pub(crate) mod jobs;
mod ledger;
mod log;
mod ranks;
mod report;
mod table;
mod training;

pub(crate) use attached::AttachedView;
use bar::Bar;
pub(crate) use data_progress::DataProgress;
pub(crate) use ledger::ledger;
pub(crate) use log::{DaemonLog, LogOutput};
pub(crate) use ranks::ranks;
pub(crate) use report::report;
pub(crate) use training::TrainingView;

use crate::error::CliError;
use lampyris_plan::digest::Change;
use lampyris_plan::visible;
use lampyris_recipes::RecipeError;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// A result: one line (or several) on stdout.
pub(crate) fn say(text: impl fmt::Display) {
    write_out(&visible::block(&text.to_string()));
}

/// A result that a program reads, such as a script or JSON laid out over lines: tabs stay as well.
pub(crate) fn say_source(text: impl fmt::Display) {
    write_out(&visible::prose(&text.to_string()));
}

/// A result as one line of JSON.
pub(crate) fn json(value: &impl serde::Serialize) {
    say_json(&serde_json::to_string(value).expect("plain data becomes JSON"));
}

/// The same over several lines.
pub(crate) fn json_lines(value: &impl serde::Serialize) {
    say_json(&serde_json::to_string_pretty(value).expect("plain data with string keys"));
}

/// A result that is JSON already.
pub(crate) fn say_json(text: &str) {
    write_out(&visible::json(text));
}

/// A reader that has closed the pipe wants no more.
fn write_out(text: &str) {
    writeln!(std::io::stdout(), "{text}").ok();
}

/// Whether stderr is a terminal, on which progress is a bar.
pub(crate) fn has_terminal() -> bool {
    std::io::stderr().is_terminal()
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

/// Something on the way: one line on stderr. Further lines are indented, so that none looks like another message.
pub(crate) fn note(text: impl fmt::Display) {
    write_err(&indented(&text.to_string()));
}

fn write_err(text: &str) {
    // In one piece: srun labels what arrives together as one line.
    std::io::stderr().write_all(format!("{}\n", visible::block(text)).as_bytes()).ok();
}

/// The text with every line but the first indented.
fn indented(text: &str) -> String {
    let mut lines = text.split('\n');
    let mut out = lines.next().unwrap_or_default().to_string();
    for line in lines {
        let blanks = if line.is_empty() || line.starts_with(' ') { "" } else { "  " };
        out.push_str(&format!("\n{blanks}{line}"));
    }
    out
}

/// What the parser of the command line has instead of a command: help, or an error in its own layout.
pub(crate) fn usage(ended: &clap::Error) -> ExitCode {
    if ended.use_stderr() {
        write_err(ended.render().to_string().trim_end());
    } else {
        ended.print().ok();
    }
    ExitCode::from(u8::try_from(ended.exit_code()).unwrap_or(2))
}

/// A path as a word of a command that a person is told to type.
pub(crate) fn word(path: &Path) -> String {
    visible::shell_word(&path.to_string_lossy())
}

/// Changed values of a plan, each on its own line, after a colon.
pub(crate) fn changes(changes: &[Change]) -> String {
    let none = || "none".to_string();
    let line = |change: &Change| {
        let before = change.before.clone().unwrap_or_else(none);
        let after = change.after.clone().unwrap_or_else(none);
        let text = format!("{}: {before} -> {after}", change.key);
        format!("\n  {}", visible::line(&text))
    };
    format!(":{}", changes.iter().map(line).collect::<String>())
}

/// Why the program ends: `error:`, `hint:`, and the end of the log if a rank failed.
pub(crate) fn error(error: &CliError) {
    write_err(&error_text(error));
}

fn error_text(error: &CliError) -> String {
    // Problems of a recipe come with their own layout, heading included.
    let mut text = match error {
        CliError::Recipe(RecipeError::Invalid { .. }) => error.to_string(),
        _ => indented(&format!("error: {}", with_causes(error))),
    };
    let hint = error.hint();
    if !hint.is_empty() {
        text.push_str(&format!("\n{}", indented(&format!("hint: {hint}"))));
    }
    if let CliError::Rank { failure, .. } = error {
        text.push_str(&format!("\nlog: {}", visible::line(&failure.log.to_string_lossy())));
        for line in &failure.log_tail {
            text.push_str(&format!("\n  | {}", visible::line(line)));
        }
    }
    text
}

/// The error and its causes, but for those whose words it has already.
fn with_causes(error: &CliError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(&format!(": {words}"));
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
