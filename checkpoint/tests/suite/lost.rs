//! Files of a run directory are lost, cut or altered one at a time, as by a file system that crashed, a backup that is old or
//! a hand that tidied up: no checkpoint ever goes, and the run either goes on from its newest good one, or stops in words
//! until a repair lets it.

use super::crash_disk::CrashDisk;
use super::fixture::{self, Layout, id, new_run, open, save};
use lampyris_checkpoint::disk::{Access, Disk, read_whole};
use lampyris_checkpoint::report::{list, verify};
use lampyris_checkpoint::{CheckpointId, Error, Ranks, Result, Retention, Run};
use lampyris_plan::Attempt;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const RUN: &str = "/run";
const LINEAGE: &str = "/run/lineage.jsonl";
const KEEP_ALL: Retention = Retention { last: 1000, every_steps: 0, best: false };

/// The checkpoints of [`played`] that a start may load, best first. Besides them there is step 12 of attempt 1, which
/// attempt 2 left behind.
const PATH: [(u64, u64); 6] = [(30, 3), (25, 3), (20, 2), (15, 2), (10, 1), (5, 1)];

/// A run of three attempts.
fn played() -> CrashDisk {
    let disk = CrashDisk::new();
    disk.create_dir(Path::new(RUN)).unwrap();
    let run = Run::open(Arc::new(disk.clone()), Path::new(RUN)).unwrap();
    let attempts: [(Option<CheckpointId>, &[u64]); 3] =
        [(None, &[5, 10, 12]), (Some(id(10, 1)), &[15, 20]), (Some(id(20, 2)), &[25, 30])];
    for (parent, steps) in attempts {
        let attempt = run.claim_next().unwrap();
        run.record(attempt, parent).unwrap();
        put(&disk, &Path::new(RUN).join(format!("attempts/{attempt}.json")), b"{}");
        for &step in steps {
            save(&run, id(step, attempt.0), &Layout::random(step, 2)).unwrap();
        }
    }
    disk
}

fn put(disk: &CrashDisk, path: &Path, content: &[u8]) {
    disk.remove_file(path).ok();
    disk.create(path, Access::Plain).unwrap().write_at(0, content).unwrap();
}

fn files(disk: &CrashDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::from(RUN)];
    while let Some(folder) = folders.pop() {
        for name in disk.list(&folder).unwrap() {
            let path = folder.join(name);
            match disk.list(&path) {
                Ok(_) => folders.push(path),
                Err(_) => {
                    files.insert(path.clone(), read_whole(disk, &path, 1 << 20).unwrap());
                }
            }
        }
    }
    files
}

/// Checkpoints by name, those set aside included.
fn checkpoints(disk: &CrashDisk) -> Vec<CheckpointId> {
    let names = disk.list(&Path::new(RUN).join("checkpoints")).unwrap();
    let ids = names.iter().filter_map(|name| name.trim_start_matches("quarantine.").parse().ok());
    ids.collect()
}

/// Starts as a rank does, saves once more and prunes; which attempt it was, and what it began from.
fn go_on(disk: &CrashDisk) -> Result<(Attempt, Option<CheckpointId>)> {
    let run = Run::open(Arc::new(disk.clone()), Path::new(RUN))?;
    let attempt = run.claim_next()?;
    let loaded = run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1))?.found;
    let loaded = loaded.map(|(id, ())| id);
    run.record(attempt, loaded)?;
    let saved = id(40, attempt.0);
    save(&run, saved, &Layout::random(1, 2))?;
    let pruned = run.prune(KEEP_ALL, Some(attempt), false)?;
    assert!(pruned.removed.iter().all(|gone| *gone == id(12, 1)), "{pruned:?}");
    assert_eq!(Run::open(Arc::new(disk.clone()), Path::new(RUN))?.to_load()?[0], saved);
    Ok((attempt, loaded))
}

fn repair(disk: &CrashDisk, dry_run: bool) -> Result<lampyris_checkpoint::Repaired> {
    Run::open_read_only(Arc::new(disk.clone()), Path::new(RUN)).repair(1, dry_run)
}

