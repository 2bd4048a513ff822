//! Power cuts between any two operations: the last committed checkpoint is always found whole, and leaving out any one
//! sync is noticed.

use super::crash_disk::{CrashDisk, Cut, Op};
use super::fixture::{self, Layout, id, meta, save, write_rank};
use super::saver::snapshot;
use lampyris_checkpoint::disk::Disk;
use lampyris_checkpoint::{
    CheckpointId, Error, HostMemory, Ranks, Reader, Replica, Retention, Run, Saver, Snapshot,
    Target,
};
use lampyris_plan::Attempt;
use std::path::Path;
use std::sync::Arc;

/// What had happened, as far as the program was told, when the log had so many operations.
#[derive(Clone, Debug)]
enum Event {
    Claimed(Attempt),
    Recorded(Attempt),
    Committed(CheckpointId),
    /// Retention began; only these may be missing from then on.
    Removing(Vec<CheckpointId>),
}

struct Script {
    disk: CrashDisk,
    events: Vec<(usize, Event)>,
}

const RUN: &str = "/run";
const KEEP: Retention = Retention { last: 2, every_steps: 20, best: false };

impl Script {
    fn note(&mut self, event: Event) {
        self.events.push((self.disk.position(), event));
    }

    fn attempt(&mut self, parent: Option<CheckpointId>) -> (Run, Attempt) {
        let (run, attempt) = self.claim();
        self.record(&run, attempt, parent);
        (run, attempt)
    }

    fn claim(&mut self) -> (Run, Attempt) {
        let run = Run::open(Arc::new(self.disk.clone()), Path::new(RUN)).unwrap();
        let attempt = run.claim_next().unwrap();
        self.note(Event::Claimed(attempt));
        (run, attempt)
    }

    fn record(&mut self, run: &Run, attempt: Attempt, parent: Option<CheckpointId>) {
        run.record(attempt, parent).unwrap();
        self.note(Event::Recorded(attempt));
    }

    fn save(&mut self, run: &Run, id: CheckpointId) {
        save(run, id, &Layout::random(id.step.0, 1 + id.step.0 as usize % 2)).unwrap();
        self.note(Event::Committed(id));
        let plan = run.prune(KEEP, Some(id.attempt), true).unwrap();
        self.note(Event::Removing(plan.removed));
        run.prune(KEEP, Some(id.attempt), false).unwrap();
    }

    /// Three attempts: the first saves, is cut off inside a save, and wakes up as a zombie; the second takes over, meets a
    /// damaged checkpoint and a save that fails; the third goes on from what memory kept of the second.
    fn play() -> Script {
        let mut script = Script { disk: CrashDisk::new(), events: Vec::new() };
        script.disk.create_dir(Path::new(RUN)).unwrap();
        script.disk.sync_dir(Path::new("/")).unwrap();
        let (run, first) = script.attempt(None);
        for step in [5, 10, 15, 20] {
            script.save(&run, id(step, first.0));
        }
        let layout = Layout::random(25, 2);
        let late = id(25, first.0);
        let zombie = [0, 1].map(|rank| write_rank(&run, late, rank, &layout).unwrap());

        let (run, second) = script.attempt(Some(id(20, first.0)));
        let outcome = run.commit(&meta(late), &zombie);
        assert!(matches!(outcome, Err(Error::Superseded { .. })));
        for step in [22, 24] {
            script.save(&run, id(step, second.0));
        }
        write_rank(&run, id(26, second.0), 0, &layout).unwrap();
        run.abandon(id(26, second.0));

        // What memory kept of the second, which died with less on disk, becomes a checkpoint of the third's.
        let memory = HostMemory::of_run(Arc::new(CrashDisk::new()), Path::new("/"), run.dir());
        let in_memory = id(27, second.0);
        let mut saver = Saver::new(run.clone(), Ranks::alone(), fixture::SMALL, None)
            .with_replica(Replica::new(memory.clone(), 0, None));
        let snapshot = snapshot(in_memory, Vec::new(), &Layout::random(27, 1), 0);
        saver.begin(Snapshot { to: Target::Memory, ..snapshot });
        assert_eq!(saver.wait().unwrap().unwrap().replica_problem, None);
        let (run, third) = script.claim();
        let restored = run.restore(&mut Ranks::alone(), third, &memory).unwrap();
        assert_eq!(restored.id, Some(in_memory), "{restored:?}");
        script.note(Event::Committed(in_memory));
        script.record(&run, third, Some(in_memory));
        for step in [28, 32, 36] {
            script.save(&run, id(step, third.0));
        }
        script
    }

