//! Fuzzing of every parser of this crate that reads a disk (`tests/corpus`). What a checksum would refuse is sealed again, so that
//! a mutation reaches what lies behind it.

use super::crash_disk::CrashDisk;
use super::fixture::id;
use lampyris_checkpoint::disk::{Access, Disk};
use lampyris_checkpoint::format::Checksum;
use lampyris_checkpoint::hf::{Folder, config};
use lampyris_checkpoint::report::list;
use lampyris_checkpoint::{CheckpointId, Error, Lineage, Reader, Retention, Run};
use lampyris_fuzz::fuzz;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the data file of each rank, all zero.
const DATA_BYTES: usize = 4096;

/// Folders for what is read through the operating system.
struct Desk {
    /// One `model.safetensors`.
    one: tempfile::TempDir,
    /// Its index and one file.
    several: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        let desk =
            Desk { one: tempfile::tempdir().unwrap(), several: tempfile::tempdir().unwrap() };
        for dir in [&desk.one, &desk.several] {
            let config = super::oracle("llama_gqa").join("config.json");
            std::fs::copy(config, dir.path().join("config.json")).unwrap();
        }
        let header = std::fs::read(corpus_dir().join("safetensors-two")).unwrap();
        let path = desk.several.path().join("a.safetensors");
        std::fs::write(path, safetensors(&header)).unwrap();
        desk
    }

    /// Feeds one input to its parser and checks what must hold for any input.
    fn parse(&self, parser: &str, input: &[u8]) {
        match parser {
            "lineage" => lineage(input),
            "checkpoint" => checkpoint(input),
            "name" => name(input),
            "safetensors" => {
                let path = self.one.path().join("model.safetensors");
                std::fs::write(path, safetensors(input)).unwrap();
                folder(self.one.path());
            }
            "files" => {
                let path = self.several.path().join("model.safetensors.index.json");
                std::fs::write(path, input).unwrap();
                folder(self.several.path());
            }
            "config" => {
                let text = String::from_utf8_lossy(input);
                config::parse(&text, Path::new("config.json")).ok();
            }
            other => panic!("no parser {other}: corpus files are named PARSER-anything"),
        }
    }
}

/// Parsed records are older than what began from them, and read back as they are.
fn lineage(input: &[u8]) {
    let Ok(lineage) = Lineage::parse(input) else { return };
    let records: Vec<_> = lineage.records().collect();
    let lines = records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n");
    assert_eq!(Lineage::parse(lines.collect::<String>().as_bytes()), Ok(lineage.clone()));
    for record in &records {
        assert!(record.parent.is_none_or(|parent| parent.attempt < record.attempt));
    }
    assert!(lineage.ancestry().len() <= records.len());
    let parents: Vec<CheckpointId> = records.iter().filter_map(|record| record.parent).collect();
    assert!(lineage.follow(&parents).iter().all(|found| parents.contains(found)));
}

fn file(disk: &CrashDisk, path: &Path, content: &[u8]) {
    disk.create(path, Access::Plain).unwrap().write_at(0, content).unwrap();
}

