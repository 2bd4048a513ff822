//! One rank of a measurement of overlap: steps with and without it, and their transfers alone, in turn in one process.
//! `scripts/bench_overlap.py` starts the ranks, one on each of several emulated hosts, and sums up what they print: one
//! JSON object each. Place and rendezvous come from RANK, WORLD_SIZE and MASTER_ADDR.

use anyhow::{Context, Result};
use clap::Parser;
use lampyris_comm::{Attempt, Secret, Server};
use lampyris_model::MicroBatch;
use lampyris_plan::TrainPlan;
use lampyris_plan::program::{Act, Program, Task, Transfer, depend};
use lampyris_plan::segments::Segment;
use lampyris_plan::timeline::Bound;
use lampyris_trainer::alone::Filled;
use lampyris_trainer::bench;
use lampyris_trainer::build::Rank;
use lampyris_trainer::costs::{Costs, median};
use lampyris_trainer::executor::StepInput;
use lampyris_trainer::ranks::{Place, Ranks};
use lampyris_trainer::sampling::uniform;
use lampyris_trainer::state::Progress;
use lampyris_trainer::trace::{Clock, Log, Track, Wait};
use lampyris_trainer::train::loss_scales;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tch::Device;

/// All ranks start at once.
const MEET_TIMEOUT: Duration = Duration::from_secs(60);
/// Emulated hosts belong to one measurement.
const PORT: u16 = 29_556;
const SECRET: [u8; 32] = [7; 32];
/// Steps whose results must be the same with and without overlap.
const COMPARED: usize = 3;

#[derive(Debug, Parser)]
struct Arguments {
    /// Recipe whose step is measured.
    #[arg(long)]
    recipe: PathBuf,
    /// Overrides of recipe keys.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Interleaved pairs of a step with overlap and one without; then so many of transfers alone.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Mode {
    On,
    Off,
    Alone,
}

