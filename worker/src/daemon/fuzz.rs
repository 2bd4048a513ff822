//! Mutation fuzzing of what a worker takes from others: orders of a scheduler, and files that a later worker or another
//! node's shim reads. The corpus is `worker/tests/corpus`, each file named by its parser; the pattern is that of
//! `comm/tests/suite/fuzz.rs`.

use super::service::Service;
use super::{Handle, Options};
use crate::client::Target;
use crate::launch::{Processes, parse_launch};
use crate::meeting;
use crate::shim::log_name;
use lampyris_proto::v1::failure::Class;
use lampyris_proto::v1::worker_message::Body;
use lampyris_proto::v1::{Capacity, SchedulerMessage, outcome::Kind};
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A worker's loop without a scheduler. What it starts is never carried out: nobody drives its runtime.
struct Bench {
    service: Service,
    _handle: Handle,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

/// Orders that one bench takes; what it was told to start stays in it.
const ORDERS: usize = 500;

impl Bench {
    fn new() -> Bench {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            node: "n0".into(),
            scheduler: Target::default(),
            state_dir: dir.path().into(),
            capacity: Capacity { devices: 2, shared: true, ..Default::default() },
            cores: "0-1".parse().unwrap(),
            shim_command: vec!["true".into()],
            rank_program: "/bin/true".into(),
            host: [127, 0, 0, 1].into(),
            log_bytes: 1 << 20,
            progress_period: Duration::from_secs(1),
        };
        let inside = runtime.enter();
        let (service, handle) = options.build().unwrap();
        drop(inside);
        Bench { service, _handle: handle, runtime, _dir: dir }
    }

    /// What the worker says to an order, if anything.
    fn obey(&mut self, order: SchedulerMessage) -> Option<Body> {
        let _inside = self.runtime.enter();
        let (out, mut said) = mpsc::channel(4);
        self.service.obey(order, &out).expect("there is room for an answer");
        said.try_recv().ok()?.body
    }
}

/// Feeds one input to its parser; what was understood must be of use without a panic.
fn parse(bench: &mut Bench, parser: &str, input: &[u8]) {
    match parser {
        "order" => {
            if let Ok(message) = SchedulerMessage::decode(input) {
                drop(bench.obey(message));
            }
        }
        "launch" => {
            if let Ok(launch) = parse_launch(input) {
                let logs = launch.local_ranks().map(|rank| log_name(rank, launch.run_attempt));
                assert_eq!(logs.count() as u64, launch.ranks_per_node);
                let again = serde_json::to_vec(&launch).unwrap();
                assert_eq!(parse_launch(&again).unwrap(), launch);
            }
        }
        "processes" => {
            if let Ok(processes) = serde_json::from_slice::<Processes>(input) {
                assert!(processes.ranks.len() <= input.len());
            }
        }
        "meeting" => drop(meeting::parse(input)),
        other => panic!("no parser {other}: corpus files are named PARSER-anything"),
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let read = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        (name.split('-').next().unwrap().to_string(), std::fs::read(path).unwrap())
    };
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| read(&entry.unwrap().path()));
    let mut all: Vec<_> = entries.collect();
    all.sort();
    assert!(all.len() >= 20, "every order and every file");
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
        match random.below(7) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => input.truncate(at),
            3 => {
                input.truncate(at);
                input.extend(&other[random.below(other.len())..]);
            }
            // The largest number, as a varint and as digits.
            4 => drop(input.splice(at..at, [0xff; 9].into_iter().chain([1]))),
            5 => drop(input.splice(at..at, u64::MAX.to_string().into_bytes())),
            _ => input.insert(at, random.below(256) as u8),
        }
    }
}

fn fuzz(time: Duration) {
    let corpus = corpus();
    let seed = u64::from(std::process::id()) << 20 | 1;
    let mut random = Random(seed);
    let until = Instant::now() + time;
    let mut bench = Bench::new();
    corpus.iter().for_each(|(parser, input)| parse(&mut bench, parser, input));
    while Instant::now() < until {
        let mut bench = Bench::new();
        for _ in 0..ORDERS {
            let (parser, input) = &corpus[random.below(corpus.len())];
            let mut mutated = input.clone();
            mutate(&mut mutated, &corpus[random.below(corpus.len())].1, &mut random);
            let parse = || parse(&mut bench, parser, &mutated);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(parse));
            assert!(result.is_ok(), "seed {seed}, parser {parser}, input {mutated:02x?}");
        }
    }
}

#[test]
fn an_order_with_numbers_that_no_start_can_have_fails_the_job() {
    for (name, why) in [
        ("order-start-base-max", "more than can be counted"),
        ("order-start-many-ranks", "2 nodes of 4294967295 ranks"),
        ("order-start-index-beyond", "node 9 is not one of 2"),
        ("order-start-without-run", "does not say what to run"),
    ] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
        let order = SchedulerMessage::decode(&std::fs::read(path).unwrap()[..]).unwrap();
        let Some(Body::AttemptEnded(ended)) = Bench::new().obey(order) else {
            panic!("{name} is refused at once")
        };
        let Some(Kind::Failed(failure)) = ended.outcome.unwrap().kind else {
            panic!("{name} has failed")
        };
        assert_eq!(failure.class(), Class::BadRecipe, "{name}");
        assert!(failure.message.contains(why), "{name}: {}", failure.message);
    }
}

#[test]
fn a_worker_survives_the_corpus_and_a_second_of_mutations() {
    fuzz(Duration::from_secs(1));
}

#[test]
#[ignore = "long: ten minutes of mutated orders and files"]
fn a_worker_survives_ten_minutes_of_mutations() {
    fuzz(Duration::from_secs(600));
}
