//! Mutation fuzzing of every parser that sees bytes of other processes, on stable Rust.
//!
//! The committed corpus (`tests/corpus`, one file per input, named by its parser) is replayed in every run, then each
//! input is mutated: bits, bytes, cuts, repeats, splices, extreme lengths. A short run is part of `make test`, ten minutes
//! of `make test-long`. A failure prints the seed and the input.

use lampyris_comm::wire::control::Control;
use lampyris_comm::wire::frame::Frame;
use lampyris_comm::wire::handshake::Hello;
use lampyris_comm::wire::header::{Header, Imm};
use lampyris_comm::wire::table::{Join, Reply};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Feeds one input to its parser and checks what must hold for any input.
fn parse(parser: &str, input: &[u8]) {
    match parser {
        "frame" => {
            if let Ok(frame) = Frame::decode(input) {
                assert_eq!(frame.encode(), input);
            }
        }
        "hello" => {
            if let Ok(hello) = Hello::decode(input) {
                assert_eq!(hello.encode(), input);
            }
        }
        "header" => {
            if let Ok(header) = Header::decode(input) {
                assert_eq!(Header::decode(&header.encode()), Ok(header));
            }
        }
        "imm" => {
            for word in input.chunks_exact(4) {
                let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
                if let Ok(imm) = Imm::decode(word) {
                    assert_eq!(Imm::decode(imm.encode()), Ok(imm));
                }
            }
        }
        "control" => {
            if let Ok(Some((message, length))) = Control::decode_front(input) {
                assert!(length <= input.len());
                let again = message.encode();
                let (same, _) = Control::decode_front(&again).expect("own words").expect("whole");
                assert_eq!(format!("{same:?}"), format!("{message:?}"));
            }
        }
        "join" => {
            if let Ok(join) = Join::decode(input) {
                assert_eq!(Join::decode(&join.encode()), Ok(join));
            }
        }
        "reply" => {
            if let Ok(reply) = Reply::decode(input) {
                assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
        }
        other => panic!("no parser {other}: corpus files are named PARSER-anything"),
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(&folder)
        .expect("the corpus is committed")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let parser = name.split('-').next().expect("a first part").to_string();
            (parser, std::fs::read(path).expect("readable"))
        })
        .collect();
    all.sort();
    assert!(all.len() >= 14, "two inputs per parser at least");
    all
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.truncate(at),
            3 => {
                let end = (at + random.below(16)).min(input.len());
                let piece = input[at.min(end)..end].to_vec();
                input.splice(at..at, piece);
            }
            4 => {
                let cut = random.below(other.len());
                input.truncate(at);
                input.extend(&other[cut..]);
            }
            5 if input.len() >= at + 4 => {
                let extreme = [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][random.below(5)];
                input[at..at + 4].copy_from_slice(&extreme.to_le_bytes());
            }
            6 => input.push(random.below(256) as u8),
            _ => input.insert(at, random.below(256) as u8),
        }
    }
}

fn fuzz(time: Duration) {
    let corpus = corpus();
    for (parser, input) in &corpus {
        parse(parser, input);
    }
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()) << 20 | 1;
    let mut random = Random(seed);
    let until = Instant::now() + time;
    let mut runs = 0u64;
    while Instant::now() < until {
        for _ in 0..1000 {
            let (parser, input) = &corpus[random.below(corpus.len())];
            let mut mutated = input.clone();
            mutate(&mut mutated, &corpus[random.below(corpus.len())].1, &mut random);
            let result = std::panic::catch_unwind(|| parse(parser, &mutated));
            assert!(result.is_ok(), "seed {seed}, parser {parser}, input {mutated:02x?}");
            runs += 1;
        }
    }
    assert!(runs > 0, "seed {seed}");
}

#[test]
fn parsers_survive_the_corpus_and_two_seconds_of_mutations() {
    fuzz(Duration::from_secs(2));
}

#[test]
#[ignore = "ten minutes: make test-long"]
fn parsers_survive_ten_minutes_of_mutations() {
    fuzz(Duration::from_secs(600));
}
