//! Saving and loading: any layout reads any layout, damage is named, nothing good is lost.

use super::fixture::{
    self, Layout, Random, id, meta, new_run, open, run_in_memory, save, values, write_rank,
};
use lampyris_checkpoint::disk::Access;
use lampyris_checkpoint::report::{diff, list, show, verify};
use lampyris_checkpoint::{CheckpointId, Error, Kind, Ranks, Request, Retention, Run};
use lampyris_plan::Attempt;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Contents of all files of a checkpoint but the manifest, which holds the time.
fn payload(run: &Run, id: CheckpointId) -> BTreeMap<String, Vec<u8>> {
    let (disk, dir) = (run.disk(), run.path(id));
    let read = |name: String| {
        let file = disk.open(&dir.join(&name), Access::Plain).unwrap();
        let mut bytes = vec![0; file.length().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        (name, bytes)
    };
    let mut files: BTreeMap<_, _> = disk.list(&dir).unwrap().into_iter().map(read).collect();
    files.remove("manifest.json").unwrap();
    files
}

#[test]
fn any_layout_reads_any_layout() {
    let run = run_in_memory();
    for seed in 0..20 {
        let layout = Layout::random(seed, 1 + seed as usize % 5);
        let id = id(seed, 1);
        save(&run, id, &layout).unwrap();
        let reader = open(&run, id).unwrap();
        fixture::check(&reader, 1 + seed as usize % 3).unwrap();
        // Another layout's pieces, one request each.
        let other = Layout::random(seed + 1000, 4);
        let tensors = fixture::tensors();
        for rank in &other.0 {
            let mut held: Vec<_> = rank
                .iter()
                .map(|&(tensor, kind, start, len)| {
                    (tensor, kind, start, vec![f32::NAN; len as usize])
                })
                .collect();
            let requests = held
                .iter_mut()
                .map(|(tensor, kind, start, out)| Request {
                    tensor: &tensors[*tensor].name,
                    kind: *kind,
                    start: *start,
                    out: out.as_mut_slice(),
                })
                .collect();
            reader.load(requests, 2).unwrap();
            for (tensor, kind, start, found) in held {
                let expected = values(tensor, kind, start..start + found.len() as u64, seed);
                assert_eq!(found, expected);
            }
        }
    }
}

#[test]
fn round_trips_through_twenty_layouts_keep_every_byte() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let (a, b) = (1 + random.below(6) as usize, 1 + random.below(6) as usize);
        let layout_a = Layout::random(random.next(), a);
        let layout_b = Layout::random(random.next(), b);
        let run = run_in_memory();
        save(&run, id(7, 1), &layout_a).unwrap();
        let second = resave(&run, id(7, 1), 2, &layout_b);
        let third = resave(&run, second, 3, &layout_a);
        assert_eq!(payload(&run, id(7, 1)), payload(&run, third), "{a} -> {b} -> {a}");
        let (one, three) = (open(&run, id(7, 1)).unwrap(), open(&run, third).unwrap());
        assert_eq!(one.manifest().shards, three.manifest().shards);
        assert_eq!(one.manifest().tensors, three.manifest().tensors);
        assert_eq!(one.manifest().state, three.manifest().state);
    }
}

/// Loads `from` as `layout` and saves that as attempt `attempt`.
fn resave(run: &Run, from: CheckpointId, attempt: u64, layout: &Layout) -> CheckpointId {
    run.claim(Attempt(attempt)).unwrap();
    run.record(Attempt(attempt), Some(from)).unwrap();
    let reader = open(run, from).unwrap();
    let to = id(from.step.0, attempt);
    let tensors = fixture::tensors();
    let mut reports = Vec::new();
    for (rank, held) in layout.0.iter().enumerate() {
        let loaded: Vec<_> = held
            .iter()
            .map(|&(tensor, kind, start, len)| {
                let mut data = vec![0.0; len as usize];
                reader.read(&tensors[tensor].name, kind, start, &mut data).unwrap();
                (&tensors[tensor].name, kind, start, data)
            })
            .collect();
        let pieces: Vec<_> = loaded
            .iter()
            .map(|(tensor, kind, start, data)| lampyris_checkpoint::Piece {
                tensor,
                kind: *kind,
                start: *start,
                data,
            })
            .collect();
        let rank = lampyris_plan::Rank(rank as u64);
        reports.push(run.write_shard(to, rank, &pieces, fixture::SMALL).unwrap());
    }
    run.commit(&meta(to), &reports).unwrap();
    to
}

