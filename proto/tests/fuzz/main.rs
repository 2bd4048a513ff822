//! Mutation fuzzing of the frames between rank, shim and worker, on stable Rust: whatever the bytes are and however they
//! arrive, nothing panics, and what is decoded is encoded to bytes that decode again.
//!
//! The committed corpus (`testdata/corpus`, one stream of frames per file, named by its message) is replayed in every run, then
//! mutated.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use lampyris_fuzz::fuzz;
use lampyris_proto::frame::{self, Decoder};
use lampyris_proto::{rank, v1};
use prost::Message;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus")
}

/// Decodes a stream that arrives in pieces of `piece` bytes.
fn decode<M: Message + Default>(input: &[u8], piece: usize) {
    let mut decoder = Decoder::default();
    for bytes in input.chunks(piece.max(1)) {
        decoder.push(bytes);
        loop {
            match decoder.next_message::<M>() {
                Ok(Some(message)) => {
                    assert!(M::decode(message.encode_to_vec().as_slice()).is_ok());
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    let mut blocking = input;
    while let Ok(Some(_)) = frame::read::<M>(&mut blocking) {}
}

fn feed(name: &str, input: &[u8], piece: usize) {
    match name {
        "from_rank" => decode::<rank::FromRank>(input, piece),
        "to_rank" => decode::<rank::ToRank>(input, piece),
        "from_shim" => decode::<v1::FromShim>(input, piece),
        "to_shim" => decode::<v1::ToShim>(input, piece),
        other => panic!("no message {other}: corpus files are named MESSAGE-anything"),
    }
}

fn run(time: Duration) {
    // As many bytes at a time as the input says: any number comes up.
    fuzz(&folder(), time, None, |name, input| feed(name, input, 1 + input.len() % 64));
}

#[test]
fn frames_survive_the_corpus_and_half_a_second_of_mutations() {
    run(Duration::from_millis(500));
}

#[test]
#[ignore = "long: ten minutes"]
fn frames_survive_ten_minutes_of_mutations() {
    run(Duration::from_secs(600));
}

/// Writes the corpus again, after a change of the messages.
#[test]
#[ignore = "long: writes testdata/corpus"]
fn write_the_corpus() {
    fs::create_dir_all(folder()).unwrap();
    let write = |name: &str, frames: &[Vec<u8>]| {
        fs::write(folder().join(name), frames.concat()).unwrap();
    };
    let say = |body| frame::encode(&rank::FromRank { body: Some(body) }).unwrap();
    let step = rank::StepDone { step: u64::MAX, loss: f64::NAN, ..Default::default() };
    let sample = rank::Sample { prompt: "a".into(), text: "\u{1b}[31m".into() };
    let (done, text) =
        (rank::from_rank::Body::StepDone(step), rank::from_rank::Body::Sample(sample));
    write("from_rank-1", &[say(done), say(text)]);
    let suspend = rank::to_rank::Body::Suspend(rank::Suspend::default());
    write("to_rank-1", &[frame::encode(&rank::ToRank { body: Some(suspend) }).unwrap()]);
    let ranks =
        vec![v1::RankProgress { rank: 3, operation: "saving".into(), ..Default::default() }];
    let progress = Some(v1::Progress { step: 4, ranks, ..Default::default() });
    let shim = frame::encode(&v1::FromShim { progress }).unwrap();
    write("from_shim-1", &[shim.clone(), shim]);
    let order = v1::ToShim { deadline_boottime_ns: u64::MAX, kill: true, suspend: false };
    write("to_shim-1", &[frame::encode(&order).unwrap()]);
}
