//! Long test: a state of 4 GiB is saved and loaded with at most 6 GiB of memory above the state itself.

use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::tensors::TensorEntry;
use lampyris_checkpoint::{
    Busy, Kind, Ranks, Reader, Request, Run, Saver, Slot, Snapshot, Target, Transfer,
};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::fixture::{id, meta};

const DIR: &str = "LAMPYRIS_TEST_LARGE_DIR";
const GIB: usize = 1 << 30;
const STATE_BYTES: usize = 4 * GIB;
/// One tensor of 256 MiB, 16 of them.
const TENSOR: usize = 64 << 20;
const TENSORS: usize = STATE_BYTES / 4 / TENSOR;

fn name(tensor: usize) -> String {
    format!("model.layers.{tensor}.weight")
}

fn element(tensor: usize, index: usize) -> f32 {
    (tensor * 1009 + index % 65_521) as f32
}

/// Runs in a process of its own, so that its peak memory is its own.
#[test]
#[ignore = "the process that the test below starts"]
fn process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let run = Run::open(Arc::new(RealDisk), Path::new(&dir)).unwrap();
    let attempt = run.claim_next().unwrap();
    run.record(attempt, None).unwrap();
    let mut state: Vec<Vec<f32>> = (0..TENSORS)
        .map(|tensor| (0..TENSOR).map(|index| element(tensor, index)).collect())
        .collect();
    let mut saver = Saver::new(run, Ranks::alone(), Transfer::default(), None);
    let mut buffers = saver.buffers(Busy::Wait).0.unwrap();
    buffers.extend(state.iter().cloned());
    let slot = |tensor| Slot {
        tensor: name(tensor),
        kind: Kind::Weight,
        start: 0,
        buffer: tensor,
        range: 0..TENSOR,
    };
    let entry = |tensor| TensorEntry {
        name: name(tensor),
        shape: vec![TENSOR],
        kinds: vec![Kind::Weight],
        optimizer: None,
    };
    let tensors = (0..TENSORS).map(entry).collect();
    let meta = lampyris_checkpoint::Meta { tensors, ..meta(id(1, attempt.0)) };
    saver.begin(Snapshot {
        meta,
        slots: (0..TENSORS).map(slot).collect(),
        buffers,
        to: Target::Disk,
    });
    let saved = saver.wait().unwrap().unwrap();

    state.iter_mut().for_each(|tensor| tensor.fill(0.0));
    let reader = Reader::open(Arc::new(RealDisk), &saved.committed.unwrap()).unwrap();
    let names: Vec<String> = (0..TENSORS).map(name).collect();
    let requests = state.iter_mut().zip(&names).map(|(out, tensor)| Request {
        tensor,
        kind: Kind::Weight,
        start: 0,
        out: out.as_mut_slice(),
    });
    reader.load(requests.collect(), 4).unwrap();
    for (tensor, values) in state.iter().enumerate() {
        assert!(values.iter().enumerate().all(|(index, v)| *v == element(tensor, index)));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}

#[test]
#[ignore = "long: writes 4 GiB and needs 9 GiB of memory"]
fn four_gib_are_saved_and_loaded_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["large::process", "--exact", "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let peak_kib = text.lines().find_map(|line| line.split_once("peak ").map(|(_, kib)| kib));
    let peak = peak_kib.unwrap().trim().parse::<usize>().unwrap() * 1024;
    assert!(peak <= STATE_BYTES + 6 * GIB, "peak {peak} bytes");
    eprintln!("peak {:.2} GiB for a state of 4 GiB", peak as f64 / GIB as f64);
}
