//! What people ask about checkpoints: list, show, verify, diff. The command line prints these reports as tables or JSON.

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::{CheckpointId, Manifest};
use crate::read::Reader;
use crate::run::Run;
use crate::tensors::{Kind, TensorEntry};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Elements compared at a time.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// Step and attempt.
    #[serde(flatten)]
    pub id: CheckpointId,
    /// Its folder.
    pub path: PathBuf,
    /// A resume may choose it.
    pub in_lineage: bool,
    /// Seconds since 1970 when it was written.
    pub saved_unix_s: Option<u64>,
    /// Bytes of data.
    pub bytes: Option<u64>,
    /// Validation loss in nats.
    pub validation_loss: Option<f64>,
    /// Why it cannot be opened, if so.
    pub problem: Option<String>,
}

/// All checkpoints of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct List {
    /// Why the run would not start from any of them, if so.
    pub problem: Option<String>,
    /// By rising step.
    pub checkpoints: Vec<Listed>,
    /// Folders that were set aside.
    pub quarantined: Vec<String>,
}

/// Lists the checkpoints of a run; opens each (manifest, indexes, file lengths) but reads no values.
///
/// # Errors
/// The run directory cannot be read.
pub fn list(run: &Run) -> Result<List> {
    let (candidates, problem): (BTreeSet<CheckpointId>, _) = match run.to_load() {
        Ok(ids) => (ids.into_iter().collect(), None),
        Err(e @ (Error::Lineage { .. } | Error::NoneGood { .. })) => {
            (BTreeSet::new(), Some(e.to_string()))
        }
        Err(e) => return Err(e),
    };
    let describe = |id: CheckpointId| {
        let path = run.path(id);
        let opened = Reader::open(Arc::clone(run.disk()), &path);
        let (reader, problem) = match opened {
            Ok(reader) => (Some(reader), None),
            Err(e) => (None, Some(e.to_string())),
        };
        let manifest = reader.as_ref().map(Reader::manifest);
        Listed {
            id,
            path,
            in_lineage: candidates.contains(&id),
            saved_unix_s: manifest.map(|m| m.saved_unix_s),
            bytes: reader.as_ref().map(Reader::data_bytes),
            validation_loss: manifest.and_then(|m| m.validation_loss),
            problem,
        }
    };
    let checkpoints = run.committed()?.into_iter().map(describe).collect();
    let quarantined = run.quarantined()?;
    Ok(List { problem, checkpoints, quarantined })
}

/// What is in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// All of the manifest but the tensors.
    pub manifest: Manifest,
    /// Elements of each kind.
    pub elements: BTreeMap<Kind, u64>,
    /// Bytes of data files, alignment included.
    pub data_bytes: u64,
}

/// Describes the checkpoint in `dir`; the manifest carries the list of tensors.
///
/// # Errors
/// It cannot be opened.
pub fn show(disk: Arc<dyn Disk>, dir: &Path) -> Result<Shown> {
    let reader = Reader::open(disk, dir)?;
    let mut elements = BTreeMap::new();
    for tensor in &reader.manifest().tensors {
        for &kind in &tensor.kinds {
            *elements.entry(kind).or_default() += tensor.elements();
        }
    }
    let data_bytes = reader.data_bytes();
    Ok(Shown { manifest: reader.manifest().clone(), elements, data_bytes })
}

/// The outcome of reading every byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The folder.
    pub path: PathBuf,
    /// Bytes read and compared.
    pub bytes: u64,
    /// Everything that is wrong, sorted; empty if all is well.
    pub problems: Vec<String>,
}

/// Compares every checksum of the checkpoint in `dir`.
///
/// # Errors
/// The disk fails otherwise than by missing or short files.
pub fn verify(disk: Arc<dyn Disk>, dir: &Path, threads: usize) -> Result<Verified> {
    let (bytes, problems) = match Reader::open(disk, dir) {
        Ok(reader) => (reader.data_bytes(), reader.verify(threads)?),
        Err(e) if e.is_corrupt() => (0, vec![e]),
        Err(e) => return Err(e),
    };
    let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    problems.sort();
    Ok(Verified { path: dir.to_path_buf(), bytes, problems })
}

/// How two checkpoints differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// Tensors with at least one differing bit, worst ratio first.
    pub tensors: Vec<TensorDiff>,
    /// Tensors (name and kind) that only the first holds.
    pub only_a: Vec<String>,
    /// Tensors that only the second holds.
    pub only_b: Vec<String>,
    /// Tensors with another shape.
    pub reshaped: Vec<String>,
    /// Names of manifest fields that differ: digests, fingerprint, state; time and lineage aside.
    pub fields: Vec<String>,
    /// Tensors (name and kind) that are equal to the last bit.
    pub equal: usize,
}

