//! Checkpoints of a plan's tensors with made-up values, for fake ranks.

use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::tensors::{TensorEntry, tensor_list};
use lampyris_checkpoint::{CheckpointId, Digests, Error, Kind, Meta, Piece, Run, Transfer};
use lampyris_plan::{Attempt, Inventory, Rank, Step, TrainPlan, digest};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The checkpoint from which an attempt would continue.
pub fn newest(run_dir: &Path) -> Option<CheckpointId> {
    let run = Run::open(Arc::new(RealDisk), run_dir).ok()?;
    run.candidates().ok()?.first().copied()
}

/// Commits one rank's checkpoint after `step`, whose values follow from the step; the first one of an attempt records its
/// parent. Gives its folder and its bytes.
///
/// # Errors
/// Those of the checkpoint crate.
pub fn commit(
    run_dir: &Path,
    plan: &TrainPlan,
    step: u64,
    attempt: u64,
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
    let values = vec![step as f32 * 0.5; longest as usize];
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
        state: [("samples".to_string(), step.into())].into(),
        tensors,
    };
    Ok((run.commit(&meta, &[report])?, bytes))
}
