//! What the manifest and the indexes of a checkpoint must agree on before any of its values is believed.
//!
//! A checksum says that a text is the one that was written, not that it makes sense: a program with a fault seals nonsense as
//! well. So the same rules are checked before a commit, whenever a checkpoint is opened, and by `verify`: pieces are aligned,
//! lie in their data file, do not overlap there, and cover each tensor exactly once; ranks are those of the world; chunks
//! have a sane size and there are as many as the file needs; what is kept of a tensor is what its optimizer keeps. All
//! arithmetic on numbers from disk is checked here, so that what comes later need not.

use crate::disk::ALIGN_BYTES;
use crate::format::{
    MANIFEST_FILE, MAX_CHUNK_BYTES, PIECE_ALIGN_BYTES, ShardEntry, ShardIndex, index_file,
};
use crate::tensors::{Kind, TensorEntry};
use std::collections::{BTreeSet, HashMap};

/// How much of a checkpoint there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The shards of all ranks: every element once.
    Whole,
    /// Those of some ranks, as in the memory of nodes: every element at most once.
    Part,
}

/// Something that does not make sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The file that says it.
    pub(crate) file: String,
    /// What it says.
    pub(crate) what: String,
}

/// A rank's files and what is in them.
pub(crate) type Shard<'a> = (&'a ShardEntry, &'a ShardIndex);

/// Elements of each tensor.
type Lengths<'a> = HashMap<(&'a str, Kind), u64>;

/// Checks a checkpoint of `tensors`, written by `world` ranks.
///
/// # Errors
/// The first problem.
pub(crate) fn check(
    extent: Extent,
    tensors: &[TensorEntry],
    world: usize,
    shards: &[Shard<'_>],
) -> Result<(), Problem> {
    let lengths = lengths(tensors)?;
    check_ranks(extent, world, shards)?;
    for shard in shards {
        check_chunks(shard).map_err(|what| in_index(shard.0, what))?;
        check_pieces(shard, &lengths).map_err(|what| in_index(shard.0, what))?;
    }
    check_cover(extent, tensors, &lengths, shards)
}

fn in_manifest(what: String) -> Problem {
    Problem { file: MANIFEST_FILE.to_string(), what }
}

fn in_index(entry: &ShardEntry, what: String) -> Problem {
    Problem { file: index_file(entry.rank), what }
}

fn lengths(tensors: &[TensorEntry]) -> Result<Lengths<'_>, Problem> {
    let mut lengths = HashMap::new();
    for tensor in tensors {
        let name = &tensor.name;
        let Some(elements) = tensor.checked_elements() else {
            let shape = &tensor.shape;
            return Err(in_manifest(format!("{name} has the impossible shape {shape:?}")));
        };
        if !tensor.fits_optimizer() {
            let optimizer = tensor.optimizer.as_deref().unwrap_or_default();
            let kinds: Vec<String> = tensor.kinds.iter().map(Kind::to_string).collect();
            let kinds = kinds.join(", ");
            return Err(in_manifest(format!("{name} is updated by {optimizer} and lists {kinds}")));
        }
        for &kind in &tensor.kinds {
            if lengths.insert((name.as_str(), kind), elements).is_some() {
                return Err(in_manifest(format!("{name} {kind} is listed twice")));
            }
        }
    }
    Ok(lengths)
}