#[test]
fn asking_for_what_was_not_saved_is_an_error() {
    let (_dir, run) = new_run();
    save(&run, id(1, 1), &Layout::random(1, 2)).unwrap();
    let reader = open(&run, id(1, 1)).unwrap();
    let mut out = vec![0.0; 10];
    let not_saved = |result: Result<(), Error>| matches!(result, Err(Error::NotSaved { .. }));
    assert!(not_saved(reader.read("ghost", Kind::Weight, 0, &mut out)));
    assert!(not_saved(reader.read("model.norm.weight", Kind::GateBias, 0, &mut out[..1])));
    assert!(not_saved(reader.read(
        "model.layers.0.input_layernorm.weight",
        Kind::Weight,
        25,
        &mut out
    )));
    reader.read("model.layers.0.input_layernorm.weight", Kind::Weight, 21, &mut out).unwrap();
}

#[test]
fn an_incomplete_checkpoint_is_not_committed() {
    let (_dir, run) = new_run();
    let layout = Layout::random(3, 2);
    let attempt = |change: &dyn Fn(&mut Layout)| {
        let mut changed = layout.clone();
        change(&mut changed);
        let result = save(&run, id(1, 1), &changed);
        run.abandon(id(1, 1));
        match result {
            Err(Error::Incomplete { problem }) => problem,
            other => panic!("{other:?}"),
        }
    };
    let missing = attempt(&|layout| {
        layout.0[0].remove(0);
    });
    assert!(missing.contains("written by no rank") || missing.contains("of"), "{missing}");
    let twice = attempt(&|layout| {
        let piece = layout.0[0][0];
        layout.0[1].push(piece);
    });
    assert!(twice.contains("written twice"), "{twice}");
    let unknown = attempt(&|layout| layout.0[0].push((4, Kind::Weight, 0, 8)));
    assert!(unknown.contains("in no list"), "{unknown}");
    let stale = [0, 1].map(|rank| write_rank(&run, id(1, 1), rank, &layout).unwrap());
    let error = run.commit(&meta(id(2, 1)), &stale).unwrap_err().to_string();
    assert!(error.contains("rank 0 reported step-1.attempt-1, not step-2.attempt-1"), "{error}");
    // As if rank 1 ran on a node with another file system.
    std::fs::remove_file(run.checkpoints_dir().join(".step-1.attempt-1.tmp/rank-00001.data"))
        .unwrap();
    let error = run.commit(&meta(id(1, 1)), &stale).unwrap_err().to_string();
    assert!(error.contains("rank-00001.data, which rank 1 wrote, is missing"), "{error}");
    assert_eq!(run.committed().unwrap(), []);
    save(&run, id(1, 1), &layout).unwrap();
    assert!(matches!(save(&run, id(1, 1), &layout), Err(Error::Exists { .. })));
}

/// One way to damage a file of a checkpoint.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 13] = [
    ("rank-00000.index.json", tear),
    ("rank-00000.data", tear),
    ("rank-00001.data", |path| lose_sector(path, 4096)),
    ("rank-00000.data", |path| lose_sector(path, 0)),
    ("rank-00000.data", |path| flip(path, 5000)),
    ("rank-00001.data", |path| flip(path, 0)),
    ("rank-00001.data", |path| cut(path, 4096)),
    ("rank-00000.data", |path| std::fs::remove_file(path).unwrap()),
    ("rank-00000.index.json", |path| flip(path, 40)),
    ("rank-00001.index.json", |path| cut(path, 10)),
    ("manifest.json", |path| flip(path, 200)),
    ("manifest.json", |path| cut(path, 1)),
    ("manifest.json", |path| std::fs::remove_file(path).unwrap()),
];

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// As if the second half had never reached the disk.
fn tear(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0);
    std::fs::write(path, bytes).unwrap();
}

/// As if one sector in the middle of a file that is otherwise whole had never reached the disk.
fn lose_sector(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at..at + 512].fill(0);
    std::fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

#[test]
fn damage_is_named_set_aside_and_the_one_before_is_used() {
    for (file, damage) in DAMAGES {
        let (_dir, run) = new_run();
        for step in [10, 20, 30] {
            save(&run, id(step, 1), &Layout::random(step, 2)).unwrap();
        }
        damage(&run.path(id(30, 1)).join(file));
        let verified = verify(Arc::clone(run.disk()), &run.path(id(30, 1)), 2).unwrap();
        let problems: Vec<String> = verified.problems.iter().map(ToString::to_string).collect();
        assert!(!problems.is_empty(), "{file}: the damage is not seen");
        assert!(problems.iter().all(|problem| problem.contains(file)), "{file}: {problems:?}");
        let loaded =
            run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 2)).unwrap();
        assert_eq!(loaded.found.map(|(id, ())| id), Some(id(20, 1)), "{file}");
        let [quarantined] = loaded.quarantined.as_slice() else { panic!("{file}") };
        assert!(quarantined.problem.contains("step-30.attempt-1"), "{}", quarantined.problem);
        assert!(quarantined.problem.contains(file), "{}", quarantined.problem);
        let moved = quarantined.moved_to.as_ref().unwrap();
        assert!(std::fs::read_to_string(moved.join("quarantine.json")).unwrap().contains(file));
        assert_eq!(run.committed().unwrap(), [id(10, 1), id(20, 1)]);
        assert_eq!(list(&run).unwrap().quarantined, ["quarantine.step-30.attempt-1"]);
    }
}

