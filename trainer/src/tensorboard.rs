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
}

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
    pub(crate) fn create(dir: &Path, attempt: u64) -> io::Result<EventFile> {
        fs::create_dir_all(dir)?;
        let started = now();
        let name = format!("events.out.tfevents.{started:.0}.attempt-{attempt}");
        let mut file = EventFile(File::create(dir.join(name))?);
        let version = Some("brain.Event:2".to_string());
        file.event(Event { wall_time: started, step: 0, file_version: version, summary: None })?;
        Ok(file)
    }

    pub(crate) fn scalars(&mut self, step: u64, scalars: &[(String, f32)]) -> io::Result<()> {
        let value =
            |(tag, value): &(String, f32)| Scalar { tag: tag.clone(), simple_value: *value };
        let summary = Summary { value: scalars.iter().map(value).collect() };
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.event(Event { wall_time: now(), step, file_version: None, summary: Some(summary) })
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
        let mut file = EventFile::create(dir.path(), 3).expect("creates");
        file.scalars(7, &[("loss".into(), 2.5)]).expect("writes");
        let path = fs::read_dir(dir.path()).expect("lists").next().expect("one").expect("entry");
        let bytes = fs::read(path.path()).expect("reads");
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
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let summary = events[1].summary.as_ref().expect("scalars");
        assert_eq!((events[1].step, summary.value[0].simple_value), (7, 2.5));
    }

    #[test]
    fn the_mask_is_the_published_one() {
        // CRC-32C("123456789") = 0xe3069283 (RFC 3720); masked as TFRecord says.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
