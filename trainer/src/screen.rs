//! What `lampyris-rank` prints. Names, paths and texts that were not written here are escaped at this last place before a
//! terminal: no control character gets through but line breaks.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's own output")]

use anyhow::Error;
use lampyris_plan::visible::{self, Stream};
use serde::Serialize;
use std::io::{IsTerminal, Result, Stdout, Write, stdout};
use std::process::ExitCode;

/// Lines on stdout.
pub fn say(text: &str) {
    println!("{}", visible::block(text.trim_end()));
}

/// One line of JSON on stdout.
///
/// # Errors
/// A value that is not JSON, such as a map whose keys are no strings.
pub fn json(value: &impl Serialize) -> serde_json::Result<()> {
    println!("{}", visible::json(&serde_json::to_string(value)?));
    Ok(())
}

/// Why the program ends, on stderr.
pub fn error(error: &Error) {
    eprintln!("error: {}", visible::block(&format!("{error:#}")));
}

/// What the parser of the command line has instead of a command: help, or an error in its own layout.
pub fn usage(ended: &clap::Error) -> ExitCode {
    if ended.use_stderr() {
        eprintln!("{}", visible::block(ended.render().to_string().trim_end()));
    } else {
        ended.print().ok();
    }
    ExitCode::from(u8::try_from(ended.exit_code()).unwrap_or(2))
}

/// Text of a model on stdout: as it is into a pipe or a file, escaped on a terminal.
#[derive(Debug)]
pub struct ModelText {
    out: Stdout,
    /// On a terminal.
    shown: Option<Stream>,
}

impl ModelText {
    /// On stdout.
    pub fn stdout() -> ModelText {
        let out = stdout();
        ModelText { shown: out.is_terminal().then(Stream::default), out }
    }
}

impl Write for ModelText {
    fn write(&mut self, piece: &[u8]) -> Result<usize> {
        match &mut self.shown {
            Some(stream) => self.out.write_all(stream.push(piece).as_bytes())?,
            None => self.out.write_all(piece)?,
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush()
    }
}