/// What may become of the bytes of a file; none = it is gone.
fn damages(path: &Path, bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
    let length = bytes.len();
    let mut all = vec![None];
    let cuts =
        if path == Path::new(LINEAGE) { (0..length).collect() } else { vec![0, 1, length / 2] };
    all.extend(cuts.into_iter().filter(|&cut| cut < length).map(|cut| Some(bytes[..cut].to_vec())));
    if length > 0 {
        all.push(Some(vec![0; length]));
        all.push(Some(bytes[1..].to_vec()));
        all.push(Some([bytes, b"garbage\n"].concat()));
    }
    for flip in (0..8).map(|eighth| length * eighth / 8).filter(|&at| at < length) {
        let mut flipped = bytes.to_vec();
        flipped[flip] ^= 1 << (flip % 7);
        all.push(Some(flipped));
    }
    if path == Path::new(LINEAGE) {
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
        for skipped in 0..lines.len() {
            let kept = lines.iter().enumerate().filter(|(at, _)| *at != skipped);
            all.push(Some(kept.map(|(_, line)| *line).collect::<Vec<_>>().concat()));
        }
    }
    all
}

/// Under the new name the records say that a newer attempt superseded it.
#[test]
fn a_checkpoint_under_the_name_of_a_superseded_one_is_not_deleted() {
    let disk = played();
    let all = Path::new(RUN).join("checkpoints");
    let renamed = id(22, 2);
    disk.rename_noreplace(&all.join(id(30, 3).to_string()), &all.join(renamed.to_string()))
        .unwrap();
    let run = Run::open(Arc::new(disk.clone()), Path::new(RUN)).unwrap();
    let pruned = run.prune(KEEP_ALL, None, false).unwrap();
    assert_eq!(pruned.removed, [id(12, 1)]);
    assert!(checkpoints(&disk).contains(&renamed));
}

#[test]
fn whatever_file_is_lost_or_damaged_no_checkpoint_vanishes_and_the_newest_good_one_goes_on() {
    let whole = played();
    let (mut tried, mut stopped) = (0, 0);
    for (path, bytes) in files(&whole) {
        let is_newest = path.starts_with("/run/checkpoints/step-30.attempt-3");
        let newest_good = PATH[usize::from(is_newest)];
        for damage in damages(&path, &bytes) {
            let disk = whole.copy();
            match &damage {
                None => disk.remove_file(&path).unwrap(),
                Some(content) => put(&disk, &path, content),
            }
            let what = || {
                format!(
                    "{} as {:?}",
                    path.display(),
                    damage.as_deref().map(String::from_utf8_lossy)
                )
            };
            let before = files(&disk);
            let found = match go_on(&disk) {
                Ok((_, found)) => found,
                Err(Error::Lineage { .. }) => {
                    let after = files(&disk);
                    assert!(
                        before.iter().all(|file| after.get(file.0) == Some(file.1)),
                        "{}",
                        what()
                    );
                    stopped += 1;
                    let repaired = repair(&disk, false).unwrap();
                    assert_eq!(
                        repaired.adopted,
                        Some(id(newest_good.0, newest_good.1)),
                        "{}",
                        what()
                    );
                    go_on(&disk).unwrap_or_else(|e| panic!("{}: {e}", what())).1
                }
                Err(e) => panic!("{}: {e}", what()),
            };
            assert_eq!(found, Some(id(newest_good.0, newest_good.1)), "{}", what());
            let left = checkpoints(&disk);
            assert!(
                PATH.iter().all(|&(step, attempt)| left.contains(&id(step, attempt))),
                "{}",
                what()
            );
            tried += 1;
        }
    }
    assert!(tried > 400 && stopped > 50, "{tried} {stopped}");
}

#[test]
fn a_copy_without_its_empty_files_goes_on_under_the_next_number() {
    let disk = played();
    for (path, bytes) in files(&disk) {
        if bytes.is_empty() {
            disk.remove_file(&path).unwrap();
        }
    }
    assert_eq!(go_on(&disk).unwrap(), (Attempt(4), Some(id(30, 3))));
    // And without the folder, by the records alone.
    let disk = played();
    for path in files(&disk).into_keys().filter(|path| path.starts_with("/run/attempts")) {
        disk.remove_file(&path).unwrap();
    }
    disk.remove_dir(Path::new("/run/attempts")).unwrap();
    assert_eq!(go_on(&disk).unwrap(), (Attempt(4), Some(id(30, 3))));
}

