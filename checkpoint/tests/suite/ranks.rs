//! Several ranks save and load one checkpoint: all succeed or all fail, and each reads only its part.

use super::fixture::{self, Layout, SMALL, id, new_run, open, save, values};
use super::hooked_disk::HookedDisk;
use super::saver::snapshot;
use lampyris_checkpoint::{
    Buffers, Busy, CheckpointId, Error, Loaded, Ranks, Reader, Request, Result, Run, Saver,
};
use lampyris_plan::Rank;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Barrier, Mutex};

/// `world` ranks that are threads of this process.
pub(crate) fn ranks(world: usize) -> Vec<Ranks> {
    let words = Arc::new(Mutex::new(vec![Vec::new(); world]));
    let barrier = Arc::new(Barrier::new(world));
    let one = |rank: usize| {
        let (words, barrier) = (Arc::clone(&words), Arc::clone(&barrier));
        let all_gather = move |word: &[u8]| {
            words.lock().unwrap()[rank] = word.to_vec();
            barrier.wait();
            let all = words.lock().unwrap().concat();
            barrier.wait();
            Ok(all)
        };
        Ranks::new(Rank(rank as u64), world, Box::new(all_gather))
    };
    (0..world).map(one).collect()
}

/// Does `work` on every rank at once.
pub(crate) fn together<T: Send>(
    ranks: Vec<Ranks>,
    work: impl Fn(usize, &mut Ranks) -> T + Sync,
) -> (Vec<Ranks>, Vec<T>) {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .into_iter()
            .enumerate()
            .map(|(rank, mut own)| {
                scope.spawn(move || {
                    let done = work(rank, &mut own);
                    (own, done)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).unzip()
    })
}

fn hooked(
    run: &Run,
    hook: impl Fn(&'static str, &Path) -> io::Result<()> + Send + Sync + 'static,
) -> Run {
    let disk = HookedDisk { inner: Arc::clone(run.disk()), hook: Arc::new(hook) };
    Run::open_read_only(Arc::new(disk), run.dir())
}

fn savers(run: &Run, world: usize) -> Vec<Saver> {
    ranks(world).into_iter().map(|own| Saver::new(run.clone(), own, SMALL, None)).collect()
}

fn begin(savers: &mut [Saver], id: CheckpointId, layout: &Layout) {
    for (rank, saver) in savers.iter_mut().enumerate() {
        let (buffers, _) = saver.buffers(Busy::Wait);
        saver.begin(snapshot(id, buffers.unwrap(), layout, rank));
    }
}

#[test]
fn several_ranks_commit_one_checkpoint_or_none() {
    let (_dir, run) = new_run();
    let layout = Layout::random(4, 3);
    // Which operation fails, on which name.
    let failing = Arc::new(Mutex::new(("", "")));
    let state = Arc::clone(&failing);
    let hooked = hooked(&run, move |operation, path| match *state.lock().unwrap() {
        (fails, name) if fails == operation && path.to_string_lossy().ends_with(name) => {
            Err(io::ErrorKind::StorageFull.into())
        }
        _ => Ok(()),
    });
    let mut savers = savers(&hooked, 3);
    let steps = [("", ""), ("sync", "rank-00002.data"), ("rename", "step-3.attempt-1"), ("", "")];
    for (step, fault) in (1..).zip(steps) {
        *failing.lock().unwrap() = fault;
        begin(&mut savers, id(step, 1), &layout);
        let outcomes: Vec<_> = savers.iter_mut().rev().map(|s| s.wait().unwrap()).collect();
        let guilty = match fault.0 {
            "" => None,
            "sync" => Some(2),
            _ => Some(0),
        };
        for (rank, outcome) in outcomes.into_iter().rev().enumerate() {
            match (guilty, outcome) {
                (None, Ok(saved)) => assert_eq!(saved.committed.is_some(), rank == 0),
                (Some(guilty), Err(Error::DiskFull { .. })) if guilty == rank => {}
                (Some(guilty), Err(Error::OtherRank { rank: named, problem })) => {
                    assert!(guilty != rank && named == Rank(guilty as u64), "{rank}: {named}");
                    assert!(problem.contains(fault.1), "{problem}");
                }
                (_, other) => panic!("step {step} rank {rank}: {other:?}"),
            }
        }
        let names = run.disk().list(&run.checkpoints_dir()).unwrap();
        assert!(names.iter().all(|name| !name.starts_with('.')), "step {step}: {names:?}");
    }
    assert_eq!(run.committed().unwrap(), [id(1, 1), id(4, 1)]);
    for step in [1, 4] {
        fixture::check(&open(&run, id(step, 1)).unwrap(), 2).unwrap();
    }
}

#[test]
fn no_rank_ends_a_save_before_it_is_committed() {
    let (_dir, run) = new_run();
    let (reached, is_held) = sync_channel(1);
    let (release, wait) = sync_channel(1);
    let wait = Mutex::new(wait);
    let held = hooked(&run, move |operation, _| {
        if operation == "rename" {
            reached.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
        }
        Ok(())
    });
    let mut savers = savers(&held, 3);
    begin(&mut savers, id(1, 1), &Layout::random(5, 3));
    // Rank 0 renames only when all have written, and then all still wait for it.
    is_held.recv().unwrap();
    assert!(savers.iter().all(Saver::in_flight));
    assert_eq!(run.committed().unwrap(), []);
    release.send(()).unwrap();
    savers[2].wait().unwrap().unwrap();
    assert_eq!(run.committed().unwrap(), [id(1, 1)]);
}

/// Loads what `rank` of `layout` holds, and nothing else.
fn load_part(reader: &Reader, layout: &Layout, rank: usize) -> Result<Buffers> {
    let tensors = fixture::tensors();
    let mut held: Buffers =
        layout.0[rank].iter().map(|&(_, _, _, len)| vec![f32::NAN; len as usize]).collect();
    let requests = layout.0[rank].iter().zip(&mut held).map(|(&(tensor, kind, start, _), out)| {
        Request { tensor: &tensors[tensor].name, kind, start, out: out.as_mut_slice() }
    });
    reader.load(requests.collect(), 2)?;
    Ok(held)
}

fn load_all(run: &Run, layout: &Layout) -> Vec<Result<Loaded<Buffers>>> {
    let load = |rank: usize, own: &mut Ranks| {
        run.load_latest(own, |reader| load_part(reader, layout, rank))
    };
    together(ranks(layout.0.len()), load).1
}

#[test]
fn any_number_of_ranks_load_what_any_number_wrote() {
    let (_dir, run) = new_run();
    for (seed, (wrote, read)) in (0..).zip([(1, 4), (4, 1), (3, 2), (2, 5), (5, 3)]) {
        let step = seed + 1;
        save(&run, id(step, 1), &Layout::random(seed, wrote)).unwrap();
        let layout = Layout::random(seed + 100, read);
        for (rank, loaded) in load_all(&run, &layout).into_iter().enumerate() {
            let (found, held) = loaded.unwrap().found.unwrap();
            assert_eq!(found, id(step, 1));
            for (&(tensor, kind, start, len), out) in layout.0[rank].iter().zip(&held) {
                assert_eq!(*out, values(tensor, kind, start..start + len, step));
            }
        }
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage_that_one_rank_meets_sends_all_to_the_one_before() {
    let (_dir, run) = new_run();
    let layout = Layout::random(1, 1);
    save(&run, id(1, 1), &layout).unwrap();
    save(&run, id(2, 1), &layout).unwrap();
    // Rank 0 reads the last piece, rank 1 all others; the first chunk is damaged.
    let pieces = layout.0[0].clone();
    let (rest, last) = pieces.split_at(pieces.len() - 1);
    let halves = Layout(vec![last.to_vec(), rest.to_vec()]);
    flip(&run.path(id(2, 1)).join("rank-00000.data"), 0);
    // Rank 0 does not read that chunk: alone it would not notice.
    load_part(&open(&run, id(2, 1)).unwrap(), &halves, 0).unwrap();
    for (rank, loaded) in load_all(&run, &halves).into_iter().enumerate() {
        let loaded = loaded.unwrap();
        assert_eq!(loaded.found.map(|(id, _)| id), Some(id(1, 1)), "rank {rank}");
        let [quarantined] = loaded.quarantined.as_slice() else { panic!("rank {rank}") };
        assert!(quarantined.problem.contains("rank-00000.data: chunk"), "{}", quarantined.problem);
        assert_eq!(quarantined.moved_to.is_some(), rank == 0);
    }
    assert_eq!(run.committed().unwrap(), [id(1, 1)]);
    // The only one that is left goes bad too.
    flip(&run.path(id(1, 1)).join("rank-00000.data"), 0);
    for loaded in load_all(&run, &halves) {
        assert!(matches!(loaded, Err(Error::NoneGood { .. })), "{loaded:?}");
    }
}

#[test]
fn a_rank_that_cannot_load_stops_all_and_nothing_is_set_aside() {
    let (_dir, run) = new_run();
    save(&run, id(1, 1), &Layout::random(1, 1)).unwrap();
    let (_, outcomes) = together(ranks(3), |rank, own| {
        let fails = || Error::io("reading", Path::new("rank-00000.data"), io::Error::other("I/O"));
        run.load_latest(own, |_| if rank == 1 { Err(fails()) } else { Ok(()) })
    });
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Err(Error::Io { .. }) if rank == 1 => {}
            Err(Error::OtherRank { rank: Rank(1), problem }) if rank != 1 => {
                assert!(problem.contains("I/O"), "{problem}");
            }
            other => panic!("rank {rank}: {other:?}"),
        }
    }
    assert_eq!(run.committed().unwrap(), [id(1, 1)]);
}

#[test]
fn ranks_that_lose_each_other_commit_nothing_and_remove_nothing() {
    let (_dir, run) = new_run();
    let layout = Layout::random(4, 2);
    let lost = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&lost);
    let all_gather = move |_: &[u8]| {
        state.store(true, Ordering::Relaxed);
        Err("rank 1 is gone".into())
    };
    let alone = Ranks::new(Rank(0), 2, Box::new(all_gather));
    let mut saver = Saver::new(run.clone(), alone, SMALL, None);
    saver.begin(snapshot(id(1, 1), Vec::new(), &layout, 0));
    let error = saver.wait().unwrap().unwrap_err();
    assert!(matches!(error, Error::Ranks { .. }) && lost.load(Ordering::Relaxed));
    assert!(error.to_string().contains("rank 1 is gone"), "{error}");
    // Rank 1 may still be writing: what is there stays until the next attempt sweeps.
    let names = run.disk().list(&run.checkpoints_dir()).unwrap();
    assert_eq!(names, [".step-1.attempt-1.tmp"]);
}