#[test]
fn a_flipped_bit_names_chunk_and_tensors() {
    let (_dir, run) = new_run();
    save(&run, id(1, 1), &Layout::random(1, 1)).unwrap();
    flip(&run.path(id(1, 1)).join("rank-00000.data"), 4100);
    let problem = fixture::check(&open(&run, id(1, 1)).unwrap(), 1).unwrap_err().to_string();
    assert!(problem.contains("chunk 1 (bytes 4096..8192: model.embed_tokens.weight"), "{problem}");
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_does_not_start_over() {
    let (_dir, run) = new_run();
    assert!(run.load_latest(&mut Ranks::alone(), |_| Ok(())).unwrap().found.is_none());
    save(&run, id(1, 1), &Layout::random(1, 1)).unwrap();
    flip(&run.path(id(1, 1)).join("rank-00000.data"), 0);
    let problem = run
        .load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 1))
        .unwrap_err()
        .to_string();
    assert!(problem.contains("no good checkpoint left"), "{problem}");
    assert!(problem.contains("rank-00000.data"), "{problem}");
}

#[test]
fn a_newer_format_is_refused_and_not_quarantined() {
    let (_dir, run) = new_run();
    save(&run, id(1, 1), &Layout::random(1, 1)).unwrap();
    let path = run.path(id(1, 1)).join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let sealed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut body = sealed["body"].clone();
    body["format"] = 2.into();
    let body = body.to_string();
    let checksum = lampyris_checkpoint::format::Checksum::of(body.as_bytes());
    std::fs::write(&path, format!("{{\"xxh3\":\"{checksum}\",\"body\":{body}}}")).unwrap();
    let error = run.load_latest(&mut Ranks::alone(), |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, .. }), "{error}");
    assert_eq!(run.committed().unwrap(), [id(1, 1)]);
}

#[test]
fn a_superseded_attempt_commits_nothing_and_is_never_chosen() {
    let (_dir, run) = new_run();
    let layout = Layout::random(1, 2);
    save(&run, id(10, 1), &layout).unwrap();
    // Attempt 1 hangs in the middle of a save; attempt 2 takes over.
    let reports = [0, 1].map(|rank| write_rank(&run, id(20, 1), rank, &layout).unwrap());
    assert_eq!(run.claim_next().unwrap(), Attempt(2));
    assert!(matches!(run.claim(Attempt(2)), Err(Error::AttemptTaken { .. })));
    let late = run.commit(&meta(id(20, 1)), &reports);
    assert!(matches!(late, Err(Error::Superseded { attempt: Attempt(1), by: Attempt(2) })));
    let unrecorded = save(&run, id(11, 2), &layout);
    assert!(matches!(unrecorded, Err(Error::NotRecorded { attempt: Attempt(2) })));
    run.record(Attempt(2), Some(id(10, 1))).unwrap();
    save(&run, id(12, 2), &layout).unwrap();
    assert_eq!(open(&run, id(12, 2)).unwrap().manifest().parent, Some(id(10, 1)));
    // Even a commit that slipped through the check (here: by hand) is on no path.
    std::fs::rename(run.path(id(10, 1)), run.path(id(30, 1))).unwrap();
    rename_inside(&run.path(id(30, 1)), 10, 30);
    assert_eq!(run.candidates().unwrap(), [id(12, 2)]);
    let keep_one = Retention { last: 1, every_steps: 0, best: false };
    assert!(matches!(run.prune(keep_one, Some(Attempt(1)), false), Err(Error::Superseded { .. })));
    // It is further than the attempt that took over, so it stays until that has overtaken it.
    let pruned = run.prune(keep_one, Some(Attempt(2)), false).unwrap();
    assert_eq!((pruned.kept, pruned.removed), (vec![id(12, 2), id(30, 1)], vec![]));
    save(&run, id(30, 2), &layout).unwrap();
    let overtaken = run.prune(keep_one, Some(Attempt(2)), false).unwrap();
    assert_eq!(overtaken.removed, [id(12, 2), id(30, 1)]);
    assert_eq!(pruned.swept, [".step-11.attempt-2.tmp", ".step-20.attempt-1.tmp"]);
}

