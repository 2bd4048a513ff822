//! Stands in for `lampyris-rank` where a cluster is tested and weights do not matter: a rank that counts steps at a steady
//! pace, with real checkpoints, suspends and deadlines. What it computes is one number that depends on every step, so a step
//! that was lost or done twice shows in the end.
//!
//! `STEADY_RANK="MS EVERY"`: milliseconds of a step and steps between checkpoints; a third number is the step after which
//! the first attempt hangs, its ranks in a collective that rank 1 never enters. `STEADY_DIES_AT` names a place at which it dies. Every start, commit and end is a line of
//! `history.jsonl` in the run directory, appended at once: the oracle of `history.rs`. What it goes on from is read from the
//! checkpoint alone.

#![allow(clippy::unwrap_used, reason = "a test program: what is unexpected must panic")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test program")]

use lampyris_plan::TrainPlan;
use lampyris_proto::frame;
use lampyris_proto::rank::from_rank::Body;
use lampyris_proto::rank::{
    Failed, Finished, FromRank, Operation, Ready, Saved, StepDone, Suspended, ToRank,
    failed::Cause, to_rank,
};
use lampyris_tests::fake_checkpoint;
use lampyris_tests::steady::{Line, append, next_state, take_rank};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, thread};

/// What the shim has said.
#[derive(Default)]
struct Told {
    /// 85 or 86 once asked to suspend.
    suspend: AtomicU8,
    deadline_ns: AtomicU64,
    gone: AtomicBool,
}

struct Steady {
    socket: UnixStream,
    told: Arc<Told>,
    run_dir: PathBuf,
    plan: TrainPlan,
    rank: u64,
    attempt: u64,
    step: u64,
    state: u64,
    pace: Pace,
}

/// Of [`Steady`].
struct Pace {
    step: Duration,
    /// Steps between checkpoints.
    save_every: u64,
    /// After this step the first attempt goes no further.
    hang_after: Option<u64>,
}

