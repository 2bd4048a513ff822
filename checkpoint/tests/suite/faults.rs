//! The disk fails, is full, or cannot be written: a clear error, and nothing that was safe is lost.

use super::crash_disk::CrashDisk;
use super::fixture::{self, Layout, id, save};
use super::hooked_disk::HookedDisk;
use lampyris_checkpoint::disk::{Disk, RealDisk};
use lampyris_checkpoint::{Error, Ranks, Run};
use lampyris_plan::Attempt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A run whose operations are counted; the one numbered `fail_at` fails with `kind`.
fn run_failing_at(
    disk: &CrashDisk,
    fail_at: usize,
    kind: io::ErrorKind,
) -> (Run, Arc<AtomicUsize>) {
    let counter = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&counter);
    let hook = move |_: &'static str, _: &Path| {
        if count.fetch_add(1, Ordering::Relaxed) == fail_at { Err(kind.into()) } else { Ok(()) }
    };
    let disk = HookedDisk { inner: Arc::new(disk.clone()), hook: Arc::new(hook) };
    (Run::open_read_only(Arc::new(disk), Path::new("/run")), counter)
}

fn run_with_one_checkpoint() -> CrashDisk {
    let disk = CrashDisk::new();
    disk.create_dir(Path::new("/run")).unwrap();
    let run = Run::open(Arc::new(disk.clone()), Path::new("/run")).unwrap();
    let attempt = run.claim_next().unwrap();
    run.record(attempt, None).unwrap();
    save(&run, id(10, 1), &Layout::random(1, 2)).unwrap();
    disk
}

#[test]
fn whichever_operation_of_a_save_fails_earlier_checkpoints_stay_and_later_saves_work() {
    let layout = Layout::random(2, 2);
    let (run, counter) =
        run_failing_at(&run_with_one_checkpoint(), usize::MAX, io::ErrorKind::Other);
    save(&run, id(20, 1), &layout).unwrap();
    let operations = counter.load(Ordering::Relaxed);
    assert!(operations > 20, "{operations}");
    let kinds = [
        (io::ErrorKind::StorageFull, "no space left while"),
        (io::ErrorKind::ReadOnlyFilesystem, "no permission while"),
        (io::ErrorKind::Other, "/run/checkpoints"),
    ];
    for fail_at in 0..operations {
        for (kind, words) in kinds {
            let disk = run_with_one_checkpoint();
            let (run, _) = run_failing_at(&disk, fail_at, kind);
            let error = save(&run, id(20, 1), &layout).unwrap_err().to_string();
            assert!(error.contains(words), "{fail_at}: {error}");
            assert!(error.contains("/run/checkpoints"), "{fail_at}: {error}");
            run.abandon(id(20, 1));
            let run = Run::open(Arc::new(disk), Path::new("/run")).unwrap();
            let loaded =
                run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1)).unwrap();
            let found = loaded.found.map(|(id, ())| id);
            // Only the last operation, the sync of the rename, fails after the fact.
            let expected = if fail_at + 1 == operations { id(20, 1) } else { id(10, 1) };
            assert_eq!((found, loaded.quarantined.len()), (Some(expected), 0), "{fail_at}");
            save(&run, id(30, 1), &layout).unwrap();
            assert!(run.names_are_clean(), "{fail_at}");
        }
    }
}

/// Whether no unfinished folder is left.
trait Clean {
    fn names_are_clean(&self) -> bool;
}

impl Clean for Run {
    fn names_are_clean(&self) -> bool {
        let names = self.disk().list(&self.checkpoints_dir()).unwrap();
        names.iter().all(|name| !name.starts_with('.'))
    }
}

/// A tmpfs of 2 MB, unmounted on drop.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Option<Tmpfs> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "lampyris-test"])
            .arg(dir.path())
            .output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Tmpfs(dir));
        }
        eprintln!("skipped: mounting a tmpfs needs root");
        None
    }

    fn remount_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(self.0.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}

#[test]
fn a_full_and_then_read_only_disk_says_so_and_loses_nothing() {
    let Some(tmpfs) = Tmpfs::mount() else { return };
    let run = Run::open(Arc::new(RealDisk), tmpfs.0.path()).unwrap();
    assert_eq!(run.claim_next().unwrap(), Attempt(1));
    run.record(Attempt(1), None).unwrap();
    let layout = Layout::random(1, 2);
    let mut saved = 0;
    let error = loop {
        match save(&run, id(saved + 1, 1), &layout) {
            Ok(_) => saved += 1,
            Err(e) => break e,
        }
        assert!(saved < 1000, "2 MB never fill up");
    };
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    let path: PathBuf = run.checkpoints_dir().join(format!(".step-{}.attempt-1.tmp", saved + 1));
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    run.abandon(id(saved + 1, 1));
    assert!(saved > 10 && run.names_are_clean());
    let newest = || {
        let loaded =
            run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 2)).unwrap();
        loaded.found.map(|(id, ())| id)
    };
    assert_eq!(newest(), Some(id(saved, 1)));

    tmpfs.remount_read_only();
    let error = save(&run, id(saved + 2, 1), &layout).unwrap_err();
    assert!(matches!(error, Error::NotWritable { .. }), "{error}");
    assert_eq!(newest(), Some(id(saved, 1)));
    // Damage on a read-only disk is reported and passed over, though it cannot be set aside.
    let reader = |reader: &lampyris_checkpoint::Reader| match reader.manifest().id {
        newest if newest == id(saved, 1) => Err(Error::Corrupt {
            dir: reader.dir().to_path_buf(),
            file: "rank-00000.data".to_string(),
            problem: "as if".to_string(),
        }),
        _ => fixture::check(reader, 1),
    };
    let loaded = run.load_latest(&mut Ranks::alone(), reader).unwrap();
    assert_eq!(loaded.found.map(|(id, ())| id), Some(id(saved - 1, 1)));
    assert_eq!(loaded.quarantined[0].moved_to, None);
}