/// The input is the body of a manifest and, in the next line, the index of each rank: what opens can be read to its last
/// element.
fn checkpoint(input: &[u8]) {
    let end = input.iter().position(|&byte| byte == b'\n').unwrap_or(input.len());
    let (body, index) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    let disk = CrashDisk::new();
    let dir = PathBuf::from("/").join(id(3, 2).to_string());
    disk.create_dir(&dir).unwrap();
    let index = sealed_index(index);
    for rank in 0..2 {
        file(&disk, &dir.join(format!("rank-{rank:05}.index.json")), &index);
        file(&disk, &dir.join(format!("rank-{rank:05}.data")), &[0; DATA_BYTES]);
    }
    file(&disk, &dir.join("manifest.json"), &sealed_manifest(body, &index));
    let reader = match Reader::open(Arc::new(disk), &dir) {
        Ok(reader) => reader,
        Err(Error::Corrupt { .. } | Error::NewerFormat { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(reader.manifest().id, id(3, 2));
    for tensor in &reader.manifest().tensors {
        for &kind in &tensor.kinds {
            let mut values = vec![1.0; tensor.elements() as usize];
            match reader.read(&tensor.name, kind, 0, &mut values) {
                Ok(()) => assert!(values.iter().all(|value| *value == 0.0)),
                Err(e) => assert!(e.is_corrupt(), "{e}"),
            }
        }
    }
}

/// With the checksums of the data that is there.
fn sealed_index(text: &[u8]) -> Vec<u8> {
    let Ok(mut index) = serde_json::from_slice::<Value>(text) else { return text.to_vec() };
    let chunk_bytes = index.get("chunk_bytes").and_then(Value::as_u64).unwrap_or(0) as usize;
    let length = chunk_bytes.clamp(1, DATA_BYTES);
    let checksum = Value::String(Checksum::of(&vec![0; length]).to_string());
    if let Some(chunks) = index.get_mut("chunks").and_then(Value::as_array_mut) {
        chunks.iter_mut().for_each(|chunk| *chunk = checksum.clone());
    }
    index.to_string().into_bytes()
}

/// With the checksums of the indexes, and its own.
fn sealed_manifest(body: &[u8], index: &[u8]) -> Vec<u8> {
    let mut text = body.to_vec();
    if let Ok(mut manifest) = serde_json::from_slice::<Value>(body) {
        for shard in manifest.get_mut("shards").and_then(Value::as_array_mut).into_iter().flatten()
        {
            if let Some(shard) = shard.as_object_mut() {
                shard.insert("index_bytes".to_string(), index.len().into());
                shard.insert("index_xxh3".to_string(), Checksum::of(index).to_string().into());
            }
        }
        text = manifest.to_string().into_bytes();
    }
    let seal = format!("{{\"xxh3\":\"{}\",\"body\":", Checksum::of(&text));
    [seal.as_bytes(), &text, b"}"].concat()
}

/// A file or folder of this name lies about.
fn name(input: &[u8]) {
    let Ok(name) = std::str::from_utf8(input) else { return };
    if name.is_empty() || name.contains(['/', '\0']) || [".", ".."].contains(&name) {
        return;
    }
    if let Ok(id) = name.parse::<CheckpointId>() {
        assert_eq!(id.to_string(), name);
    }
    let disk = CrashDisk::new();
    for folder in ["/checkpoints", "/attempts"] {
        disk.create_dir(Path::new(folder)).unwrap();
    }
    file(&disk, Path::new("/lineage.jsonl"), b"{\"attempt\":7,\"parent\":null}\n");
    disk.create_dir(&Path::new("/checkpoints").join(name)).unwrap();
    let run = Run::open_read_only(Arc::new(disk.clone()), Path::new("/"));
    list(&run).unwrap();
    run.to_load().ok();
    let keep = Retention { last: 1, every_steps: 0, best: false };
    if let Ok(pruned) = run.prune(keep, None, true) {
        assert_eq!(pruned.removed, [], "nothing good is newer");
    }
    file(&disk, &Path::new("/attempts").join(name), b"");
    match run.claim_next() {
        Ok(attempt) => assert!(attempt.0 >= 8),
        Err(e) => assert!(matches!(e, Error::AttemptNumber { .. }), "{e}"),
    }
}

/// A file whose header has the right length, and some data.
fn safetensors(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, &[0; 64]].concat()
}

/// What opens can be read.
fn folder(dir: &Path) {
    let Ok(folder) = Folder::open(dir) else { return };
    for name in folder.names() {
        folder.tensor(name).ok();
    }
}

fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn run(time: Duration) {
    let desk = Desk::new();
    fuzz(&corpus_dir(), time, None, |parser, input| desk.parse(parser, input));
}

#[test]
fn good_inputs_of_the_corpus_are_read() {
    let read = |name: &str| std::fs::read(corpus_dir().join(name)).unwrap();
    assert_eq!(Lineage::parse(&read("lineage-three")).unwrap().records().count(), 3);
    let desk = Desk::new();
    let path = desk.one.path().join("model.safetensors");
    std::fs::write(path, safetensors(&read("safetensors-two"))).unwrap();
    let names: Vec<String> =
        Folder::open(desk.one.path()).unwrap().names().map(str::to_string).collect();
    assert_eq!(names, ["a", "b"]);
    let path = desk.several.path().join("model.safetensors.index.json");
    std::fs::write(path, read("files-two")).unwrap();
    assert_eq!(Folder::open(desk.several.path()).unwrap().names().count(), 2);
    // One element less is a checkpoint no more: the mutations begin from one that is whole.
    let text = String::from_utf8(read("checkpoint-whole")).unwrap();
    let (body, index) = text.split_once('\n').unwrap();
    for (index, is_whole) in
        [(index.to_string(), true), (index.replace("\"len\":6", "\"len\":5"), false)]
    {
        let disk = CrashDisk::new();
        disk.create_dir(Path::new("/c")).unwrap();
        let index = sealed_index(index.trim_end().as_bytes());
        file(&disk, Path::new("/c/rank-00000.index.json"), &index);
        file(&disk, Path::new("/c/rank-00000.data"), &[0; DATA_BYTES]);
        file(&disk, Path::new("/c/manifest.json"), &sealed_manifest(body.as_bytes(), &index));
        assert_eq!(Reader::open(Arc::new(disk), Path::new("/c")).is_ok(), is_whole);
    }
}

#[test]
fn parsers_survive_the_corpus_and_a_second_of_mutations() {
    run(Duration::from_secs(1));
}

#[test]
#[ignore = "long: five minutes of mutations"]
fn parsers_survive_five_minutes_of_mutations() {
    run(Duration::from_secs(300));
}