#[test]
fn numbers_that_no_attempt_has_are_refused_in_words() {
    for (name, number) in [
        ("attempts/18446744073709551615", "18446744073709551615"),
        ("attempts/99999999999999999999999", "99999999999999999999999"),
        ("attempts/4294967295", "4294967295"),
        ("attempts/4294967295.json", "4294967295"),
        ("checkpoints/.step-1.attempt-4294967295.tmp", "4294967295"),
    ] {
        let disk = played();
        put(&disk, &Path::new(RUN).join(name), b"");
        let before = files(&disk);
        let error = go_on(&disk).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(number), "{name}: {error}");
        assert_eq!(files(&disk), before);
    }
    let disk = played();
    for name in ["abc", "5.tmp", "-6", "77.json"] {
        put(&disk, &Path::new(RUN).join("attempts").join(name), b"");
    }
    assert_eq!(go_on(&disk).unwrap().0, Attempt(78));
}

#[test]
fn an_attempt_that_is_not_the_newest_neither_claims_records_nor_commits() {
    let disk = played();
    let run = Run::open(Arc::new(disk.clone()), Path::new(RUN)).unwrap();
    // As if its file had been tidied away.
    disk.remove_file(Path::new("/run/attempts/2")).unwrap();
    let by_three = |outcome: Result<()>| {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("superseded by attempt 3"), "{error}");
    };
    by_three(run.claim(Attempt(2)));
    by_three(run.record(Attempt(2), Some(id(10, 1))));
    by_three(save(&run, id(50, 2), &Layout::random(1, 1)).map(drop));
    let taken = run.claim(Attempt(3)).unwrap_err();
    assert!(matches!(taken, Error::AttemptTaken { .. }), "{taken}");
    let twice = run.record(Attempt(3), Some(id(25, 3))).unwrap_err();
    assert!(matches!(twice, Error::Lineage { .. }), "{twice}");
    let twice = run.record(Attempt(3), None).unwrap_err().to_string();
    assert!(twice.contains("attempt 3 began from step-20.attempt-2, and from nothing"), "{twice}");
}

#[test]
fn a_repair_adopts_the_newest_good_checkpoint_whatever_the_records_say() {
    // A record of an attempt that is not there.
    let disk = played();
    let mut text = files(&disk)[Path::new(LINEAGE)].clone();
    text.extend(b"{\"attempt\":9,\"parent\":null}\n");
    put(&disk, Path::new(LINEAGE), &text);
    let error = go_on(&disk).unwrap_err().to_string();
    assert!(
        error.contains("attempt 9 began without any of its checkpoints: step-30.attempt-3"),
        "{error}"
    );
    assert!(error.contains("`lampyris checkpoint repair /run`"), "{error}");
    let before = files(&disk);
    let planned = repair(&disk, true).unwrap();
    assert_eq!(files(&disk), before, "a dry run touches nothing");
    let repaired = repair(&disk, false).unwrap();
    assert_eq!((&planned.records, planned.adopted), (&repaired.records, repaired.adopted));
    let last = repaired.records.last().unwrap();
    assert_eq!((last.attempt, last.parent), (Attempt(10), Some(id(30, 3))));
    let old = PathBuf::from("/run/lineage.jsonl.before-repair-1");
    assert_eq!((&files(&disk)[&old], repaired.old_file), (&text, Some(old)));
    assert_eq!(go_on(&disk).unwrap(), (Attempt(11), Some(id(30, 3))));
    let again = repair(&disk, false).unwrap();
    assert_eq!((again.changed, again.adopted, again.old_file), (false, Some(id(40, 11)), None));
}

