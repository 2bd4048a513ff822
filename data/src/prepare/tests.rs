use super::*;
use crate::{SampleId, Silent, Source, Split};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// A corpus of a few documents and an empty cache.
struct World {
    dir: tempfile::TempDir,
    options: Options,
}

impl World {
    fn new(tokenizer: TokenizerSpec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..40 {
            std::fs::write(
                dir.path().join(format!("{i:02}.txt")),
                format!("document {i} é\n").repeat(i + 1),
            )
            .unwrap();
        }
        let options = Options {
            sources: vec![Source::Text { path: format!("{}/*.txt", dir.path().display()) }],
            max_bytes: None,
            validation: Split::Hash { fraction: 0.2 },
            tokenizer,
            cache_dir: dir.path().join("cache"),
        };
        Self { dir, options }
    }

    fn bytes() -> Self {
        Self::new(TokenizerSpec::Byte)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn prepare(&self) -> (Dataset, Record) {
        let record = Record::default();
        (prepare(&self.options, &record).unwrap(), record)
    }

    /// As if the sources had been left alone for a while.
    fn prepare_later(&self) -> (Dataset, Record) {
        let record = Record::default();
        let now = SystemTime::now() + Duration::from_secs(60);
        (prepare_at(&self.options, &record, now).unwrap(), record)
    }
}

/// Phases and notices, in order.
#[derive(Debug, Default)]
struct Record {
    phases: Mutex<Vec<Phase>>,
    notices: Mutex<Vec<Notice>>,
}

impl Record {
    fn phases(&self) -> Vec<Phase> {
        self.phases.lock().unwrap().clone()
    }

    fn notices(&self) -> Vec<Notice> {
        self.notices.lock().unwrap().clone()
    }
}

impl Progress for Record {
    fn update(&self, phase: Phase, done: u64, total: u64) {
        assert!(done <= total, "{phase:?}: {done} of {total}");
        let mut phases = self.phases.lock().unwrap();
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
    }

    fn notice(&self, notice: Notice) {
        self.notices.lock().unwrap().push(notice);
    }
}

/// Everything a trainer can see.
fn contents(dataset: &Dataset) -> (Vec<i64>, Vec<i64>, Vec<u8>) {
    let windows = dataset.training(16, 1).unwrap();
    let all: Vec<SampleId> =
        (0..windows.samples()).map(|index| SampleId { epoch: 0, index }).collect();
    let validation = dataset.validation(16, 0);
    let held_out = validation.batch(0..validation.count(), 0);
    (windows.batch(&all).tokens, held_out.tokens, dataset.validation_text(0).to_vec())
}

#[test]
fn the_second_time_nothing_is_read() {
    let world = World::bytes();
    let (first, record) = world.prepare_later();
    assert_eq!(record.phases(), [Phase::Scan, Phase::Tokenize]);
    let (second, record) = world.prepare_later();
    assert_eq!(record.phases(), [Phase::Verify]);
    assert_eq!(second.folder(), first.folder());
    assert_eq!(contents(&second), contents(&first));
}

#[test]
fn files_just_written_are_hashed_again() {
    let world = World::bytes();
    world.prepare();
    assert_eq!(world.prepare().1.phases(), [Phase::Scan, Phase::Verify]);
}

#[test]
fn a_change_makes_a_new_folder_and_a_touch_does_not() {
    let world = World::bytes();
    let (first, _) = world.prepare_later();
    let text = std::fs::read(world.file("07.txt")).unwrap();
    std::fs::write(world.file("07.txt"), &text).unwrap();
    let (touched, record) = world.prepare_later();
    assert_eq!(record.phases(), [Phase::Scan, Phase::Verify]);
    assert_eq!(touched.fingerprint(), first.fingerprint());
    std::fs::write(world.file("07.txt"), text.to_ascii_uppercase()).unwrap();
    let (changed, record) = world.prepare_later();
    assert_eq!(record.phases(), [Phase::Scan, Phase::Tokenize]);
    assert_ne!(changed.fingerprint(), first.fingerprint());
}

#[test]
fn every_option_that_changes_tokens_changes_the_fingerprint() {
    let world = World::bytes();
    let with = |change: &dyn Fn(&mut Options)| {
        let mut options = world.options.clone();
        change(&mut options);
        prepare(&options, &Silent).unwrap().fingerprint().to_owned()
    };
    let bpe = |train_bytes| TokenizerSpec::Bpe { vocab_size: 300, train_bytes };
    let mut all = vec![
        with(&|_| ()),
        with(&|o| o.validation = Split::Hash { fraction: 0.3 }),
        with(&|o| o.validation = Split::Tail { fraction: 0.3 }),
        with(&|o| o.max_bytes = Some(1000)),
        with(&|o| o.tokenizer = TokenizerSpec::Char),
        with(&|o| o.tokenizer = bpe(1000)),
        with(&|o| o.tokenizer = bpe(2000)),
    ];
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 7);
}