/// Makes the manifest in `dir` say another step than `from`.
fn rename_inside(dir: &Path, from: u64, to: u64) {
    let path = dir.join("manifest.json");
    let manifest = std::fs::read_to_string(&path).unwrap();
    let body = manifest.split_once(r#""body":"#).unwrap().1.trim_end().strip_suffix('}').unwrap();
    let body = body.replace(&format!(r#""step":{from},"#), &format!(r#""step":{to},"#));
    let seal = lampyris_checkpoint::format::Checksum::of(body.as_bytes());
    std::fs::write(&path, format!(r#"{{"xxh3":"{seal}","body":{body}}}"#)).unwrap();
}

#[test]
fn retention_keeps_the_last_the_round_the_best_and_always_a_good_one() {
    let (_dir, run) = new_run();
    let layout = Layout::random(1, 1);
    for step in [2, 4, 6, 8, 10, 12] {
        let report = write_rank(&run, id(step, 1), 0, &layout).unwrap();
        let loss = (step == 4).then_some(1.5).or((step == 8).then_some(2.5));
        run.commit(
            &lampyris_checkpoint::Meta { validation_loss: loss, ..meta(id(step, 1)) },
            &[report],
        )
        .unwrap();
    }
    let policy = Retention { last: 2, every_steps: 6, best: true };
    let plan = run.prune(policy, None, true).unwrap();
    let steps = |ids: &[CheckpointId]| ids.iter().map(|id| id.step.0).collect::<Vec<_>>();
    assert_eq!(steps(&plan.kept), [4, 6, 10, 12]);
    assert_eq!(steps(&run.committed().unwrap()), [2, 4, 6, 8, 10, 12]);
    assert_eq!(run.prune(policy, None, false).unwrap(), plan);
    assert_eq!(steps(&run.committed().unwrap()), [4, 6, 10, 12]);
    // The newest two are damaged: the newest good one stays although only one is to be kept.
    for step in [10, 12] {
        std::fs::remove_file(run.path(id(step, 1)).join("rank-00000.index.json")).unwrap();
    }
    let keep_one = Retention { last: 0, every_steps: 0, best: false };
    let pruned = run.prune(keep_one, None, false).unwrap();
    assert_eq!((steps(&pruned.kept), steps(&pruned.removed)), (vec![6, 10, 12], vec![4]));
}

#[test]
fn reports_name_what_is_there_and_what_differs() {
    let (_dir, run) = new_run();
    save(&run, id(5, 1), &Layout::random(1, 3)).unwrap();
    let listed = list(&run).unwrap();
    assert_eq!(listed.checkpoints.len(), 1);
    assert!(listed.checkpoints[0].in_lineage && listed.checkpoints[0].problem.is_none());
    let shown = show(Arc::clone(run.disk()), &run.path(id(5, 1))).unwrap();
    assert_eq!(shown.elements[&Kind::GateBias], 8);
    assert_eq!(shown.elements[&Kind::Weight], 67 * 32 + 13 * 7 + 31 + 1);
    assert_eq!(shown.manifest.world, 3);

    // The same step in another layout: equal. Another step: everything differs.
    run.claim(Attempt(2)).unwrap();
    run.record(Attempt(2), Some(id(5, 1))).unwrap();
    save(&run, id(5, 2), &Layout::random(2, 2)).unwrap();
    save(&run, id(6, 2), &Layout::random(2, 2)).unwrap();
    let reader = |id| open(&run, id).unwrap();
    let same = diff(&reader(id(5, 1)), &reader(id(5, 2))).unwrap();
    assert_eq!((same.equal, same.tensors.len(), same.fields.len()), (13, 0, 0));
    let other = diff(&reader(id(5, 1)), &reader(id(6, 2))).unwrap();
    assert_eq!((other.equal, other.tensors.len()), (0, 13));
    assert_eq!(other.fields, ["step", "state.samples"]);
    let norm =
        other.tensors.iter().find(|t| t.tensor == "model.norm.weight" && t.kind == Kind::Weight);
    let (a, b) = (fixture::value(3, Kind::Weight, 0, 5), fixture::value(3, Kind::Weight, 0, 6));
    let norm = norm.unwrap();
    assert_eq!((norm.differing, norm.elements), (1, 1));
    assert_eq!(norm.max_difference, (f64::from(a) - f64::from(b)).abs());
    assert!(other.tensors.windows(2).all(|pair| pair[0].ratio() >= pair[1].ratio()));
    serde_json::to_string(&(listed, shown, other)).unwrap();
}
