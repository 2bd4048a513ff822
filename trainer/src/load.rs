//! Where a rank starts from: the newest checkpoint of the run's lineage that is good on all ranks, or initial weights.

use crate::build::Rank;
use crate::link::Link;
use crate::state::Progress;
use crate::{machine, replicas, snapshot};
use anyhow::Result;
use lampyris_checkpoint::{Error, Manifest, Reader, Restored, Run};
use lampyris_plan::{Attempt, TrainPlan};
use lampyris_proto::rank::{self, from_rank::Body, note::Severity};

/// Fills the state of `rank` and records in the lineage what it was filled from. Collective.
///
/// # Errors
/// Checkpoints exist and none is good; a disk or a peer fails.
pub fn state(
    rank: &mut Rank,
    plan: &TrainPlan,
    run: &Run,
    attempt: Attempt,
    link: &mut Link,
) -> Result<()> {
    let what = "reading the checkpoint".to_string();
    link.send(Body::Operation(rank::Operation { what, done: 0, total: 0 }));
    let mut others = rank.ranks.for_checkpoints()?;
    let memory = match plan.checkpoint.replica_every_steps {
        0 => None,
        _ => Some(replicas::host_memory(run.dir())?),
    };
    if let Some(memory) = &memory {
        let restored = run.restore(&mut others, attempt, memory)?;
        tell(restored, rank, link);
    }
    let Rank { network, state, .. } = rank;
    let loaded = run.load_latest(&mut others, |reader| {
        let progress = progress(reader)?;
        snapshot::load(state, &network.inventory, reader)?;
        Ok((progress, reader.manifest().clone()))
    })?;
    for bad in loaded.quarantined.iter().filter(|_| rank.ranks.is_first()) {
        note(link, format!("checkpoint {} is damaged and was set aside: {}", bad.id, bad.problem));
    }
    let parent = match loaded.found {
        Some((id, (progress, manifest))) => {
            rank.state.progress = progress;
            compare_fingerprints(rank, &manifest, link);
            Some(id)
        }
        None => {
            rank.state.initialize(&rank.network.inventory, plan.seed);
            None
        }
    };
    if rank.ranks.is_first() {
        run.record(attempt, parent)?;
    }
    rank.ranks.barrier()?;
    // What was of use is on disk now, and this attempt is recorded: nothing in memory will be wanted again.
    if let Some(memory) = memory {
        memory.clear();
    }
    Ok(())
}

/// Where the run stands by the trainer's own values in a checkpoint.
fn progress(reader: &Reader) -> lampyris_checkpoint::Result<Progress> {
    let manifest = reader.manifest();
    let progress = snapshot::progress_from_state(&manifest.state).map_err(|error| {
        // Whole, but of another program: not a reason to set it aside.
        Error::Malformed { file: reader.dir().join("manifest.json"), problem: format!("{error:#}") }
    })?;
    let (state, id) = (progress.step, manifest.id);
    if state != id.step.0 {
        let problem = format!("its state is that after step {state}, it says it is {id}");
        return Err(reader.damaged(problem));
    }
    Ok(progress)
}

/// Says what memory was good for.
fn tell(restored: Restored, rank: &Rank, link: &mut Link) {
    if !rank.ranks.is_first() {
        return;
    }
    for problem in restored.problems {
        note(link, format!("a snapshot in memory is of no use: {problem}"));
    }
    if let Some(id) = restored.id {
        note(
            link,
            format!("restored {id}, newer than any checkpoint, from the memory of the nodes"),
        );
    }
}

fn compare_fingerprints(rank: &Rank, manifest: &Manifest, link: &mut Link) {
    let here = machine::fingerprint(rank.state.arrays[0].master.device());
    if rank.ranks.is_first() && !manifest.fingerprint.is_empty() && manifest.fingerprint != here {
        note(
            link,
            format!(
                "the checkpoint was written on another machine or with other threads ({:?}, here {here:?}): training goes on, equal bits are not promised",
                manifest.fingerprint
            ),
        );
    }
}

fn note(link: &mut Link, text: String) {
    link.send(Body::Note(rank::Note { severity: Severity::Warning.into(), text }));
}