    /// Everything the program had been told by operation `position`.
    fn told(&self, position: usize) -> Told {
        let mut told = Told::default();
        for (_, event) in self.events.iter().filter(|(at, _)| *at <= position) {
            match event {
                Event::Claimed(attempt) => told.claimed = *attempt,
                Event::Recorded(attempt) => told.recorded = Some(*attempt),
                Event::Committed(id) => told.committed.push(*id),
                Event::Removing(ids) => told.committed.retain(|id| !ids.contains(id)),
            }
        }
        told
    }
}

#[derive(Default)]
struct Told {
    claimed: Attempt,
    recorded: Option<Attempt>,
    committed: Vec<CheckpointId>,
}

type Outcome = Result<(), String>;

fn ensure(holds: bool, what: impl Fn() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

fn tell<T>(result: lampyris_checkpoint::Result<T>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

/// A machine comes up with what is left on `disk` after everything in `told` had been reported done.
fn check_recovery(disk: CrashDisk, told: &Told) -> Outcome {
    if disk.list(Path::new(RUN)).is_err() {
        return ensure(told.claimed == Attempt(0), || "the run directory is gone".to_string());
    }
    let run = tell(Run::open(Arc::new(disk.clone()), Path::new(RUN)))?;
    let found = tell(run.committed())?;
    for id in &told.committed {
        ensure(found.contains(id), || format!("{id} was committed and is gone"))?;
    }
    for &id in &found {
        let reader = tell(Reader::open(Arc::new(disk.clone()), &run.path(id)))?;
        tell(fixture::check(&reader, 1))?;
    }
    let newest = tell(run.lineage())?.newest();
    ensure(newest >= told.recorded, || format!("the record of {:?} is gone", told.recorded))?;
    let loaded = tell(run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1)))?;
    ensure(loaded.quarantined.is_empty(), || "something was quarantined".to_string())?;
    let loaded = loaded.found.map(|(id, ())| id);
    ensure(loaded.map(|id| id.step) >= told.committed.last().map(|id| id.step), || {
        format!("{loaded:?} was loaded, {:?} was committed", told.committed.last())
    })?;
    // And life goes on: whatever lies about, the next attempt saves and prunes.
    let attempt = tell(run.claim_next())?;
    ensure(attempt > told.claimed, || format!("attempt {attempt} was given out twice"))?;
    tell(run.record(attempt, loaded))?;
    let next = id(100, attempt.0);
    tell(save(&run, next, &Layout::random(9, 2)))?;
    tell(run.prune(KEEP, Some(attempt), false))?;
    let left = tell(run.disk().list(&run.checkpoints_dir()).map_err(|e| Error::Io {
        doing: "listing",
        path: run.checkpoints_dir(),
        source: e,
    }))?;
    ensure(left.iter().all(|name| !name.starts_with('.')), || format!("leftovers: {left:?}"))?;
    ensure(run.candidates().is_ok_and(|ids| ids[0] == next), || "the new save is not found".into())
}

/// Cuts the power after each operation of `log` from `from` on; the first violation, with its position.
fn cut_everywhere(script: &Script, log: &[Option<Op>], from: usize, random: usize) -> Outcome {
    let mut cut = Cut::new();
    for (position, op) in log.iter().enumerate() {
        if let Some(op) = op {
            cut.step(op);
        }
        if position < from {
            continue;
        }
        let told = script.told(position + 1);
        for (number, disk) in cut.states(position as u64, random).into_iter().enumerate() {
            check_recovery(disk, &told)
                .map_err(|e| format!("after operation {position}, state {number}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_power_cut_anywhere_leaves_the_last_commit_whole() {
    let script = Script::play();
    let log: Vec<Option<Op>> = script.disk.log().into_iter().map(Some).collect();
    assert!(log.len() >= 200, "only {} operations", log.len());
    cut_everywhere(&script, &log, 0, 6).unwrap();
}

#[test]
fn leaving_out_any_one_sync_is_noticed() {
    let script = Script::play();
    let log: Vec<Option<Op>> = script.disk.log().into_iter().map(Some).collect();
    let never_committed = [id(25, 1), id(26, 2)].map(|id| format!("{RUN}/checkpoints/.{id}.tmp"));
    let mut opened = false;
    let (mut tried, mut unnoticed) = (0, Vec::new());
    for (position, op) in log.iter().enumerate().skip(2) {
        let Some(path) = op.as_ref().and_then(Op::synced) else { continue };
        // Opening a run again syncs again what is safe already, and shards that are never committed need no sync.
        let again = path == Path::new(RUN) && std::mem::replace(&mut opened, true);
        if again || never_committed.iter().any(|folder| path.starts_with(folder)) {
            continue;
        }
        tried += 1;
        let mut mutant = log.clone();
        mutant[position] = None;
        if cut_everywhere(&script, &mutant, position, 2).is_ok() {
            unnoticed.push((position, path));
        }
    }
    assert_eq!(unnoticed, []);
    assert!(tried >= 50, "only {tried} syncs");
}
