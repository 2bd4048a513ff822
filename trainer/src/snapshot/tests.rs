//! States that go through a checkpoint: bit for bit between layouts, past a damaged one, by the name of their optimizer, and
//! without a second copy in memory.

use super::*;
use crate::flat::Memory;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::tensors::training_tensors;
use lampyris_checkpoint::{CheckpointId, Digests, Meta, Piece, Run};
use lampyris_plan::{Attempt, Rank, Share, Step, TrainPlan};
use std::path::Path;
use std::process::Command;
use tch::Device;

/// Small chunks, so that a small state is many.
const SMALL: Transfer = Transfer { threads: 1, chunk_bytes: 4096 };
const DIR: &str = "LAMPYRIS_TEST_LOAD_DIR";
/// 6.6 million parameters.
const LARGE: [&str; 2] = ["model.hidden=512", "model.ffn_hidden=1536"];

fn plan(recipe: &str, sets: &[&str]) -> TrainPlan {
    let path = format!("{}/../recipes/{recipe}.toml", env!("CARGO_MANIFEST_DIR"));
    let here = std::env::temp_dir();
    let defaults = lampyris_recipes::Defaults {
        runs_dir: here.clone(),
        cache_dir: here.clone(),
        current_dir: here,
    };
    let sets: Vec<String> = sets.iter().copied().map(String::from).collect();
    lampyris_recipes::load(Path::new(&path), &sets, &defaults).expect("a recipe of the repository")
}

/// Zeroed state of a rank, in memory of its own.
fn zeroed(plan: &TrainPlan, rank: usize) -> State {
    let ranks = Ranks::alone();
    let memory = Memory { device: Device::Cpu, ranks: &ranks };
    State::new(&Share::of(plan, rank), memory).expect("memory")
}

/// State of a job of one rank with values that differ from element to element and from seed to seed.
fn filled(plan: &TrainPlan, seed: u64) -> State {
    let mut state = zeroed(plan, 0);
    state.initialize(Share::of(plan, 0).inventory(), seed);
    for (bucket, array) in state.buckets.buckets.iter().zip(&state.arrays) {
        for (k, moment) in arrays(array).skip(1).enumerate() {
            for placement in &bucket.placements {
                let count = dim(placement.elements);
                let index = Tensor::arange(count, (tch::Kind::Float, Device::Cpu));
                let values = (index + (seed + k as u64) as f64).sin();
                moment.narrow(0, dim(placement.offset), count).copy_(&values);
            }
        }
    }
    for bias in state.biases.iter_mut().flatten() {
        *bias = seed as f32;
    }
    state
}

fn new_run(dir: &Path) -> Run {
    let run = Run::open(Arc::new(RealDisk), dir).expect("a run");
    assert_eq!(run.claim_next().expect("an attempt"), Attempt(1));
    run.record(Attempt(1), None).expect("is recorded");
    run
}

/// All ranks of a job save; `tensors` is what the manifest lists.
fn save(run: &Run, step: u64, states: &[&State], tensors: Vec<TensorEntry>, transfer: Transfer) {
    let id = CheckpointId { step: Step(step), attempt: Attempt(1) };
    let mut shards = Vec::new();
    for (rank, state) in states.iter().enumerate() {
        let inventory = state.share.inventory();
        let mut buffers = Vec::new();
        copy_out(state, inventory, &mut buffers).expect("is copied");
        let slots = slots(state, inventory, &Ranks::alone());
        let own = slots.iter().filter(|slot| rank == 0 || slot.kind != Kind::GateBias);
        let pieces = own.map(|slot| Piece {
            tensor: &slot.tensor,
            kind: slot.kind,
            start: slot.start,
            data: &buffers[slot.buffer][slot.range.clone()],
        });
        let pieces: Vec<Piece<'_>> = pieces.collect();
        shards.push(run.write_shard(id, Rank(rank as u64), &pieces, transfer).expect("is written"));
    }
    let meta = Meta {
        id,
        digests: Digests::default(),
        fingerprint: BTreeMap::new(),
        validation_loss: None,
        state: BTreeMap::new(),
        tensors,
    };
    run.commit(&meta, &shards).expect("is committed");
}

fn save_as_trained(run: &Run, step: u64, states: &[&State]) {
    save(run, step, states, training_tensors(states[0].share.inventory()), SMALL);
}

fn open(run: &Run, step: u64) -> Reader {
    let id = CheckpointId { step: Step(step), attempt: Attempt(1) };
    Reader::open(Arc::new(RealDisk), &run.path(id)).expect("opens")
}

fn loaded(reader: &Reader, plan: &TrainPlan, rank: usize) -> State {
    let mut state = zeroed(plan, rank);
    let share = state.share.clone();
    load(&mut state, share.inventory(), reader).expect("loads");
    state
}

fn assert_same(a: &State, b: &State) {
    assert_eq!(a.biases, b.biases);
    for (a, b) in a.arrays.iter().zip(&b.arrays) {
        assert!(a.weights.tensor.equal(&b.weights.tensor));
        assert!(arrays(a).zip(arrays(b)).all(|(a, b)| a.equal(b)));
    }
}

