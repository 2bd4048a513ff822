//! Reads the logs of ranks for the scheduler: from an offset, over the holes of shortened logs, and on while the rank
//! writes.
//!
//! Every reader has a thread of its own, since a network disk may keep one for ever; its place is free again when the
//! thread has ended. So readers that are stuck cost other readers their places, and nothing else: not the daemon's loop,
//! not the start of a job, not the daemon's end.

use super::attempts::run_attempt;
use crate::run_file::{self, For};
use crate::shim::log_name;
use lampyris_proto::Rank;
use lampyris_proto::v1::{LogChunk, ReadLog};
use rustix::fs::{SeekFrom, seek};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes of one message.
const CHUNK_BYTES: usize = 64 << 10;

/// Logs that are read at once; a person follows a few.
const READER_LIMIT: usize = 64;

/// Between two looks at a log that is followed; a file has nothing to wait on that works on every file system.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

/// The logs that are being read, each with its reader's wish, which the reader's thread holds too.
#[derive(Debug, Default)]
pub(super) struct Readers {
    open: Vec<(u64, Arc<Wish>)>,
}

/// What a reader is to do when it reaches the end.
#[derive(Debug)]
struct Wish {
    now: Mutex<AtEnd>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Follow,
    End,
    Stop,
}

impl Wish {
    fn now(&self) -> AtEnd {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl Fn(AtEnd) -> AtEnd) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = change(*now);
        self.changed.notify_all();
    }

    /// Waits until it is another one than `seen`, or until the next look is due.
    fn wait(&self, seen: AtEnd) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(now, FOLLOW_PERIOD, |now| *now == seen);
        drop(waited);
    }
}

impl Readers {
    /// Begins to read. `running`: whether more may be written.
    pub(super) fn open(&mut self, asked: ReadLog, running: bool, chunks: mpsc::Sender<LogChunk>) {
        // A thread that has ended holds its wish no more.
        self.open.retain(|(_, wish)| Arc::strong_count(wish) > 1);
        let id = asked.id;
        if self.open.len() >= READER_LIMIT {
            let what = format!("{READER_LIMIT} logs of this node are being read already");
            chunks.try_send(refusal(id, what)).ok();
            return;
        }
        let at_end = if asked.follow && running { AtEnd::Follow } else { AtEnd::End };
        let wish = Arc::new(Wish { now: Mutex::new(at_end), changed: Condvar::new() });
        let (own, out) = (Arc::clone(&wish), chunks.clone());
        let reader = move || read(&asked, &own, &out);
        match thread::Builder::new().name("log reader".into()).spawn(reader) {
            Ok(_) => self.open.push((id, wish)),
            Err(error) => drop(chunks.try_send(refusal(id, format!("no thread to read: {error}")))),
        }
    }

    /// No more is wanted.
    pub(super) fn stop(&mut self, id: u64) {
        self.open.iter().filter(|(open, _)| *open == id).for_each(|(_, wish)| wish.stop());
    }

    /// Nobody is there any more who wanted any.
    pub(super) fn stop_all(&mut self) {
        self.open.iter().for_each(|(_, wish)| wish.stop());
    }

    /// An attempt has ended: whoever follows reads to the end. Readers of other attempts would notice theirs later.
    pub(super) fn attempt_ended(&self) {
        for (_, wish) in &self.open {
            wish.change(|now| if now == AtEnd::Follow { AtEnd::End } else { now });
        }
    }
}

impl Wish {
    fn stop(&self) {
        self.change(|_| AtEnd::Stop);
    }
}

fn refusal(id: u64, error: String) -> LogChunk {
    LogChunk { id, end: true, error, ..Default::default() }
}

/// Reads to the end, or until it is told to stop.
fn read(asked: &ReadLog, wish: &Wish, chunks: &mpsc::Sender<LogChunk>) {
    if let Err(error) = read_all(asked, wish, chunks) {
        // Nobody reads when the daemon ends.
        chunks.blocking_send(refusal(asked.id, error)).ok();
    }
}

