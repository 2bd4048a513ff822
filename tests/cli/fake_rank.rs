//! Stands in for `lampyris-rank` in tests: speaks the shim's protocol and does what the script in `FAKE_RANK` says.
//!
//! A script is a list of words, one script per rank separated by `|` (the last one serves all further ranks):
//! `ready`, `steps=N`, `busy=WHAT`, `eval=BPB`,
//! `from=STEP` (counts steps from there), `commit` (a real checkpoint of the run's plan, whose values follow from the step), `sample`, `log=TEXT`, `fail=CAUSE` (number of the cause), `garbage`,
//! `huge`, `wait` (for a suspend request, then says so and exits 85 or 86), `ignore` (everything until the shim is
//! gone, as a stuck rank does), `deadline` (waits for one and logs it), `place` (logs node, threads and cores),
//! `meet` (forms a communicator with the other ranks and adds up ones), `finish`, `exit=N`, `signal=NAME`.
//! Without a script it is a good rank: `ready steps=3 finish`.

#![allow(clippy::unwrap_used, reason = "a test program: what is unexpected must panic")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test program")]

use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::tensors::{TensorEntry, tensor_list};
use lampyris_checkpoint::{CheckpointId, Digests, Kind, Meta, Piece, Run, Transfer};
use lampyris_comm::{self as comm, Communicator, Membership, Secret};
use lampyris_plan::{Attempt, Inventory, Rank, Step, TrainPlan, digest};
use lampyris_proto::frame;
use lampyris_proto::rank::{
    Evaluated, Failed, Finished, FromRank, Operation, Ready, Sample, Saved, StepDone, Suspended,
    ToRank, from_rank::Body, to_rank,
};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR2};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::{env, io};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("train") => train(&arguments),
        Some("--build-id") => {
            println!("{}", build_id());
            ExitCode::SUCCESS
        }
        _ => {
            println!("{}", arguments.join(" "));
            ExitCode::from(env::var("FAKE_EXIT").map_or(0, |code| code.parse().unwrap()))
        }
    }
}

fn build_id() -> String {
    let own = || lampyris_proto::build_id(lampyris_plan::train_plan::SCHEMA);
    env::var("FAKE_BUILD_ID").unwrap_or_else(|_| own())
}

fn train(arguments: &[String]) -> ExitCode {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    for signal in [SIGTERM, SIGUSR2, SIGHUP] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).unwrap();
    }
    let text = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag);
        at.map(|at| arguments[at + 1].clone()).unwrap_or_default()
    };
    let number = |flag: &str| text(flag).parse::<u64>().unwrap();
    let rank = number("--rank");
    let script = env::var("FAKE_RANK").unwrap_or_else(|_| "ready steps=3 finish".into());
    let scripts: Vec<&str> = script.split('|').collect();
    let script = scripts[(rank as usize).min(scripts.len() - 1)];
    let socket = io::stdin().as_fd().try_clone_to_owned().unwrap();
    let attempt = number("--attempt");
    let (run_dir, plan) = (text("--run-dir"), text("--plan"));
    let place = ["--world", "--nodes", "--node", "--rendezvous", "--secret-fd"].map(text);
    let mut fake = Fake { socket: socket.into(), rank, attempt, step: 0, run_dir, plan, place };
    for word in script.split_whitespace() {
        let (verb, value) = word.split_once('=').unwrap_or((word, ""));
        if let Some(code) = fake.act(verb, value) {
            return code;
        }
    }
    ExitCode::SUCCESS
}

struct Fake {
    socket: UnixStream,
    rank: u64,
    attempt: u64,
    step: u64,
    run_dir: String,
    plan: String,
    /// World, nodes, node, rendezvous, descriptor of the secret.
    place: [String; 5],
}

