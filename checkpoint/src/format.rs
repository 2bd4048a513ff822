//! Format 1 on disk: names of files and the three JSON texts. docs/checkpoints.md describes it for people.
//!
//! A checkpoint is a folder `step-N.attempt-A` with one `rank-R.data` and one `rank-R.index.json` per rank and one
//! `manifest.json`. Checksums form a chain: the manifest is sealed by its own, names the checksum of every index, and an
//! index names the checksum of every chunk of its data.

use crate::error::{Error, Result};
use crate::tensors::{Kind, TensorEntry};
use lampyris_plan::{Attempt, Rank, Step};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use xxhash_rust::xxh3::xxh3_64;

/// The format this crate writes.
pub const FORMAT: u32 = 1;
/// Default size of a chunk: the unit of checksums, of parallel transfers, and of what is read to get one value.
pub const CHUNK_BYTES: usize = 4 << 20;
/// Largest chunk that is read: it has to fit into memory once per thread.
pub(crate) const MAX_CHUNK_BYTES: usize = 1 << 30;
/// Largest manifest or index that is written, read or sent. An index takes about 20 bytes per chunk and 120 per piece: this
/// is enough for 200 TB of data in one file.
pub(crate) const MAX_JSON_BYTES: u64 = 1 << 30;
/// Pieces begin at multiples of this many bytes, so that no element straddles a chunk.
pub(crate) const PIECE_ALIGN_BYTES: u64 = 64;

pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// Which checkpoint of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CheckpointId {
    /// Optimizer steps completed.
    pub step: Step,
    /// The attempt that wrote it.
    pub attempt: Attempt,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step-{}.attempt-{}", self.step, self.attempt)
    }
}

impl FromStr for CheckpointId {
    type Err = ();

    fn from_str(name: &str) -> std::result::Result<CheckpointId, ()> {
        let (step, attempt) =
            name.strip_prefix("step-").ok_or(())?.split_once(".attempt-").ok_or(())?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| ());
        let id = CheckpointId { step: Step(number(step)?), attempt: Attempt(number(attempt)?) };
        // `step-007` or `step-+7` is not a name we write.
        if id.to_string() == name { Ok(id) } else { Err(()) }
    }
}

/// Data file of a rank.
pub(crate) fn data_file(rank: Rank) -> String {
    format!("rank-{:05}.data", rank.0)
}

/// Index file of a rank.
pub(crate) fn index_file(rank: Rank) -> String {
    format!("rank-{:05}.index.json", rank.0)
}

/// What a checkpoint says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Step and attempt.
    #[serde(flatten)]
    pub id: CheckpointId,
    /// The checkpoint from which the attempt began; none for a fresh start.
    pub parent: Option<CheckpointId>,
    /// Seconds since 1970 when it was written.
    pub saved_unix_s: u64,
    /// Digests of the recipe.
    pub digests: Digests,
    /// What else may change bits: CPU or GPU model, libtorch, threads per rank.
    pub fingerprint: BTreeMap<String, String>,
    /// Validation loss, if it was measured at this step.
    pub validation_loss: Option<f64>,
    /// Small state of the trainer: samples consumed, tokens, schedule.
    pub state: BTreeMap<String, Value>,
    /// Number of ranks that wrote it. Reading does not depend on it.
    pub world: usize,
    /// All tensors.
    pub tensors: Vec<TensorEntry>,
    /// One entry per rank.
    pub shards: Vec<ShardEntry>,
}

/// Digests of the recipe (`plan`): what may change a bit, and everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// Of every value that may change a bit in canonical mode.
    pub numerics: String,
    /// Of everything.
    pub plan: String,
}

/// The files of one rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// The rank.
    pub rank: Rank,
    /// Length of its data file.
    pub data_bytes: u64,
    /// Length of its index file.
    pub index_bytes: u64,
    /// Checksum of its index file.
    pub index_xxh3: Checksum,
}

/// Where the pieces of a data file lie, and the checksums of its chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// Size of every chunk but the last.
    pub chunk_bytes: usize,
    /// Checksum of each chunk.
    pub chunks: Vec<Checksum>,
    /// Pieces by rising offset.
    pub pieces: Vec<PieceEntry>,
}

/// One contiguous run of elements of a tensor in a data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceEntry {
    /// Hugging Face name.
    pub tensor: String,
    /// What the values are.
    pub kind: Kind,
    /// First element in the whole tensor.
    pub start: u64,
    /// Number of elements.
    pub len: u64,
    /// First byte in the data file.
    pub offset: u64,
}

impl PieceEntry {
    /// First byte after the piece.
    pub(crate) fn end_offset(&self) -> u64 {
        self.offset + self.len * 4
    }
}

/// XXH3-64, written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksum(pub u64);

impl Checksum {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum(xxh3_64(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Checksum {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Checksum, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        Ok(Checksum(value))
    }
}

/// A JSON text beside its own checksum.
#[derive(Serialize, Deserialize)]
struct Sealed {
    xxh3: Checksum,
    body: Box<RawValue>,
}

/// Writes a manifest; `body` is kept to the letter, so the checksum holds whatever a later version adds.
pub(crate) fn seal(manifest: &Manifest) -> Result<Vec<u8>> {
    let write = || -> serde_json::Result<Vec<u8>> {
        let body = serde_json::value::to_raw_value(manifest)?;
        let sealed = Sealed { xxh3: Checksum::of(body.get().as_bytes()), body };
        serde_json::to_vec(&sealed)
    };
    let text = write().map_err(|e| Error::Incomplete {
        problem: format!("the manifest has no JSON form: {e}"),
    })?;
    check_length(&text).map(|()| text)
}

/// Refuses to write a manifest or an index that no reader would take.
pub(crate) fn check_length(text: &[u8]) -> Result<()> {
    if text.len() as u64 <= MAX_JSON_BYTES {
        return Ok(());
    }
    let problem = format!(
        "a list of its tensors or pieces has {} bytes, at most {MAX_JSON_BYTES} can be read; use more ranks",
        text.len()
    );
    Err(Error::Incomplete { problem })
}

/// Reads a manifest back. The errors are [`Error::Corrupt`] and [`Error::NewerFormat`].
pub(crate) fn unseal(dir: &Path, bytes: &[u8]) -> Result<Manifest> {
    unseal_as(dir, MANIFEST_FILE, bytes)
}

/// The same of a file with another name.
pub(crate) fn unseal_as(dir: &Path, file: &str, bytes: &[u8]) -> Result<Manifest> {
    let corrupt = |problem: String| Error::corrupt(dir, file, problem);
    let sealed: Sealed = parse(dir, file, bytes)?;
    let body = sealed.body.get().as_bytes();
    let found = Checksum::of(body);
    if found != sealed.xxh3 {
        return Err(corrupt(format!("its checksum is {found}, {} was written", sealed.xxh3)));
    }
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = parse(dir, file, body)?;
    if version.format != FORMAT {
        return Err(Error::NewerFormat { dir: dir.to_path_buf(), found: version.format });
    }
    parse(dir, file, body)
}

/// Parses a JSON text of checkpoint `dir`; anything unexpected in it is corruption.
pub(crate) fn parse<T: DeserializeOwned>(dir: &Path, file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::corrupt(dir, file, e.to_string()))
}
