//! Checkpoints of a plan's tensors whose values all follow from one number, for fake ranks.

use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::tensors::{TensorEntry, tensor_list};
use lampyris_checkpoint::{CheckpointId, Digests, Error, Kind, Meta, Piece, Reader, Run, Transfer};
use lampyris_plan::{Attempt, Inventory, Rank, Step, TrainPlan, digest};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Under which the number stands among the trainer's values.
const NUMBER: &str = "number";

/// The checkpoint from which an attempt would continue, and the number in it; none before the first.
///
/// # Errors
/// Those of the checkpoint crate.
///
/// # Panics
/// If a value in it is not what follows from its number.
pub fn load(run_dir: &Path) -> Result<Option<(CheckpointId, u64)>, Error> {
    let run = Run::open(Arc::new(RealDisk), run_dir)?;
    let Some(id) = run.candidates()?.first().copied() else { return Ok(None) };
    let reader = Reader::open(Arc::clone(run.disk()), &run.path(id))?;
    let number = reader.manifest().state.get(NUMBER).and_then(serde_json::Value::as_u64);
    let number = number.expect("every checkpoint of this module has its number");
    for tensor in &reader.manifest().tensors {
        let mut values = vec![0.0; tensor.elements() as usize];
        for &kind in &tensor.kinds {
            reader.read(&tensor.name, kind, 0, &mut values)?;
            assert!(values == values_of(number, values.len()), "{} {kind} is altered", tensor.name);
        }
    }
    Ok(Some((id, number)))
}

/// What tensors hold: numbers below 1 that differ from element to element and with every bit of `number`.
fn values_of(number: u64, count: usize) -> Vec<f32> {
    let value = |index: u64| {
        let mixed = (number ^ index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed ^ (mixed >> 29)) >> 40) as f32 / (1 << 24) as f32
    };
    (0..count as u64).map(value).collect()
}

/// Commits one rank's checkpoint after `step`, whose values follow from `number`; the first one of an attempt records its
/// parent. Gives its folder and its bytes.
///
/// # Errors
/// Those of the checkpoint crate.
pub fn commit(
    run_dir: &Path,
    plan: &TrainPlan,
    step: u64,
    attempt: u64,
    number: u64,
) -> Result<(PathBuf, u64), Error> {
    let run = Run::open(Arc::new(RealDisk), run_dir)?;
    let attempt = Attempt(attempt);
    if run.lineage()?.newest() != Some(attempt) {
        run.record(attempt, run.candidates()?.first().copied())?;
    }
    let id = CheckpointId { step: Step(step), attempt };
    if run.candidates()?.first() == Some(&id) {
        return Ok((run.path(id), 0));
    }
    let kinds = [Kind::Weight, Kind::ExpAvg, Kind::ExpAvgSq];
    let tensors = tensor_list(&Inventory::new(&plan.model), &kinds);
    let longest = tensors.iter().map(TensorEntry::elements).max().unwrap_or(0);
    let values = values_of(number, longest as usize);
    let mut pieces = Vec::new();
    for tensor in &tensors {
        let data = &values[..tensor.elements() as usize];
        let of = |&kind| Piece { tensor: &tensor.name, kind, start: 0, data };
        pieces.extend(tensor.kinds.iter().map(of));
    }
    let report = run.write_shard(id, Rank(0), &pieces, Transfer::default())?;
    let bytes = report.entry.data_bytes;
    let digests = digest::Digests::of(plan);
    let meta = Meta {
        id,
        digests: Digests { numerics: digests.numerics, plan: digests.plan },
        fingerprint: [("cpu".to_string(), "fake".to_string())].into(),
        validation_loss: None,
        state: [("samples".to_string(), step.into()), (NUMBER.to_string(), number.into())].into(),
        tensors,
    };
    Ok((run.commit(&meta, &[report])?, bytes))
}