impl Fake {
    fn act(&mut self, verb: &str, value: &str) -> Option<ExitCode> {
        match verb {
            "ready" => self.say(Body::Ready(Ready {
                rank: self.rank,
                attempt: self.attempt,
                pid: std::process::id(),
                build_id: build_id(),
                threads: 1,
                device: "cpu (fake)".into(),
            })),
            "steps" => (0..value.parse().unwrap()).for_each(|_| self.one_step()),
            "from" => self.step = value.parse().unwrap(),
            "busy" => {
                self.say(Body::Operation(Operation { what: value.into(), done: 0, total: 0 }));
            }
            "eval" => self.say(Body::Evaluated(Evaluated {
                step: self.step,
                nats_per_token: 1.5,
                bits_per_byte: value.parse().unwrap(),
                tokens: 1000,
                bytes: 3000,
                is_final: true,
            })),
            "commit" => self.commit(),
            "sample" => {
                let (prompt, text) = ("fn ".into(), "main() {}".into());
                self.say(Body::Sample(Sample { prompt, text }));
            }
            "log" => eprintln!("{value}"),
            "fail" => {
                let (message, hint) = ("the fake failed".into(), "mend the fake".into());
                self.say(Body::Failed(Failed { cause: value.parse().unwrap(), message, hint }));
            }
            "garbage" => self.socket.write_all(&[9, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap(),
            "huge" => self.socket.write_all(&[0xff; 8]).unwrap(),
            "wait" => return Some(self.wait()),
            "ignore" => while self.hear().is_some() {},
            "deadline" => {
                while let Some(body) = self.hear() {
                    if let to_rank::Body::Deadline(at) = body {
                        eprintln!("deadline {}", at.boottime_ns);
                        break;
                    }
                }
            }
            "place" => {
                let [_, nodes, node, ..] = &self.place;
                let threads = env::var("OMP_NUM_THREADS").unwrap_or_else(|_| "all".into());
                let cores = std::thread::available_parallelism().unwrap();
                eprintln!("node {node} of {nodes}, {threads} threads on {cores} cores");
            }
            "meet" => self.meet(),
            "finish" => {
                let (step, tokens, train_s) = (self.step, self.step * 64, 1.0);
                self.say(Body::Finished(Finished { step, tokens, train_s }));
            }
            "exit" => return Some(ExitCode::from(value.parse::<u8>().unwrap())),
            "signal" => {
                let signal = match value {
                    "ABRT" => Signal::ABORT,
                    "KILL" => Signal::KILL,
                    other => panic!("no signal {other}"),
                };
                kill_process(getpid(), signal).unwrap();
            }
            other => panic!("no verb {other}"),
        }
        None
    }

    fn one_step(&mut self) {
        self.step += 1;
        self.say(Body::StepDone(StepDone {
            step: self.step,
            total_steps: 1000,
            tokens: self.step * 64,
            loss: 5.0 / (self.step as f64).sqrt(),
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_s: 1234.5,
            step_s: 0.05,
        }));
    }

    /// One rank's checkpoint at the present step; the first one of an attempt records its parent.
    fn commit(&mut self) {
        let run = Run::open(Arc::new(RealDisk), Path::new(&self.run_dir)).unwrap();
        let attempt = Attempt(self.attempt);
        if run.lineage().unwrap().newest() != Some(attempt) {
            run.record(attempt, run.candidates().unwrap().first().copied()).unwrap();
        }
        let plan = std::fs::read_to_string(&self.plan).unwrap();
        let plan: TrainPlan = toml::from_str(&plan).unwrap();
        let kinds = [Kind::Weight, Kind::ExpAvg, Kind::ExpAvgSq];
        let tensors = tensor_list(&Inventory::new(&plan.model), &kinds);
        let longest = tensors.iter().map(TensorEntry::elements).max().unwrap();
        let values = vec![self.step as f32 * 0.5; longest as usize];
        let mut pieces = Vec::new();
        for tensor in &tensors {
            let data = &values[..tensor.elements() as usize];
            let of = |&kind| Piece { tensor: &tensor.name, kind, start: 0, data };
            pieces.extend(tensor.kinds.iter().map(of));
        }
        let id = CheckpointId { step: Step(self.step), attempt };
        let report = run.write_shard(id, Rank(0), &pieces, Transfer::default()).unwrap();
        let bytes = report.entry.data_bytes;
        let digests = digest::Digests::of(&plan);
        let meta = Meta {
            id,
            digests: Digests { numerics: digests.numerics, plan: digests.plan },
            fingerprint: [("cpu".to_string(), "fake".to_string())].into(),
            validation_loss: None,
            state: [("samples".to_string(), self.step.into())].into(),
            tensors,
        };
        let path = run.commit(&meta, &[report]).unwrap().display().to_string();
        self.say(Body::Saved(Saved { step: self.step, path, bytes, save_s: 0.25 }));
    }

    /// Proves that every rank is there, knows the secret and takes its node for the right one.
    fn meet(&self) {
        let [world, nodes, node, rendezvous, secret] = &self.place;
        let world: usize = world.parse().unwrap();
        let secret = File::open(format!("/proc/self/fd/{secret}")).unwrap();
        let membership = Membership {
            rank: comm::Rank::of(self.rank as usize),
            ranks: world,
            node: comm::Node(node.parse().unwrap()),
            attempt: comm::Attempt(self.attempt as u32),
            generation: comm::Generation(0),
            rendezvous: rendezvous.parse().unwrap(),
            address: None,
            secret: Secret::from_fd(secret.into()).unwrap(),
        };
        let communicator = Communicator::connect(&membership, comm::Options::default()).unwrap();
        let mut ones = [1.0_f32; 5];
        communicator.world().all_reduce(&mut ones).unwrap();
        assert_eq!(ones, [world as f32; 5]);
        let last = communicator.node_of(comm::Rank::of(world - 1));
        assert_eq!((last.0 + 1).to_string(), *nodes);
        eprintln!("met {world} ranks on {nodes} nodes");
    }

    fn wait(&mut self) -> ExitCode {
        loop {
            match self.hear() {
                Some(to_rank::Body::Suspend(suspend)) => {
                    let stay_stopped = suspend.stay_stopped;
                    self.say(Body::Suspended(Suspended { step: self.step, stay_stopped }));
                    return ExitCode::from(if stay_stopped { 86 } else { 85 });
                }
                Some(to_rank::Body::Deadline(_)) => {}
                None => return ExitCode::from(75),
            }
        }
    }

    fn say(&mut self, body: Body) {
        frame::write(&mut self.socket, &FromRank { body: Some(body) }).unwrap();
    }

    /// The next message, or none when the shim is gone.
    fn hear(&mut self) -> Option<to_rank::Body> {
        frame::read::<ToRank>(&mut self.socket).unwrap()?.body
    }
}