fn check_ranks(extent: Extent, world: usize, shards: &[Shard<'_>]) -> Result<(), Problem> {
    let mut ranks = BTreeSet::new();
    for (entry, _) in shards {
        if entry.rank.0 >= world as u64 {
            return Err(in_manifest(format!("it lists rank {} of {world} ranks", entry.rank)));
        }
        if !ranks.insert(entry.rank) {
            return Err(in_manifest(format!("it lists rank {} twice", entry.rank)));
        }
    }
    let wanted = if extent == Extent::Whole { world.max(1) } else { 1 };
    if ranks.len() < wanted {
        let found = ranks.len();
        return Err(in_manifest(format!("it lists the files of {found} ranks, not of {wanted}")));
    }
    Ok(())
}

fn check_chunks((entry, index): &Shard<'_>) -> Result<(), String> {
    let (bytes, chunk_bytes) = (entry.data_bytes, index.chunk_bytes);
    if !bytes.is_multiple_of(ALIGN_BYTES as u64) {
        return Err(format!("its data file has {bytes} bytes, no multiple of {ALIGN_BYTES}"));
    }
    let sane = 1..=MAX_CHUNK_BYTES;
    if !sane.contains(&chunk_bytes) || !chunk_bytes.is_multiple_of(ALIGN_BYTES) {
        return Err(format!("chunks of {chunk_bytes} bytes are impossible"));
    }
    let (wanted, found) = (bytes.div_ceil(chunk_bytes as u64), index.chunks.len() as u64);
    if wanted != found {
        return Err(format!("it has {found} checksums for {wanted} chunks"));
    }
    Ok(())
}

/// Pieces lie one after another in the data file, and in the tensors that the manifest lists.
fn check_pieces((entry, index): &Shard<'_>, lengths: &Lengths<'_>) -> Result<(), String> {
    let mut file_end = 0;
    for piece in &index.pieces {
        let (tensor, kind) = (piece.tensor.as_str(), piece.kind);
        let named = || format!("the piece of {tensor} {kind} at byte {}", piece.offset);
        let Some(&elements) = lengths.get(&(tensor, kind)) else {
            return Err(format!("{tensor} {kind} is in no list of tensors"));
        };
        if piece.start.checked_add(piece.len).is_none_or(|end| end > elements) {
            let (start, len) = (piece.start, piece.len);
            return Err(format!("{} has {len} elements from {start} on of {elements}", named()));
        }
        if !piece.offset.is_multiple_of(PIECE_ALIGN_BYTES) {
            return Err(format!("{} is not aligned to {PIECE_ALIGN_BYTES} bytes", named()));
        }
        if piece.offset < file_end {
            return Err(format!("{} begins inside the one before", named()));
        }
        let end = piece.len.checked_mul(4).and_then(|bytes| piece.offset.checked_add(bytes));
        file_end = end.filter(|&end| end <= entry.data_bytes).ok_or_else(|| {
            format!("{} leaves its data file of {} bytes", named(), entry.data_bytes)
        })?;
    }
    Ok(())
}

/// Every element of every tensor is in one piece, or at most in one of a part.
fn check_cover(
    extent: Extent,
    tensors: &[TensorEntry],
    lengths: &Lengths<'_>,
    shards: &[Shard<'_>],
) -> Result<(), Problem> {
    let mut pieces: HashMap<(&str, Kind), Vec<(u64, u64)>> = HashMap::new();
    for piece in shards.iter().flat_map(|(_, index)| &index.pieces) {
        let ranges = pieces.entry((piece.tensor.as_str(), piece.kind)).or_default();
        ranges.push((piece.start, piece.start + piece.len));
    }
    let listed = tensors.iter().flat_map(|tensor| tensor.kinds.iter().map(move |&k| (tensor, k)));
    for (tensor, kind) in listed {
        let key = (tensor.name.as_str(), kind);
        let mut ranges = pieces.remove(&key).unwrap_or_default();
        ranges.sort_unstable();
        // The end closes the last gap.
        ranges.push((lengths[&key], lengths[&key]));
        let mut covered = 0;
        for (start, end) in ranges {
            let (from, to) = (start.min(covered), start.max(covered));
            let how = match start.cmp(&covered) {
                std::cmp::Ordering::Greater if extent == Extent::Whole => "written by no rank",
                std::cmp::Ordering::Less => "written twice",
                _ => {
                    covered = end;
                    continue;
                }
            };
            let name = &tensor.name;
            return Err(in_manifest(format!("elements {from}..{to} of {name} {kind} were {how}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Checksum, PieceEntry};
    use lampyris_plan::Rank;

    const PAGE: u64 = ALIGN_BYTES as u64;

    fn tensors() -> Vec<TensorEntry> {
        let entry = |name: &str, shape: &[usize]| TensorEntry {
            name: name.to_string(),
            shape: shape.to_vec(),
            kinds: vec![Kind::Weight],
            optimizer: None,
        };
        vec![entry("a", &[5, 20]), entry("b", &[3])]
    }

    fn piece(tensor: &str, start: u64, len: u64, offset: u64) -> PieceEntry {
        PieceEntry { tensor: tensor.to_string(), kind: Kind::Weight, start, len, offset }
    }

    /// Two ranks: the first has 60 elements of `a`, the second the rest and `b`.
    fn good() -> Vec<(ShardEntry, ShardIndex)> {
        let shard = |rank, pieces| {
            let index_xxh3 = Checksum(0);
            let entry =
                ShardEntry { rank: Rank(rank), data_bytes: PAGE, index_bytes: 1, index_xxh3 };
            let chunks = vec![Checksum(0)];
            (entry, ShardIndex { chunk_bytes: ALIGN_BYTES, chunks, pieces })
        };
        vec![
            shard(0, vec![piece("a", 0, 60, 0)]),
            shard(1, vec![piece("a", 60, 40, 0), piece("b", 0, 3, 192)]),
        ]
    }

    fn checked(
        extent: Extent,
        tensors: &[TensorEntry],
        shards: &[(ShardEntry, ShardIndex)],
    ) -> Result<(), Problem> {
        let shards: Vec<Shard<'_>> = shards.iter().map(|(entry, index)| (entry, index)).collect();
        check(extent, tensors, 2, &shards)
    }

    #[test]
    fn what_makes_sense_passes() {
        assert_eq!(checked(Extent::Whole, &tensors(), &good()), Ok(()));
        assert_eq!(checked(Extent::Part, &tensors(), &good()[1..]), Ok(()));
    }

    /// One fault in shards that are good otherwise.
    type Fault = (&'static str, fn(&mut Vec<(ShardEntry, ShardIndex)>));

    #[test]
    fn every_kind_of_nonsense_in_an_index_is_named() {
        let faults: [Fault; 18] = [
            ("lists the files of 1 ranks", |s| s.truncate(1)),
            ("lists the files of 0 ranks", |s| s.clear()),
            ("lists rank 0 twice", |s| s[1].0.rank = Rank(0)),
            ("lists rank 2 of 2", |s| s[1].0.rank = Rank(2)),
            ("no multiple of 4096", |s| s[0].0.data_bytes = 100),
            ("chunks of 0 bytes", |s| s[0].1.chunk_bytes = 0),
            ("chunks of 9223372036854775808 bytes", |s| s[0].1.chunk_bytes = 1 << 63),
            ("chunks of 100 bytes", |s| s[0].1.chunk_bytes = 100),
            ("2 checksums for 1 chunks", |s| s[0].1.chunks.push(Checksum(1))),
            ("is in no list", |s| s[1].1.pieces[1].tensor = "c".to_string()),
            ("is in no list", |s| s[1].1.pieces[1].kind = Kind::ExpAvg),
            ("has 3 elements from 18446744073709551615 on of 3", |s| {
                s[1].1.pieces[1].start = u64::MAX;
            }),
            ("has 4611686018427387904 elements", |s| s[1].1.pieces[1].len = 1 << 62),
            ("is not aligned", |s| s[1].1.pieces[1].offset = 196),
            ("begins inside the one before", |s| s[1].1.pieces[1].offset = 128),
            ("leaves its data file", |s| s[1].1.pieces[1].offset = 1 << 40),
            ("leaves its data file", |s| s[1].1.pieces[1].offset = u64::MAX - 63),
            ("elements 58..60 of a weight were written twice", |s| {
                s[1].1.pieces[0] = piece("a", 58, 42, 0);
            }),
        ];
        for (words, fault) in faults {
            let mut shards = good();
            fault(&mut shards);
            let problem = checked(Extent::Whole, &tensors(), &shards).unwrap_err();
            assert!(problem.what.contains(words), "{words}: {problem:?}");
        }
        let mut shards = good();
        shards[0].1.pieces[0].len = 59;
        let problem = checked(Extent::Whole, &tensors(), &shards).unwrap_err();
        assert_eq!(problem.what, "elements 59..60 of a weight were written by no rank");
        assert_eq!(checked(Extent::Part, &tensors(), &shards), Ok(()));
        shards = good();
        shards[1].1.pieces.pop();
        let problem = checked(Extent::Whole, &tensors(), &shards).unwrap_err();
        assert_eq!(problem.what, "elements 0..3 of b weight were written by no rank");
    }

    #[test]
    fn nonsense_in_a_manifest_is_named() {
        let mut twice = tensors();
        twice.push(twice[1].clone());
        let mut huge = tensors();
        huge[0].shape = vec![1 << 40, 1 << 40];
        let mut bare = tensors();
        bare[1].optimizer = Some("muon".to_string());
        let faults = [
            (twice, "b weight is listed twice"),
            (huge, "impossible shape"),
            (bare, "b is updated by muon and lists weight"),
        ];
        for (tensors, words) in faults {
            let problem = checked(Extent::Whole, &tensors, &good()).unwrap_err();
            assert!(problem.what.contains(words), "{problem:?}");
            assert_eq!(problem.file, MANIFEST_FILE);
        }
    }
}