#[test]
fn the_fingerprint_does_not_depend_on_the_place() {
    let (here, there) = (World::bytes(), World::bytes());
    assert_eq!(here.prepare().0.fingerprint(), there.prepare().0.fingerprint());
}

#[test]
fn damaged_folders_are_made_again_with_a_notice() {
    let world = World::new(TokenizerSpec::Bpe { vocab_size: 280, train_bytes: 10_000 });
    let (first, _) = world.prepare_later();
    let whole = contents(&first);
    let files = [
        "training-00000.tokens",
        "training.documents",
        "validation-00000.tokens",
        "validation.documents",
        "validation.txt",
        "validation.ends",
        "files.json",
        "vocabulary.json",
        "tokenizer.json",
        "manifest.json",
    ];
    for name in files {
        let path = first.folder().join(name);
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [None, Some(&good[..good.len() - 1]), Some(&flipped[..])] {
            match bad {
                Some(bad) => std::fs::write(&path, bad).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let (again, record) = world.prepare_later();
            let notices = record.notices();
            assert!(
                matches!(&notices[..], [Notice::CorruptCache { path, .. }] if path.ends_with(name)),
                "{name}: {notices:?}"
            );
            assert_eq!(contents(&again), whole, "{name}");
        }
    }
    let names: Vec<_> = std::fs::read_dir(&world.options.cache_dir).unwrap().collect();
    assert_eq!(names.len(), 3, "the folder, its lock, the requests: {names:?}");
}

#[test]
fn many_preparers_make_one_folder() {
    let world = World::bytes();
    let results: Vec<(Dataset, Record)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| world.prepare())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let makers = results.iter().filter(|(_, r)| r.phases().contains(&Phase::Tokenize)).count();
    assert_eq!(makers, 1);
    for (dataset, _) in &results {
        assert_eq!(contents(dataset), contents(&results[0].0));
    }
}

#[test]
fn without_locks_the_first_rename_wins() {
    let world = World::bytes();
    let files = source::list(&world.options.sources).unwrap().files;
    let cache = Cache::new(&world.options, &files, SystemTime::now()).unwrap();
    let make = || {
        let scan = scan(&files, &world.options, &Silent).unwrap();
        let fingerprint = fingerprint(&world.options, &scan).unwrap();
        super::make(&cache, &world.options, &files, scan, &fingerprint, &Silent).unwrap()
    };
    let (first, second) = (make(), make());
    assert_eq!(first.folder(), second.folder());
    assert_eq!(contents(&first), contents(&second));
}

#[test]
fn what_a_killed_maker_left_is_removed() {
    let world = World::bytes();
    let (first, _) = world.prepare();
    let cache = |name: &str| world.options.cache_dir.join(name);
    let left = cache(&format!("making-{}-x", first.fingerprint()));
    std::fs::rename(first.folder(), &left).unwrap();
    // Of other texts: one whose maker is gone, and one whose maker lives.
    let (gone, alive) = (cache("making-aa-x"), cache("making-bb-x"));
    std::fs::create_dir(&gone).unwrap();
    std::fs::create_dir(&alive).unwrap();
    let lock = std::fs::File::create(cache("bb.lock")).unwrap();
    lock.lock().unwrap();
    world.prepare();
    assert!(!left.exists() && !gone.exists() && alive.exists());
    drop(lock);
    // Also where the text is found prepared.
    world.prepare();
    assert!(!alive.exists());
}

