//! Background saves: the loop goes on, one set of buffers, errors are told.

use super::fixture::{self, Layout, SMALL, id, meta, new_run, open, values};
use super::hooked_disk::HookedDisk;
use lampyris_checkpoint::{
    Buffers, Busy, CheckpointId, Error, Ranks, Retention, Run, Saver, Slot, Snapshot, Target,
};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

/// One buffer per kind of state would be usual; here every piece has its own.
fn slots(layout: &Layout, rank: usize) -> Arc<[Slot]> {
    let tensors = fixture::tensors();
    let slot = |(buffer, &(tensor, kind, start, len)): (usize, &(usize, _, u64, u64))| Slot {
        tensor: tensors[tensor].name.clone(),
        kind,
        start,
        buffer,
        range: 0..len as usize,
    };
    layout.0[rank].iter().enumerate().map(slot).collect()
}

/// What the training loop does: fills the buffers, reusing their memory.
fn fill(mut buffers: Buffers, layout: &Layout, rank: usize, step: u64) -> Buffers {
    buffers.resize_with(layout.0[rank].len(), Vec::new);
    for (buffer, &(tensor, kind, start, len)) in buffers.iter_mut().zip(&layout.0[rank]) {
        buffer.clear();
        buffer.extend(values(tensor, kind, start..start + len, step));
    }
    buffers
}

pub(crate) fn snapshot(
    id: CheckpointId,
    buffers: Buffers,
    layout: &Layout,
    rank: usize,
) -> Snapshot {
    let buffers = fill(buffers, layout, rank, id.step.0);
    Snapshot { meta: meta(id), slots: slots(layout, rank), buffers, to: Target::Disk }
}

#[test]
fn saves_in_the_background_reuse_one_set_of_buffers() {
    let (_dir, run) = new_run();
    let layout = Layout::random(1, 1);
    let keep = Retention { last: 2, every_steps: 0, best: false };
    let mut saver = Saver::new(run.clone(), Ranks::alone(), SMALL, Some(keep));
    let mut addresses = Vec::new();
    for step in 1..=4 {
        let (buffers, ended) = saver.buffers(Busy::Wait);
        let ended = ended.map(|outcome| outcome.unwrap().id.step.0);
        assert_eq!(ended, (step > 1).then_some(step - 1));
        let snapshot = snapshot(id(step, 1), buffers.unwrap(), &layout, 0);
        addresses.push(snapshot.buffers[0].as_ptr());
        assert!(saver.begin(snapshot).is_none());
    }
    let saved = saver.wait().unwrap().unwrap();
    assert_eq!(saved.committed, Some(run.path(id(4, 1))));
    assert_eq!(saved.pruned.unwrap().unwrap().removed, [id(2, 1)]);
    assert!(saver.poll().is_none() && !saver.in_flight());
    assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:?}");
    assert_eq!(run.committed().unwrap(), [id(3, 1), id(4, 1)]);
    fixture::check(&open(&run, id(4, 1)).unwrap(), 1).unwrap();
}

/// A run on a disk that stops before every sync of a data file until a message comes.
fn held_run(run: &Run) -> (Run, SyncSender<()>, Receiver<()>) {
    let (release, wait) = sync_channel(1);
    let (reached, is_held) = sync_channel(1);
    let wait = Mutex::new(wait);
    let hook = move |operation: &'static str, path: &Path| {
        if operation == "sync" && path.extension().is_some_and(|e| e == "data") {
            reached.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
        }
        Ok(())
    };
    let disk = HookedDisk { inner: Arc::clone(run.disk()), hook: Arc::new(hook) };
    (Run::open_read_only(Arc::new(disk), run.dir()), release, is_held)
}

#[test]
fn while_a_save_is_in_flight_another_is_skipped_or_waits() {
    let (_dir, run) = new_run();
    let layout = Layout::random(1, 1);
    let (held, release, is_held) = held_run(&run);
    let mut saver = Saver::new(held, Ranks::alone(), SMALL, None);
    saver.begin(snapshot(id(1, 1), Vec::new(), &layout, 0));
    is_held.recv().unwrap();
    assert!(saver.in_flight());
    assert!(matches!(saver.buffers(Busy::Skip), (None, None)));
    assert!(saver.poll().is_none());
    assert_eq!(run.committed().unwrap(), []);
    release.send(()).unwrap();
    let (buffers, ended) = saver.buffers(Busy::Wait);
    assert_eq!(ended.unwrap().unwrap().id, id(1, 1));
    saver.begin(snapshot(id(2, 1), buffers.unwrap(), &layout, 0));
    release.send(()).unwrap();
    // Dropping finishes the save.
    drop(saver);
    assert_eq!(run.committed().unwrap(), [id(1, 1), id(2, 1)]);
}

#[test]
fn a_failed_save_is_told_and_the_next_one_works() {
    let (_dir, run) = new_run();
    let layout = Layout::random(1, 1);
    let full = Arc::new(Mutex::new(true));
    let state = Arc::clone(&full);
    let hook = move |operation: &'static str, _: &Path| match operation {
        "write" if *state.lock().unwrap() => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    };
    let disk = HookedDisk { inner: Arc::clone(run.disk()), hook: Arc::new(hook) };
    let hooked = Run::open_read_only(Arc::new(disk), run.dir());
    let mut saver = Saver::new(hooked, Ranks::alone(), SMALL, None);
    saver.begin(snapshot(id(1, 1), Vec::new(), &layout, 0));
    let (buffers, ended) = saver.buffers(Busy::Wait);
    assert!(matches!(ended, Some(Err(Error::DiskFull { .. }))));
    assert!(std::fs::read_dir(run.checkpoints_dir()).unwrap().next().is_none());
    *full.lock().unwrap() = false;
    saver.begin(snapshot(id(2, 1), buffers.unwrap(), &layout, 0));
    assert_eq!(saver.wait().unwrap().unwrap().id, id(2, 1));
}