/// How one tensor differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Hugging Face name.
    pub tensor: String,
    /// What the values are.
    pub kind: Kind,
    /// Elements with other bits.
    pub differing: u64,
    /// All its elements.
    pub elements: u64,
    /// max |a-b|; infinite where one is not finite.
    pub max_difference: f64,
    /// max |b|.
    pub max_b: f64,
}

impl TensorDiff {
    /// max |a-b| / max |b|.
    pub fn ratio(&self) -> f64 {
        if self.max_difference == 0.0 { 0.0 } else { self.max_difference / self.max_b }
    }
}

/// Compares two checkpoints tensor by tensor, whatever their layouts.
///
/// # Errors
/// One of them cannot be read.
pub fn diff(a: &Reader, b: &Reader) -> Result<Diff> {
    let (in_a, in_b) = (keys(a), keys(b));
    let only = |here: &Keys<'_>, there: &Keys<'_>| {
        here.keys()
            .filter(|key| !there.contains_key(*key))
            .map(|(n, k)| format!("{n} {k}"))
            .collect()
    };
    let mut diff = Diff {
        tensors: Vec::new(),
        only_a: only(&in_a, &in_b),
        only_b: only(&in_b, &in_a),
        reshaped: Vec::new(),
        fields: differing_fields(a.manifest(), b.manifest()),
        equal: 0,
    };
    for (&(name, kind), entry) in &in_a {
        match in_b.get(&(name, kind)) {
            None => {}
            Some(other) if other.shape != entry.shape => {
                diff.reshaped.push(format!("{name} {kind}: {:?} {:?}", entry.shape, other.shape));
            }
            Some(_) => match compare(a, b, entry, kind)? {
                found if found.differing == 0 => diff.equal += 1,
                found => diff.tensors.push(found),
            },
        }
    }
    diff.tensors.sort_by(|x, y| y.ratio().total_cmp(&x.ratio()));
    Ok(diff)
}

type Keys<'a> = BTreeMap<(&'a str, Kind), &'a TensorEntry>;

fn keys(reader: &Reader) -> Keys<'_> {
    let tensors = reader.manifest().tensors.iter();
    tensors
        .flat_map(|tensor| {
            tensor.kinds.iter().map(move |&kind| ((tensor.name.as_str(), kind), tensor))
        })
        .collect()
}

fn differing_fields(a: &Manifest, b: &Manifest) -> Vec<String> {
    let mut fields = Vec::new();
    let mut note = |name: &str, differs: bool| {
        if differs {
            fields.push(name.to_string());
        }
    };
    note("step", a.id.step != b.id.step);
    note("digests.numerics", a.digests.numerics != b.digests.numerics);
    note("digests.plan", a.digests.plan != b.digests.plan);
    for key in a.fingerprint.keys().chain(b.fingerprint.keys()).collect::<BTreeSet<_>>() {
        note(&format!("fingerprint.{key}"), a.fingerprint.get(key) != b.fingerprint.get(key));
    }
    for key in a.state.keys().chain(b.state.keys()).collect::<BTreeSet<_>>() {
        note(&format!("state.{key}"), a.state.get(key) != b.state.get(key));
    }
    fields
}

fn compare(a: &Reader, b: &Reader, entry: &TensorEntry, kind: Kind) -> Result<TensorDiff> {
    let elements = entry.elements();
    let mut found = TensorDiff {
        tensor: entry.name.clone(),
        kind,
        differing: 0,
        elements,
        max_difference: 0.0,
        max_b: 0.0,
    };
    let block = BLOCK_ELEMENTS.min(elements as usize);
    let (mut left, mut right) = (vec![0.0; block], vec![0.0; block]);
    let mut start = 0;
    while start < elements {
        let count = ((elements - start) as usize).min(block);
        a.read(&entry.name, kind, start, &mut left[..count])?;
        b.read(&entry.name, kind, start, &mut right[..count])?;
        for (x, y) in left[..count].iter().zip(&right[..count]) {
            let difference = (f64::from(*x) - f64::from(*y)).abs();
            found.max_b = found.max_b.max(f64::from(y.abs()));
            if x.to_bits() != y.to_bits() {
                found.differing += 1;
                let difference = if difference.is_finite() { difference } else { f64::INFINITY };
                found.max_difference = found.max_difference.max(difference);
            }
        }
        start += count as u64;
    }
    Ok(found)
}