#[test]
fn a_repair_of_what_is_in_order_changes_nothing() {
    let disk = played();
    let run = Run::open(Arc::new(disk.clone()), Path::new(RUN)).unwrap();
    // The newest attempt began before the newest checkpoint, for a reason that is its own.
    let attempt = run.claim_next().unwrap();
    run.record(attempt, Some(id(25, 3))).unwrap();
    let before = files(&disk);
    let repaired = repair(&disk, false).unwrap();
    assert_eq!((repaired.changed, repaired.adopted), (false, Some(id(25, 3))));
    assert_eq!(files(&disk), before);
    // Nor does retention take what it has not overtaken.
    let keep_one = Retention { last: 1, every_steps: 0, best: false };
    assert!(run.prune(keep_one, None, false).unwrap().kept.contains(&id(30, 3)));
}

#[test]
fn a_repair_sets_aside_what_fits_nowhere() {
    // Nothing tells any more where attempt 2 began.
    let disk = played();
    for (path, _) in files(&disk) {
        if path.to_string_lossy().contains(".attempt-2/") {
            disk.remove_file(&path).unwrap();
        }
    }
    for step in [15, 20] {
        disk.remove_dir(&Path::new(RUN).join(format!("checkpoints/step-{step}.attempt-2")))
            .unwrap();
    }
    let whole = disk.copy();
    put(&disk, Path::new(LINEAGE), b"");
    let error = go_on(&disk).unwrap_err().to_string();
    assert!(error.contains("no record in lineage.jsonl says where step-30.attempt-3"), "{error}");
    let repaired = repair(&disk, false).unwrap();
    let aside: Vec<CheckpointId> = repaired.set_aside.iter().map(|aside| aside.id).collect();
    assert_eq!(aside, [id(5, 1), id(10, 1), id(12, 1)]);
    assert_eq!(go_on(&disk).unwrap().1, Some(id(30, 3)));
    assert!(aside.iter().all(|aside| checkpoints(&disk).contains(aside)));
    // The line of the old file tells it, though another one is damaged.
    let text = files(&whole)[Path::new(LINEAGE)].clone();
    let text = String::from_utf8(text).unwrap().replace("{\"attempt\":3", "[\"attempt\":3");
    put(&whole, Path::new(LINEAGE), text.as_bytes());
    let error = go_on(&whole).unwrap_err().to_string();
    assert!(error.contains("lineage.jsonl, line 3: it is damaged"), "{error}");
    let repaired = repair(&whole, false).unwrap();
    assert_eq!((repaired.set_aside, repaired.records.len()), (vec![], 3));
    assert_eq!(go_on(&whole).unwrap().1, Some(id(30, 3)));
}

#[test]
fn a_repair_refuses_what_it_cannot_decide() {
    // Two runs were copied over each other.
    let disk = played();
    let other = Run::open(Arc::new(disk.clone()), Path::new(RUN)).unwrap();
    put(&disk, Path::new(LINEAGE), b"{\"attempt\":3,\"parent\":{\"step\":10,\"attempt\":1}}\n");
    save(&other, id(50, 3), &Layout::random(1, 1)).unwrap();
    let error = repair(&disk, false).unwrap_err().to_string();
    assert!(error.contains("checkpoints are of two runs"), "{error}");
    assert!(error.contains("step-20.attempt-2") && error.contains("step-10.attempt-1"), "{error}");

    // Nothing is left, and the records say that there was something.
    let disk = played();
    for path in files(&disk).into_keys().filter(|path| path.starts_with("/run/checkpoints")) {
        disk.remove_file(&path).unwrap();
    }
    for step in checkpoints(&disk) {
        disk.remove_dir(&Path::new(RUN).join(format!("checkpoints/{step}"))).unwrap();
    }
    for error in [go_on(&disk).unwrap_err(), repair(&disk, false).unwrap_err()] {
        assert!(matches!(error, Error::NoneGood { .. }), "{error}");
        assert!(
            error.to_string().contains("step-20.attempt-2, from which attempt 3 began"),
            "{error}"
        );
    }
}