fn read_all(asked: &ReadLog, wish: &Wish, chunks: &mpsc::Sender<LogChunk>) -> Result<(), String> {
    let run = asked.run.clone().unwrap_or_default();
    let name = log_name(Rank(asked.rank), run_attempt(&run, asked.attempt)?);
    let run_dir = PathBuf::from(run.run_dir);
    let mut offset = asked.offset;
    loop {
        // Looked at before reading: what was written before the end is then read.
        let now = wish.now();
        if now == AtEnd::Stop {
            return Ok(());
        }
        let (at, data) = match read_part(&run_dir, &name, offset) {
            Ok(part) => part,
            // A rank that has not begun to write.
            Err(error) if error.kind() == ErrorKind::NotFound && now == AtEnd::Follow => {
                (0, Vec::new())
            }
            Err(error) => {
                return Err(format!("cannot read {}: {error}", run_dir.join(name).display()));
            }
        };
        let at_end = data.is_empty();
        let end = at_end && now == AtEnd::End;
        if at_end && !end {
            wish.wait(now);
            continue;
        }
        offset = at.saturating_add(data.len() as u64).try_into().unwrap_or(i64::MAX);
        let chunk = LogChunk { id: asked.id, offset: at, data, end, error: String::new() };
        if chunks.blocking_send(chunk).is_err() || end {
            return Ok(());
        }
    }
}

/// At most a chunk from `offset` (negative: from the end), and where it begins: after a hole, if `offset` is in one.
fn read_part(run_dir: &Path, name: &str, offset: i64) -> io::Result<(u64, Vec<u8>)> {
    let file = run_file::open(run_dir, name, For::Reading)?;
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
    use lampyris_proto::Attempt;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs::File;
    use std::io::Write;

    fn log_path(run_dir: &Path) -> PathBuf {
        run_dir.join(log_name(Rank(0), Attempt(3)))
    }

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
        let mut file = File::create(log_path(dir.path())).unwrap();
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
        let file = File::create(log_path(dir.path())).unwrap();
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

    #[tokio::test]
    async fn a_pipe_or_a_link_in_place_of_a_log_is_refused_and_frees_its_reader() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let mut readers = Readers::default();
        let (sender, mut chunks) = mpsc::channel(4);
        let log = log_path(dir.path());
        mknodat(CWD, &log, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for _ in 0..2 * READER_LIMIT {
            readers.open(asked(dir.path(), 0, false), false, sender.clone());
            let chunk = chunks.recv().await.unwrap();
            assert!(chunk.end && chunk.error.contains("no regular file"), "{chunk:?}");
        }
        std::fs::remove_file(&log).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &log).unwrap();
        readers.open(asked(dir.path(), 0, true), true, sender);
        let chunk = chunks.recv().await.unwrap();
        assert!(chunk.end && chunk.data.is_empty() && chunk.error.contains("link"), "{chunk:?}");
    }

    /// Whoever is stuck or slow keeps its place, and only that.
    #[tokio::test]
    async fn places_are_bounded_and_free_again_when_readers_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut readers = Readers::default();
        let (sender, mut chunks) = mpsc::channel(4);
        for id in 0..READER_LIMIT as u64 {
            readers.open(ReadLog { id, ..asked(dir.path(), 0, true) }, true, sender.clone());
        }
        readers.open(asked(dir.path(), 0, false), false, sender.clone());
        let chunk = chunks.recv().await.unwrap();
        assert!(chunk.error.contains("64 logs of this node are being read"), "{chunk:?}");
        readers.stop_all();
        drop(sender);
        // All threads have ended once nobody can send any more.
        assert_eq!(chunks.recv().await, None);
        let (sender, mut chunks) = mpsc::channel(4);
        readers.open(asked(dir.path(), 0, false), false, sender);
        assert!(chunks.recv().await.unwrap().error.contains("cannot read"));
    }

    #[tokio::test]
    async fn an_attempt_beyond_all_numbers_is_an_error_in_words() {
        let (sender, mut chunks) = mpsc::channel(4);
        let run = lampyris_proto::v1::RunSpec { attempt_base: u64::MAX, ..Default::default() };
        let asked = ReadLog { run: Some(run), attempt: 1, ..Default::default() };
        Readers::default().open(asked, false, sender);
        assert!(chunks.recv().await.unwrap().error.contains("more than can be counted"));
    }
}
