//! TensorBoard event files: TFRecords of `tensorflow.Event`, scalars only.

use prost::Message;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// `tensorflow.Event`, the fields used here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

/// `tensorflow.SessionLog`.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.START`: readers drop what earlier files hold of this step and later ones.
const START: i32 = 1;

/// What every name of an event file begins with.
const PREFIX: &str = "events.out.tfevents.";

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `tensorflow.Summary.Value` with a simple value.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// An open event file.
#[derive(Debug)]
pub(crate) struct EventFile(File);

impl EventFile {
    /// The file of an attempt; of one that goes on, from `next_step`.
    pub(crate) fn create(
        dir: &Path,
        attempt: u64,
        next_step: Option<u64>,
    ) -> io::Result<EventFile> {
        fs::create_dir_all(dir)?;
        // TensorBoard reads files in the order of their names: by time, also where the clock was set back.
        let started = (now() as u64).max(newest(dir)? + 1);
        let path = dir.join(format!("{PREFIX}{started}.attempt-{attempt}"));
        let mut file = EventFile(File::create_new(path)?);
        let version = Some("brain.Event:2".to_string());
        file.event(Event { file_version: version, ..Event::now(0) })?;
        if let Some(step) = next_step {
            let session_log = Some(SessionLog { status: START });
            file.event(Event { session_log, ..Event::now(step) })?;
        }
        Ok(file)
    }

    pub(crate) fn scalars(&mut self, step: u64, scalars: &[(String, f32)]) -> io::Result<()> {
        let value =
            |(tag, value): &(String, f32)| Scalar { tag: tag.clone(), simple_value: *value };
        let summary = Summary { value: scalars.iter().map(value).collect() };
        self.event(Event { summary: Some(summary), ..Event::now(step) })
    }

    /// One TFRecord: length, its checksum, data, its checksum.
    fn event(&mut self, event: Event) -> io::Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(&data);
        record.extend(masked(&data).to_le_bytes());
        self.0.write_all(&record)
    }
}

impl Event {
    /// One of `step`, without contents.
    fn now(step: u64) -> Event {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        Event { wall_time: now(), step, ..Event::default() }
    }
}

/// Seconds since 1970 in the newest name of an event file; 0 if there is none.
fn newest(dir: &Path) -> io::Result<u64> {
    let mut newest = 0;
    for entry in fs::read_dir(dir)? {
        let file = entry?.file_name();
        let rest = file.to_str().and_then(|file| file.strip_prefix(PREFIX));
        let seconds = rest.and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        newest = newest.max(seconds.map_or(0, u64::from));
    }
    Ok(newest)
}

/// The masked CRC-32C of the TFRecord format.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_as_the_format_says() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut file = EventFile::create(dir.path(), 3, Some(7)).expect("creates");
        file.scalars(7, &[("loss".into(), 2.5)]).expect("writes");
        let events = read(dir.path(), 3);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let start = events[1].session_log.as_ref().map(|log| log.status);
        assert_eq!((events[1].step, start), (7, Some(START)));
        let summary = events[2].summary.as_ref().expect("scalars");
        assert_eq!((events[2].step, summary.value[0].simple_value), (7, 2.5));
        let first = tempfile::tempdir().expect("a temporary folder");
        EventFile::create(first.path(), 1, None).expect("creates");
        assert_eq!(read(first.path(), 1).len(), 1);
    }

    #[test]
    fn names_are_in_the_order_of_attempts_whatever_the_clock_says() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let later = now() as u64 + 100_000;
        fs::write(dir.path().join(format!("{PREFIX}{later}.attempt-1")), "").expect("writes");
        for attempt in [2, 10] {
            EventFile::create(dir.path(), attempt, None).expect("creates");
        }
        let entries = fs::read_dir(dir.path()).expect("lists");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("entry").file_name().into_string()).collect();
        names.sort();
        let attempt = |name: &Result<String, _>| {
            name.as_ref().expect("UTF-8").rsplit('-').next().map(String::from)
        };
        let attempts: Vec<_> = names.iter().filter_map(attempt).collect();
        assert_eq!(attempts, ["1", "2", "10"]);
    }

    /// The events of the file of an attempt.
    fn read(dir: &Path, attempt: u64) -> Vec<Event> {
        let suffix = format!(".attempt-{attempt}");
        let mut paths = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
        let path = paths.find(|path| path.to_string_lossy().ends_with(&suffix)).expect("one");
        let bytes = fs::read(path).expect("reads");
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().expect("8")) as usize;
            assert_eq!(masked(&rest[..8]).to_le_bytes(), rest[8..12]);
            let data = &rest[12..12 + length];
            assert_eq!(masked(data).to_le_bytes(), rest[12 + length..16 + length]);
            events.push(Event::decode(data).expect("decodes"));
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn the_mask_is_the_published_one() {
        // CRC-32C("123456789") = 0xe3069283 (RFC 3720); masked as TFRecord says.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