#[test]
fn a_run_whose_checkpoints_were_all_set_aside_does_not_start_over_later_either() {
    let (_dir, run) = new_run();
    save(&run, id(1, 1), &Layout::random(1, 1)).unwrap();
    std::fs::remove_file(run.path(id(1, 1)).join("manifest.json")).unwrap();
    for _ in 0..2 {
        let error = run.load_latest(&mut Ranks::alone(), |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::NoneGood { .. }), "{error}");
    }
    assert!(list(&run).unwrap().problem.unwrap().contains("quarantine.step-1.attempt-1"));
}

#[test]
fn a_checkpoint_under_another_ones_name_is_set_aside() {
    let (_dir, run) = new_run();
    save(&run, id(10, 1), &Layout::random(1, 2)).unwrap();
    let copy = || {
        std::fs::create_dir(run.path(id(50, 1))).unwrap();
        for file in std::fs::read_dir(run.path(id(10, 1))).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), run.path(id(50, 1)).join(file.file_name())).unwrap();
        }
    };
    for number in 0..3 {
        copy();
        let verified = verify(Arc::clone(run.disk()), &run.path(id(50, 1)), 1).unwrap();
        assert!(verified.problems[0].contains("it is of step-10.attempt-1"), "{verified:?}");
        let listed = list(&run).unwrap().checkpoints.pop().unwrap();
        assert_eq!((listed.id, listed.problem), (id(50, 1), Some(verified.problems[0].clone())));
        let loaded =
            run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1)).unwrap();
        assert_eq!(loaded.found.map(|(id, ())| id), Some(id(10, 1)));
        // Put back again and again, it is set aside under further names.
        assert_eq!(list(&run).unwrap().quarantined.len(), number + 1);
    }
}

/// Puts something else than a file of a sane size in its place.
type Special = (&'static str, fn(&Path));

const SPECIALS: [Special; 4] = [
    ("a named pipe", |path| {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }),
    ("a symbolic link", |path| std::os::unix::fs::symlink("elsewhere", path).unwrap()),
    ("a folder", |path| std::fs::create_dir(path).unwrap()),
    ("214748364800 bytes", |path| {
        std::fs::File::create(path).unwrap().set_len(200 << 30).unwrap();
    }),
];

#[test]
fn what_is_no_file_of_a_sane_size_is_damage_and_nobody_waits_for_it() {
    for (words, special) in SPECIALS {
        for file in ["manifest.json", "rank-00000.index.json", "rank-00001.data"] {
            let (_dir, run) = new_run();
            save(&run, id(1, 1), &Layout::random(1, 2)).unwrap();
            save(&run, id(2, 1), &Layout::random(1, 2)).unwrap();
            let path = run.path(id(2, 1)).join(file);
            std::fs::rename(&path, run.path(id(2, 1)).join("elsewhere")).unwrap();
            special(&path);
            let error = open(&run, id(2, 1)).unwrap_err();
            assert!(error.is_corrupt() && error.to_string().contains(words), "{file}: {error}");
            let loaded =
                run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1)).unwrap();
            assert_eq!(loaded.found.map(|(id, ())| id), Some(id(1, 1)), "{file}: {words}");
        }
        // The same in the place of the records, which a repair replaces.
        let (dir, run) = new_run();
        save(&run, id(1, 1), &Layout::random(1, 2)).unwrap();
        let path = dir.path().join("lineage.jsonl");
        std::fs::remove_file(&path).unwrap();
        special(&path);
        let error = run.to_load().unwrap_err();
        assert!(matches!(error, Error::Lineage { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(run.repair(1, false).unwrap().adopted, Some(id(1, 1)));
        assert_eq!(run.to_load().unwrap(), [id(1, 1)]);
        // Before the first checkpoint too.
        std::fs::remove_dir_all(run.path(id(1, 1))).unwrap();
        std::fs::remove_file(&path).unwrap();
        special(&path);
        assert_eq!(run.repair(1, false).unwrap().adopted, None);
        assert_eq!(run.to_load().unwrap(), []);
    }
    // A file in the place of a checkpoint.
    let (_dir, run) = new_run();
    save(&run, id(1, 1), &Layout::random(1, 2)).unwrap();
    std::fs::write(run.path(id(2, 1)), "").unwrap();
    let loaded = run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1)).unwrap();
    assert_eq!(loaded.found.map(|(id, ())| id), Some(id(1, 1)));
}