#[test]
fn sources_that_change_between_readings_are_noticed() {
    let world = World::bytes();
    let files = source::list(&world.options.sources).unwrap().files;
    let cache = Cache::new(&world.options, &files, SystemTime::now()).unwrap();
    let scan = scan(&files, &world.options, &Silent).unwrap();
    std::fs::write(world.file("03.txt"), "something else").unwrap();
    let error = make(&cache, &world.options, &files, scan, "f", &Silent).unwrap_err();
    assert!(matches!(error, Error::Changed), "{error}");
    assert!(!cache.folder("f").exists());
}

#[test]
fn many_shards_read_like_one() {
    let world = World::bytes();
    let (whole, _) = world.prepare();
    let files = source::list(&world.options.sources).unwrap().files;
    let scan = scan(&files, &world.options, &Silent).unwrap();
    for (token_bytes, shard_tokens) in [(2, 7), (4, 1000), (4, 1 << 20)] {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { token_bytes, shard_tokens };
        let corpus = Corpus { files: &files, limit: u64::MAX };
        let manifest = whole.manifest().clone();
        let tokenizer = Tokenizer::byte();
        write_folder(folder.path(), &corpus, (&tokenizer, layout), &scan, manifest, &Silent)
            .unwrap();
        let sharded = Dataset::open(folder.path()).unwrap();
        assert_eq!(contents(&sharded), contents(&whole), "{layout:?}");
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut world = World::bytes();
    world.options.cache_dir = world.file("00.txt").join("cache");
    let error = prepare(&world.options, &Silent).unwrap_err();
    assert!(
        matches!(&error, Error::Write { path, .. } if path.starts_with(world.file("00.txt"))),
        "{error}"
    );
}

#[test]
fn marks_line_ends_and_half_pairs_do_not_stop_a_corpus() {
    let mut world = World::bytes();
    let jsonl =
        "\u{feff}{\"text\": \"one\"}\r\n\r\n{\"text\": \"cut \\ud83d\"}\r\n{\"text\": \"\\udc00\"}";
    std::fs::write(world.file("lines.jsonl"), jsonl).unwrap();
    std::fs::write(world.file("marked.md"), "\u{feff}two\r\n").unwrap();
    let at = |name: &str| world.file(name).display().to_string();
    world.options.sources = vec![
        Source::Jsonl { path: at("lines.jsonl"), field: "text".to_owned() },
        Source::Text { path: at("*.md") },
    ];
    world.options.validation = Split::Hash { fraction: 0.0 };
    let (dataset, record) = world.prepare();
    let text: Vec<u8> = "one|cut \u{fffd}|\u{fffd}|two\r\n|".bytes().collect();
    let tokens: Vec<u8> =
        contents(&dataset).0.iter().map(|&t| u8::try_from(t).unwrap_or(b'|')).collect();
    assert!(tokens.starts_with(&text[..16]), "{tokens:?}");
    assert_eq!(dataset.manifest().training.documents, 4);
    assert_eq!(dataset.manifest().training.bytes, 3 + 7 + 3 + 5);
    let path = world.file("lines.jsonl");
    assert_eq!(record.notices(), [Notice::Mended { lines: 2, path, line: 3 }]);
}

#[test]
fn what_wildcards_pass_over_is_told() {
    let world = World::bytes();
    let (first, _) = world.prepare();
    std::fs::write(world.file(".#00.txt"), "a lock").unwrap();
    std::os::unix::fs::symlink("00.txt", world.file("zz.txt")).unwrap();
    let (second, record) = world.prepare();
    assert_eq!(second.fingerprint(), first.fingerprint());
    let [Notice::LeftOut(left_out)] = &record.notices()[..] else { panic!("{record:?}") };
    assert_eq!((left_out.hidden.count, left_out.repeated.count), (1, 1));
    assert!(left_out.repeated.first.ends_with("zz.txt"));
}
