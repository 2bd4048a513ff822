//! Mutation fuzzing of what a worker takes from others: orders of a scheduler, and files that a later worker or another
//! node's shim reads. The corpus is `worker/tests/corpus`.

use super::service::Service;
use super::{Handle, Options};
use crate::client::Target;
use crate::launch::{Processes, parse_launch};
use crate::meeting;
use crate::shim::log_name;
use lampyris_fuzz::fuzz;
use lampyris_proto::v1::failure::Class;
use lampyris_proto::v1::worker_message::Body;
use lampyris_proto::v1::{Capacity, SchedulerMessage, outcome::Kind};
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::Duration;
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

fn run(time: Duration) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let (mut bench, mut taken) = (Bench::new(), 0);
    fuzz(&folder, time, None, |parser, input| {
        if taken == ORDERS {
            (bench, taken) = (Bench::new(), 0);
        }
        taken += 1;
        parse(&mut bench, parser, input);
    });
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
    run(Duration::from_secs(1));
}

#[test]
#[ignore = "long: ten minutes of mutated orders and files"]
fn a_worker_survives_ten_minutes_of_mutations() {
    run(Duration::from_secs(600));
}