/// One step. Seconds.
#[derive(Debug, Serialize)]
struct Measured {
    wall: f64,
    /// From the third micro-batch's forward pass to the last one's: without the first and last pair of micro-batches.
    steady_wall: f64,
    /// Waits of the compute thread by kind of transfer.
    exposed: BTreeMap<&'static str, f64>,
    /// Of those, for rows of experts in the steady part.
    steady_exposed: f64,
    /// Waits for all gradient buckets but the final one.
    reduce_exposed: f64,
    /// From the first start to the last end of those buckets.
    reduce_under_way: f64,
    /// The last micro-batch's backward pass.
    last_backward: f64,
    /// Processor time of all threads but the compute thread.
    other_threads: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    rank: usize,
    /// Losses and gradient norms of the first steps have the same bits with and without overlap.
    same_bits: bool,
    on: Vec<Measured>,
    off: Vec<Measured>,
    alone: Vec<Measured>,
    /// The critical path of the program with overlap, with times of the steps without.
    bound: Bound,
    exchanges: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let rank: usize = variable("RANK")?.parse()?;
    let world: usize = variable("WORLD_SIZE")?.parse()?;
    let address: IpAddr = variable("MASTER_ADDR")?.parse()?;
    let options = bench::Options {
        recipe: arguments.recipe,
        sets: arguments.sets,
        warmup: 0,
        steps: 0,
        json: true,
    };
    let mut plan = bench::plan_of(&options)?;
    plan.parallel.data = world;
    tch::set_num_threads(1);
    let rendezvous = SocketAddr::from((address, PORT));
    let secret = || Secret::from_bytes(SECRET);
    let start = || Server::start(rendezvous, secret(), Attempt(1), MEET_TIMEOUT);
    let _server = (rank == 0).then(start).transpose()?;
    let place = Place { rank, nodes: world, node: rank, attempt: 1, rendezvous, secret: secret() };
    let ranks = Ranks::connect(&plan, place)?;
    let report = measure(&plan, Rank::of_plan(&plan, Device::Cpu, ranks)?, arguments.rounds)?;
    #[allow(clippy::print_stdout, reason = "what a measurement is for")]
    {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

/// Both programs; without experts on other ranks, overlap is that of reductions with the backward pass.
fn programs(plan: &TrainPlan, rank: &Rank) -> (Program, Program) {
    let micro_batches = plan.micro_batches() / plan.parallel.data;
    let shape = rank.share.step_shape(micro_batches);
    if exchanges(rank) {
        return (Program::overlapped(&shape), Program::sequential(&shape));
    }
    let on = Program::sequential(&shape);
    let mut order: Vec<Act> = on.acts().collect();
    let reduces = |act: &Act| matches!(act, Act::Start(Transfer::Reduce { .. }));
    let moved: Vec<Act> = order.extract_if(.., |act| reduces(act)).collect();
    let norm = order.iter().position(|act| *act == Act::Run(Task::GradNorm));
    let norm = norm.expect("every step has a norm");
    order.splice(norm..norm, moved);
    let off = depend(order, &shape.graph, &shape.buckets, micro_batches);
    (on, off)
}

/// Whether rows travel between ranks.
fn exchanges(rank: &Rank) -> bool {
    rank.share.mesh().expert > 1
}

fn measure(plan: &TrainPlan, mut rank: Rank, rounds: usize) -> Result<Report> {
    let (on, off) = programs(plan, &rank);
    let input = input(plan, &rank);
    let same_bits =
        first_steps(plan, &mut rank, &on, &input)? == first_steps(plan, &mut rank, &off, &input)?;
    let mut reader = rank.reader()?;
    let fill = |batch| Ok(Filled::new(&mut reader, batch)?);
    let filled = input.batches.iter().map(fill).collect::<Result<Vec<Filled>>>()?;
    let mut logs: HashMap<Mode, Vec<Log>> = HashMap::new();
    let mut report = Report {
        rank: rank.ranks.rank(),
        same_bits,
        on: Vec::new(),
        off: Vec::new(),
        alone: Vec::new(),
        bound: Bound::default(),
        exchanges: exchanges(&rank),
    };
    // A step and its other half in turn, first one first, then the other; the transfers alone behind all of them: what they
    // give back to the kernel would be missing in the step after.
    let pairs = (0..=rounds).map(|round| match round % 2 {
        0 => [Mode::On, Mode::Off],
        _ => [Mode::Off, Mode::On],
    });
    let alone = (0..=rounds).map(|_| [Mode::Alone]);
    let modes = pairs.flatten().chain(alone.flatten());
    for mode in modes {
        let program = if mode == Mode::Off { &off } else { &on };
        rank.ranks.barrier()?;
        let (log, took) = step(plan, &mut rank, (mode, program), (&input, &filled))?;
        let list = match mode {
            Mode::On => &mut report.on,
            Mode::Off => &mut report.off,
            Mode::Alone => &mut report.alone,
        };
        list.push(measured(&log, took, program.micro_batches));
        logs.entry(mode).or_default().push(log);
    }
    // The first of each warms up.
    for list in [&mut report.on, &mut report.off, &mut report.alone] {
        list.remove(0);
    }
    for list in logs.values_mut() {
        list.remove(0);
    }
    let mut costs = Costs::default();
    logs.remove(&Mode::Off).into_iter().flatten().for_each(|log| {
        costs.computation(&log);
        costs.exchanges(&log);
    });
    logs.remove(&Mode::Alone).into_iter().flatten().for_each(|log| costs.buckets(&log));
    report.bound = costs.bound(&on, median);
    rank.ranks.barrier()?;
    Ok(report)
}

/// Runs one step; its log, and the processor time of the other threads.
fn step(
    plan: &TrainPlan,
    rank: &mut Rank,
    (mode, program): (Mode, &Program),
    (input, filled): (&StepInput, &[Filled]),
) -> Result<(Log, f64)> {
    let mut clock = Clock::logging();
    let before = other_threads()?;
    let mut executor = rank.executor(&plan.optimizer, &mut clock);
    match mode {
        Mode::Alone => executor.run_transfers(program, filled)?,
        Mode::On | Mode::Off => {
            executor.run(program, input)?;
            rank.state.progress.step += 1;
        }
    }
    Ok((clock.take_log(), other_threads()? - before))
}

/// Losses and gradient norms of a few steps from initial weights, as bits.
fn first_steps(
    plan: &TrainPlan,
    rank: &mut Rank,
    program: &Program,
    input: &StepInput,
) -> Result<Vec<u64>> {
    rank.reader()?;
    rank.ranks.barrier()?;
    rank.state.initialize(&rank.network.inventory, plan.seed);
    for array in &mut rank.state.arrays {
        for moment in [Some(&mut array.exp_avg), array.exp_avg_sq.as_mut()].into_iter().flatten() {
            let _zeroed = moment.zero_();
        }
    }
    rank.state.biases.iter_mut().for_each(|bias| bias.fill(0.0));
    rank.state.progress = Progress::default();
    rank.ranks.barrier()?;
    let mut bits = Vec::new();
    for _ in 0..COMPARED {
        let mut clock = Clock::default();
        let report = rank.executor(&plan.optimizer, &mut clock).run(program, input)?;
        rank.state.progress.step += 1;
        bits.extend(report.loss_sums.iter().map(|loss| loss.to_bits()));
        bits.extend(report.grad_norm.map(|found| found.norm.to_bits()));
    }
    Ok(bits)
}

fn input(plan: &TrainPlan, rank: &Rank) -> StepInput {
    let depths = rank.network.graph.depths();
    let batch = &plan.batch;
    let width = batch.sequence_length + depths;
    let each = plan.micro_batches() / plan.parallel.data;
    let first = rank.ranks.rank() * each;
    let micro = |micro: usize| {
        let count = batch.micro_batch * width;
        let draw = |i: usize| uniform(plan.seed, (micro * count + i) as u64);
        let tokens = (0..count).map(|i| (draw(i) * plan.model.vocab_size as f64) as i64);
        let tokens: Vec<i64> = tokens.collect();
        MicroBatch::new(&tokens, batch.sequence_length, depths, |_, _| true, Device::Cpu)
    };
    StepInput {
        batches: (first..first + each).map(micro).collect(),
        loss_scales: loss_scales(plan, 0, plan.step_tokens() as usize, depths),
        balance_scale: 1.0 / batch.global_batch as f64,
        lr: 1e-4,
        bias_speed: 1e-3,
    }
}

fn measured(log: &Log, other_threads: f64, micro_batches: usize) -> Measured {
    let first = log.spans.first().expect("a program has instructions").started;
    let last = log.spans.last().expect("a program has instructions").ended;
    let begins = |micro: usize| {
        let embed = Act::Run(Task::Forward { micro, segment: Segment::Embed });
        log.spans.iter().find(|s| s.act == embed).map_or(first, |s| s.started)
    };
    let steady = (begins(2), begins(micro_batches - 1));
    let rows = |wait: &Wait| matches!(wait.transfer(), Some(Transfer::Rows { .. }));
    let is_reduction = |wait: &Wait| matches!(wait.transfer(), Some(Transfer::Reduce { .. }));
    let reduces = || log.waits.iter().filter(|wait| is_reduction(wait));
    let last_one = reduces().map(|wait| wait.started).max();
    let early = |wait: &Wait| is_reduction(wait) && Some(wait.started) != last_one;
    let started = reduces().filter(|t| early(t)).map(|t| t.started).min();
    let done = reduces().filter(|t| early(t)).map(|t| t.done).max();
    let of_last = |act: Act| {
        matches!(act, Act::Run(Task::Backward { micro, .. } | Task::Weight { micro, .. })
            if micro + 1 == micro_batches)
    };
    let backward: Vec<_> = log.spans.iter().filter(|s| of_last(s.act)).collect();
    let backward = backward.first().zip(backward.last());
    let seconds = |d: Duration| d.as_secs_f64();
    Measured {
        wall: seconds(last - first),
        steady_wall: seconds(steady.1 - steady.0),
        exposed: Track::ALL
            .map(|track| {
                let of = |wait: &Wait| wait.awaited.track() == track;
                (track.name(), seconds(log.exposed((first, last), of)))
            })
            .into(),
        steady_exposed: seconds(log.exposed(steady, rows)),
        reduce_exposed: seconds(log.exposed((first, last), early)),
        reduce_under_way: started.zip(done).map_or(0.0, |(from, to)| seconds(to - from)),
        last_backward: backward.map_or(0.0, |(from, to)| seconds(to.ended - from.started)),
        other_threads,
    }
}

/// Processor time of all threads of this process but the first, seconds.
fn other_threads() -> Result<f64> {
    let mut sum = 0f64;
    for entry in std::fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy() == std::process::id().to_string() {
            continue;
        }
        // A thread that has just ended has no more to say.
        let Ok(text) = std::fs::read_to_string(entry.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().unwrap_or("0").parse::<f64>()?;
    }
    Ok(sum / 1e9)
}