impl Pace {
    fn parse(text: &str) -> Pace {
        let numbers: Vec<u64> = text.split(' ').map(|word| word.parse().unwrap()).collect();
        Pace {
            step: Duration::from_millis(numbers[0]),
            save_every: numbers[1],
            hang_after: numbers.get(2).copied(),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some("--build-id") {
        println!("{}", build_id());
        return ExitCode::SUCCESS;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let text = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag).unwrap();
        arguments[at + 1].clone()
    };
    let number = |flag: &str| text(flag).parse::<u64>().unwrap();
    let pace = Pace::parse(&env::var("STEADY_RANK").unwrap());
    let socket: UnixStream = io::stdin().as_fd().try_clone_to_owned().unwrap().into();
    let told = Arc::new(Told::default());
    let (ears, heard) = (socket.try_clone().unwrap(), Arc::clone(&told));
    thread::spawn(move || listen(ears, &heard));
    let plan: TrainPlan =
        toml::from_str(&std::fs::read_to_string(text("--plan")).unwrap()).unwrap();
    let (rank, attempt) = (number("--rank"), number("--attempt"));
    let run_dir = PathBuf::from(text("--run-dir"));
    let lock = take_rank(&run_dir, rank).unwrap();
    let mut steady = Steady { socket, told, run_dir, plan, rank, attempt, step: 0, state: 0, pace };
    if lock.is_none() {
        steady.note_anyway("beside");
    }
    steady.train()
}

fn build_id() -> String {
    lampyris_proto::build_id(lampyris_plan::train_plan::SCHEMA)
}

fn listen(mut socket: UnixStream, told: &Told) {
    while let Ok(Some(ToRank { body })) = frame::read::<ToRank>(&mut socket) {
        match body {
            Some(to_rank::Body::Suspend(suspend)) => {
                let code = if suspend.stay_stopped { 86 } else { 85 };
                told.suspend.fetch_max(code, Ordering::AcqRel);
            }
            Some(to_rank::Body::Deadline(at)) => {
                told.deadline_ns.store(at.boottime_ns, Ordering::Release);
            }
            None => {}
        }
    }
    told.gone.store(true, Ordering::Release);
}

fn boottime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Steady {
    fn train(&mut self) -> ExitCode {
        self.say(Body::Ready(Ready {
            rank: self.rank,
            attempt: self.attempt,
            pid: std::process::id(),
            build_id: build_id(),
            threads: 1,
            device: "cpu (steady)".into(),
        }));
        let total_steps = lampyris_plan::lr::steps(&self.plan);
        (self.step, self.state) = self.load();
        eprintln!("attempt {} begins after step {}", self.attempt, self.step);
        self.note("start");
        self.reached("start");
        while self.step < total_steps {
            if self.told.gone.load(Ordering::Acquire) {
                return ExitCode::from(75);
            }
            let suspend = self.told.suspend.load(Ordering::Acquire);
            if suspend > 0 {
                self.reached("suspend");
                self.commit();
                self.reached("suspended");
                let (step, stay_stopped) = (self.step, suspend == 86);
                self.note("suspend");
                self.say(Body::Suspended(Suspended { step, stay_stopped }));
                return ExitCode::from(suspend);
            }
            self.in_time();
            self.one_step(total_steps);
            if self.step.is_multiple_of(self.pace.save_every) {
                self.commit();
            }
            if self.attempt == 1 && self.pace.hang_after == Some(self.step) {
                self.hang();
            }
        }
        self.reached("finish");
        self.commit();
        self.reached("finished");
        self.note("finish");
        let (step, tokens) = (self.step, self.step * 64);
        self.say(Body::Finished(Finished { step, tokens, train_s: 1.0 }));
        ExitCode::SUCCESS
    }

    /// Ends this process if its deadline has passed: no step and no commit begins then.
    fn in_time(&mut self) {
        let deadline = self.told.deadline_ns.load(Ordering::Acquire);
        if deadline > 0 && boottime_ns() >= deadline {
            let (message, hint) = ("the deadline has passed".into(), String::new());
            self.say(Body::Failed(Failed { cause: Cause::Deadline.into(), message, hint }));
            std::process::exit(75);
        }
    }

    /// The step of the newest checkpoint of the lineage, and the number in it.
    fn load(&self) -> (u64, u64) {
        let newest = fake_checkpoint::load(&self.run_dir).expect("a checkpoint that was committed");
        newest.map_or((0, 0), |(id, number)| (id.step.0, number))
    }

    /// Rank 1 never enters what the others wait in.
    fn hang(&mut self) -> ! {
        if self.rank != 1 {
            let (what, done, total) = ("all-reduce".into(), 0, 0);
            self.say(Body::Operation(Operation { what, done, total }));
        }
        loop {
            thread::park();
        }
    }

    fn one_step(&mut self, total_steps: u64) {
        let began = Instant::now();
        thread::sleep(self.pace.step);
        self.step += 1;
        self.state = next_state(self.state, self.step);
        self.say(Body::StepDone(StepDone {
            step: self.step,
            total_steps,
            tokens: self.step * 64,
            loss: 5.0 / (self.step as f64).sqrt(),
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_s: 64.0 / began.elapsed().as_secs_f64(),
            step_s: began.elapsed().as_secs_f64(),
        }));
    }

    /// Rank 0 commits for all: the others hold nothing.
    fn commit(&mut self) {
        if self.rank > 0 {
            return;
        }
        self.in_time();
        let began = Instant::now();
        self.note("saving");
        let (run_dir, step, attempt) = (&self.run_dir, self.step, self.attempt);
        match fake_checkpoint::commit(run_dir, &self.plan, step, attempt, self.state) {
            Ok((path, bytes)) => {
                self.reached("saved");
                self.note("commit");
                let save_s = began.elapsed().as_secs_f64();
                let path = path.display().to_string();
                self.say(Body::Saved(Saved { step, path, bytes, save_s }));
            }
            Err(error) => self.cannot_save(&error),
        }
    }

    /// Ends the first attempt here, as `kill -9` would, if `STEADY_DIES_AT` names this place.
    fn reached(&self, place: &str) {
        if self.attempt == 1 && env::var("STEADY_DIES_AT").is_ok_and(|at| at == place) {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, Signal::KILL).unwrap();
        }
    }

    fn note(&mut self, what: &str) {
        if self.rank == 0 {
            self.note_anyway(what);
        }
    }

    fn note_anyway(&mut self, what: &str) {
        let (attempt, step, state) = (self.attempt, self.step, self.state);
        let line = Line { what: what.into(), attempt, step, state };
        if let Err(error) = append(&self.run_dir, &line) {
            self.cannot_save(&error);
        }
    }

    fn cannot_save(&mut self, error: &dyn std::error::Error) -> ! {
        let message = format!("cannot save: {error}");
        let cause = Cause::Storage.into();
        self.say(Body::Failed(Failed { cause, message, hint: String::new() }));
        std::process::exit(75);
    }

    fn say(&mut self, body: Body) {
        // A shim that is gone ends this process.
        frame::write(&mut self.socket, &FromRank { body: Some(body) }).ok();
    }
}
