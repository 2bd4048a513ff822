//! Reads the logs of ranks for the scheduler: from an offset, over the holes of shortened logs, and on while the rank
//! writes.

use crate::host::log_path;
use lampyris_proto::v1::{LogChunk, ReadLog};
use rustix::fs::{SeekFrom, seek};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// Bytes of one message.
const CHUNK_BYTES: usize = 64 << 10;

/// Logs that are read at once; a person follows a few.
const READER_LIMIT: usize = 64;

/// Between two looks at a log that is followed; a file has nothing to wait on that works on every file system.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

/// The logs that are being read.
#[derive(Debug, Default)]
pub(super) struct Readers {
    open: BTreeMap<u64, watch::Sender<Wish>>,
}

/// What a reader is to do when it reaches the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Follow,
    End,
    Stop,
}

impl Readers {
    /// Begins to read. `running`: whether more may be written.
    pub(super) fn open(&mut self, asked: ReadLog, running: bool, chunks: mpsc::Sender<LogChunk>) {
        self.open.retain(|_, wish| !wish.is_closed());
        if self.open.len() >= READER_LIMIT {
            let error = format!("{READER_LIMIT} logs of this node are being read already");
            chunks.try_send(LogChunk { id: asked.id, end: true, error, ..Default::default() }).ok();
            return;
        }
        let wish = if asked.follow && running { Wish::Follow } else { Wish::End };
        let (sender, receiver) = watch::channel(wish);
        self.open.insert(asked.id, sender);
        tokio::spawn(read(asked, receiver, chunks));
    }

    /// No more is wanted.
    pub(super) fn stop(&mut self, id: u64) {
        if let Some(wish) = self.open.remove(&id) {
            wish.send(Wish::Stop).ok();
        }
    }

    /// An attempt has ended: whoever follows reads to the end. Readers of other attempts would notice theirs later.
    pub(super) fn attempt_ended(&self) {
        for wish in self.open.values() {
            wish.send_if_modified(|wish| {
                let follows = *wish == Wish::Follow;
                *wish = if follows { Wish::End } else { *wish };
                follows
            });
        }
    }
}

async fn read(asked: ReadLog, mut wish: watch::Receiver<Wish>, chunks: mpsc::Sender<LogChunk>) {
    let run = asked.run.unwrap_or_default();
    let attempt = run.attempt_base + asked.attempt;
    let path = log_path(Path::new(&run.run_dir), asked.rank, attempt);
    let mut offset = asked.offset;
    loop {
        // Looked at before reading: what was written before the end is then read.
        let now = *wish.borrow_and_update();
        if now == Wish::Stop {
            return;
        }
        let from = path.clone();
        let part = tokio::task::spawn_blocking(move || read_part(&from, offset)).await;
        let part = part.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (at, data) = match part {
            Ok(part) => part,
            // A rank that has not begun to write.
            Err(error) if error.kind() == ErrorKind::NotFound && now == Wish::Follow => {
                (0, Vec::new())
            }
            Err(error) => {
                let error = format!("cannot read {}: {error}", path.display());
                let chunk = LogChunk { id: asked.id, end: true, error, ..Default::default() };
                chunks.send(chunk).await.ok();
                return;
            }
        };
        let at_end = data.is_empty();
        let end = at_end && now == Wish::End;
        if at_end && !end {
            // Either the next look is due or the wish has changed.
            tokio::select! {
                () = sleep(FOLLOW_PERIOD) => {}
                changed = wish.changed() => if changed.is_err() { return },
            }
            continue;
        }
        offset = (at + data.len() as u64).try_into().unwrap_or(i64::MAX);
        let chunk = LogChunk { id: asked.id, offset: at, data, end, error: String::new() };
        if chunks.send(chunk).await.is_err() || end {
            return;
        }
    }
}

/// At most a chunk from `offset` (negative: from the end), and where it begins: after a hole, if `offset` is in one.
fn read_part(path: &PathBuf, offset: i64) -> io::Result<(u64, Vec<u8>)> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let wanted = match u64::try_from(offset) {
        Ok(offset) => offset.min(length),
        Err(_) => length.saturating_sub(offset.unsigned_abs()),
    };
    let at = match seek(&file, SeekFrom::Data(wanted)) {
        Ok(at) => at,
        // At the end, or a file system that knows no holes.
        Err(_) => seek(&file, SeekFrom::Start(wanted))?,
    };
    let mut data = Vec::new();
    file.take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
    Ok((at, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn asked(run_dir: &Path, offset: i64, follow: bool) -> ReadLog {
        let run_dir = run_dir.to_str().unwrap().into();
        let run =
            Some(lampyris_proto::v1::RunSpec { run_dir, attempt_base: 2, ..Default::default() });
        ReadLog { id: 7, run, job: 1, attempt: 1, rank: 0, offset, follow }
    }

    #[tokio::test]
    async fn a_log_is_followed_to_its_end_and_a_hole_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let mut readers = Readers::default();
        let (sender, mut chunks) = mpsc::channel(4);
        readers.open(asked(dir.path(), 0, true), true, sender.clone());
        let mut file = File::create(log_path(dir.path(), 0, 3)).unwrap();
        file.write_all(b"one\n").unwrap();
        let first = chunks.recv().await.unwrap();
        assert_eq!((first.id, first.offset, &first.data[..]), (7, 0, &b"one\n"[..]));
        file.write_all(b"two\n").unwrap();
        readers.attempt_ended();
        let second = chunks.recv().await.unwrap();
        assert_eq!((second.offset, &second.data[..], second.end), (4, &b"two\n"[..], false));
        assert!(chunks.recv().await.unwrap().end);
        readers.open(asked(dir.path(), -4, false), false, sender.clone());
        assert_eq!(chunks.recv().await.unwrap().offset, 4);
        assert!(chunks.recv().await.unwrap().end);
        // A hole of 1 MiB at the beginning.
        let file = File::create(log_path(dir.path(), 0, 3)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"late", 1 << 20).unwrap();
        readers.open(asked(dir.path(), 0, false), false, sender);
        let late = chunks.recv().await.unwrap();
        assert!(late.data.ends_with(b"late") && late.offset >= (1 << 20) - 4096, "{late:?}");
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_an_error_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, mut chunks) = mpsc::channel(4);
        Readers::default().open(asked(dir.path(), 0, false), false, sender);
        let chunk = chunks.recv().await.unwrap();
        assert!(chunk.end && chunk.error.contains("rank-0.attempt-3.log"), "{chunk:?}");
    }
}
