//! Logs: of a rank as it is into a file or a pipe and escaped on a terminal, and of daemons, one line per event.

use lampyris_plan::visible::{self, Stream};
use std::io::{self, IsTerminal, Write};

/// Where `lampyris logs` writes.
pub(crate) struct LogOutput {
    /// On a terminal.
    shown: Option<Stream>,
    out: io::Stdout,
}

impl LogOutput {
    pub(crate) fn stdout() -> LogOutput {
        let out = io::stdout();
        LogOutput { shown: out.is_terminal().then(Stream::default), out }
    }

    /// Writes a piece; false when the reader wants no more.
    pub(crate) fn piece(&mut self, piece: &[u8]) -> bool {
        let shown = self.shown.as_mut().map(|stream| stream.push(piece));
        self.write(shown.as_ref().map_or(piece, |text| text.as_bytes()))
    }

    /// Writes what is left of a character that was cut off.
    pub(crate) fn finish(&mut self) {
        if let Some(rest) = self.shown.as_mut().map(Stream::finish) {
            self.write(rest.as_bytes());
        }
    }

    fn write(&mut self, bytes: &[u8]) -> bool {
        self.out.write_all(bytes).and_then(|()| self.out.flush()).is_ok()
    }
}

/// Where the events of a daemon go: each is one line of stderr, whatever values it has.
#[derive(Debug, Default)]
pub(crate) struct DaemonLog;

impl Write for DaemonLog {
    /// Takes one whole event, as `tracing_subscriber` writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(event_line(event).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn event_line(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    format!("{}\n", visible::line(text.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let line = event_line("INFO registered node=\"a\nINFO all is well\u{1b}[2J\"\n".as_bytes());
        assert_eq!(line, "INFO registered node=\"a\\nINFO all is well\\u{1b}[2J\"\n");
    }
}