/// One rank's state goes to two ranks that share the optimizer's state, and back.
fn moves_between_layouts(sets: &[&str]) {
    let dir = tempfile::tempdir().expect("a folder");
    let run = new_run(dir.path());
    let one = plan("debug_moe", sets);
    let state = filled(&one, 3);
    save_as_trained(&run, 1, &[&state]);
    assert_same(&loaded(&open(&run, 1), &one, 0), &state);

    let spread = ["parallel.data=2", "parallel.expert=2", "parallel.zero=1"];
    let two = plan("debug_moe", &[sets, spread.as_slice()].concat());
    let ranks = [0, 1].map(|rank| loaded(&open(&run, 1), &two, rank));
    for rank in &ranks {
        let held = rank.weights.views.iter().zip(&state.weights.views);
        let mut held = held.filter(|(part, _)| part.numel() > 0);
        assert!(held.all(|(part, whole)| part.equal(whole)), "what the forward pass reads");
    }
    save_as_trained(&run, 2, &[&ranks[0], &ranks[1]]);
    assert_same(&loaded(&open(&run, 2), &one, 0), &state);
}

#[test]
fn a_state_of_fp32_moves_between_layouts_bit_for_bit() {
    moves_between_layouts(&["compute=fp32"]);
    moves_between_layouts(&["compute=fp32", "optimizer.kind=muon"]);
}

#[test]
fn a_state_of_bf16_with_its_masters_moves_between_layouts_bit_for_bit() {
    moves_between_layouts(&["compute=bf16"]);
    moves_between_layouts(&["compute=bf16", "optimizer.kind=muon"]);
}

#[test]
fn what_a_damaged_checkpoint_filled_in_part_is_overwritten_by_the_one_before() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = new_run(dir.path());
    let plan = plan("debug_llama", &["compute=bf16"]);
    let good = filled(&plan, 1);
    save_as_trained(&run, 1, &[&good]);
    save_as_trained(&run, 2, &[&filled(&plan, 2)]);
    let file = open(&run, 2).dir().join("rank-00000.data");
    let mut bytes = std::fs::read(&file).expect("is read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("is written");

    let mut state = zeroed(&plan, 0);
    let inventory = Arc::clone(state.share.inventory());
    let mut filled_in_part = false;
    let loaded = run.load_latest(&mut lampyris_checkpoint::Ranks::alone(), |reader| {
        let done = load(&mut state, &inventory, reader);
        filled_in_part |=
            done.is_err() && state.arrays[0].master.count_nonzero(0).int64_value(&[]) > 0;
        done
    });
    let loaded = loaded.expect("the one before is good");
    assert_eq!(loaded.found.map(|(id, ())| id.step), Some(Step(1)));
    assert_eq!(loaded.quarantined.len(), 1);
    assert!(filled_in_part, "the damage lies behind values that were good");
    assert_same(&state, &good);
}

#[test]
fn the_written_name_of_an_optimizer_decides_who_reads_its_moments() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = new_run(dir.path());
    let (adamw, muon) = (plan("debug_llama", &[]), plan("debug_llama", &["optimizer.kind=muon"]));
    let state = filled(&adamw, 1);
    let written = training_tensors(state.share.inventory());
    assert!(written.iter().all(|entry| entry.optimizer.as_deref() == Some("adamw")));
    for (step, name) in [(1, Some("adamw")), (2, None), (3, Some("lion"))] {
        let mut tensors = written.clone();
        for entry in &mut tensors {
            entry.optimizer = name.map(String::from);
        }
        save(&run, step, &[&state], tensors, SMALL);
    }
    for step in [1, 2] {
        assert_same(&loaded(&open(&run, step), &adamw, 0), &state);
        let mut other = zeroed(&muon, 0);
        let inventory = Arc::clone(other.share.inventory());
        let refused = load(&mut other, &inventory, &open(&run, step)).expect_err("of AdamW");
        assert!(refused.to_string().contains("holds optimizer state of AdamW for"), "{refused}");
    }
    let mut other = zeroed(&adamw, 0);
    let inventory = Arc::clone(other.share.inventory());
    let refused = load(&mut other, &inventory, &open(&run, 3)).expect_err("of an unknown one");
    assert!(!refused.is_corrupt(), "it is not damaged and stays where it is");
    let words = refused.to_string();
    assert!(words.contains("holds optimizer state of \"lion\" for model.embed_tokens"), "{words}");
    load_weights(&mut other, &inventory, &open(&run, 3)).expect("weights need no optimizer");
    assert!(other.arrays[0].master.equal(&state.arrays[0].master));
}

/// Runs in a process of its own, so that its memory is its own.
#[test]
#[ignore = "the process that the test below starts"]
fn process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let run = Run::open_read_only(Arc::new(RealDisk), Path::new(&dir));
    let large = plan("debug_llama", &LARGE);
    let state = loaded(&open(&run, 1), &large, 0);
    let status = std::fs::read_to_string("/proc/self/status").expect("is read");
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    println!("peak {} {}", kib("VmHWM:"), kib("VmRSS:"));
    assert!(state.arrays[0].master.equal(&filled(&large, 1).arrays[0].master));
}

#[test]
fn loading_needs_no_second_copy_of_the_state() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = new_run(dir.path());
    let state = filled(&plan("debug_llama", &LARGE), 1);
    let tensors = training_tensors(state.share.inventory());
    save(&run, 1, &[&state], tensors, Transfer::default());
    let state_kib = open(&run, 1).data_bytes() >> 10;
    let output = Command::new(std::env::current_exe().expect("a path"))
        .args(["snapshot::tests::process", "--exact", "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let figures = text.lines().find_map(|line| line.split_once("peak ")).expect("figures").1;
    let (peak, after) = figures.split_once(' ').expect("two");
    let kib = |text: &str| text.trim().parse::<u64>().expect("a number");
    let above = kib(peak) - kib(after);
    // One chunk for each of four threads is 16 MiB.
    assert!(above < 32 << 10 && state_kib > 64 << 10, "{above} KiB for a state of {state_kib} KiB");
}
