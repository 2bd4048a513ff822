//! A small invented model, its values as a function of (tensor, kind, element, step), and random layouts of it.

use super::crash_disk::CrashDisk;
use lampyris_checkpoint::disk::{Disk, RealDisk};
use lampyris_checkpoint::format::FORMAT;
use lampyris_checkpoint::tensors::TensorEntry;
use lampyris_checkpoint::{
    CheckpointId, Digests, Kind, Meta, Piece, Reader, Request, Result, Run, ShardReport, Transfer,
};
use lampyris_plan::{Attempt, Rank, Step};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Small chunks, so that a few kilobytes are many chunks; one thread, so that operations have one order.
pub(crate) const SMALL: Transfer = Transfer { threads: 1, chunk_bytes: 4096 };

pub(crate) fn id(step: u64, attempt: u64) -> CheckpointId {
    CheckpointId { step: Step(step), attempt: Attempt(attempt) }
}

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Tensors of awkward sizes; the largest spans several small chunks.
pub(crate) fn tensors() -> Vec<TensorEntry> {
    let trained = [Kind::Weight, Kind::ExpAvg, Kind::ExpAvgSq];
    let entry = |name: &str, shape: &[usize], kinds: &[Kind]| TensorEntry {
        name: name.to_string(),
        shape: shape.to_vec(),
        kinds: kinds.to_vec(),
        optimizer: None,
    };
    vec![
        entry("model.embed_tokens.weight", &[67, 32], &trained),
        entry("model.layers.0.mlp.up_proj.weight", &[13, 7], &trained),
        entry("model.layers.0.input_layernorm.weight", &[31], &trained),
        entry("model.norm.weight", &[1], &trained),
        entry("model.layers.0.mlp.gate.e_score_correction_bias", &[8], &[Kind::GateBias]),
    ]
}

/// Any function that tells all coordinates apart will do.
pub(crate) fn value(tensor: usize, kind: Kind, element: u64, step: u64) -> f32 {
    let mut random = Random(step << 40 | (tensor as u64) << 32 | (kind as u64) << 24 | element);
    (random.next() >> 40) as f32 / 65536.0 - 128.0
}

pub(crate) fn values(
    tensor: usize,
    kind: Kind,
    range: std::ops::Range<u64>,
    step: u64,
) -> Vec<f32> {
    range.map(|element| value(tensor, kind, element, step)).collect()
}

/// Per rank: (tensor, kind, first element, elements).
#[derive(Clone, Debug)]
pub(crate) struct Layout(pub(crate) Vec<Vec<(usize, Kind, u64, u64)>>);

impl Layout {
    /// Cuts every tensor into random runs and deals them to `world` ranks.
    pub(crate) fn random(seed: u64, world: usize) -> Layout {
        let mut random = Random(seed);
        let mut ranks = vec![Vec::new(); world];
        for (tensor, entry) in tensors().iter().enumerate() {
            for &kind in &entry.kinds {
                let mut start = 0;
                while start < entry.elements() {
                    let left = entry.elements() - start;
                    let len = if random.below(3) == 0 { left } else { 1 + random.below(left) };
                    ranks[random.below(world as u64) as usize].push((tensor, kind, start, len));
                    start += len;
                }
            }
        }
        Layout(ranks)
    }
}

pub(crate) fn meta(id: CheckpointId) -> Meta {
    Meta {
        id,
        digests: Digests { numerics: "n1".to_string(), plan: "p1".to_string() },
        fingerprint: [("cpu".to_string(), "test".to_string())].into(),
        validation_loss: None,
        state: [("samples".to_string(), json!(id.step.0 * 8))].into(),
        tensors: tensors(),
    }
}

/// Rank `rank` writes its values into the unfinished checkpoint `id`.
pub(crate) fn write_rank(
    run: &Run,
    id: CheckpointId,
    rank: usize,
    layout: &Layout,
) -> Result<ShardReport> {
    let step = id.step.0;
    let tensors = tensors();
    let held: Vec<_> = layout.0[rank]
        .iter()
        .map(|&(tensor, kind, start, len)| {
            (&tensors[tensor].name, kind, start, values(tensor, kind, start..start + len, step))
        })
        .collect();
    let pieces: Vec<Piece<'_>> = held
        .iter()
        .map(|(tensor, kind, start, data)| Piece { tensor, kind: *kind, start: *start, data })
        .collect();
    run.write_shard(id, Rank(rank as u64), &pieces, SMALL)
}

/// All ranks write and rank 0 commits.
pub(crate) fn save(run: &Run, id: CheckpointId, layout: &Layout) -> Result<PathBuf> {
    let mut reports = Vec::new();
    for rank in 0..layout.0.len() {
        reports.push(write_rank(run, id, rank, layout)?);
    }
    run.commit(&meta(id), &reports)
}

/// Reads everything with `threads` threads and compares it with what `step` must hold.
pub(crate) fn check(reader: &Reader, threads: usize) -> Result<()> {
    let manifest = reader.manifest();
    assert_eq!(manifest.format, FORMAT);
    assert_eq!(manifest.tensors, tensors());
    let step = manifest.id.step.0;
    let mut held: Vec<(usize, Kind, String, Vec<f32>)> = Vec::new();
    for (tensor, entry) in tensors().into_iter().enumerate() {
        for &kind in &entry.kinds {
            held.push((tensor, kind, entry.name.clone(), vec![0.0; entry.elements() as usize]));
        }
    }
    let requests = held
        .iter_mut()
        .map(|(_, kind, tensor, out)| Request {
            tensor,
            kind: *kind,
            start: 0,
            out: out.as_mut_slice(),
        })
        .collect();
    reader.load(requests, threads)?;
    for (tensor, kind, name, found) in held {
        assert!(found == values(tensor, kind, 0..found.len() as u64, step), "{name} {kind}");
    }
    Ok(())
}

/// A run in a new folder, its first attempt recorded.
pub(crate) fn new_run() -> (tempfile::TempDir, Run) {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::open(Arc::new(RealDisk), dir.path()).unwrap();
    assert_eq!(run.claim_next().unwrap(), Attempt(1));
    run.record(Attempt(1), None).unwrap();
    (dir, run)
}

/// The same on a disk in memory, for tests that save much and damage nothing.
pub(crate) fn run_in_memory() -> Run {
    let disk = CrashDisk::new();
    disk.create_dir(Path::new("/run")).unwrap();
    let run = Run::open(Arc::new(disk), Path::new("/run")).unwrap();
    assert_eq!(run.claim_next().unwrap(), Attempt(1));
    run.record(Attempt(1), None).unwrap();
    run
}

pub(crate) fn open(run: &Run, id: CheckpointId) -> Result<Reader> {
    Reader::open(Arc::clone(run.disk()), &run.path(id))
}
