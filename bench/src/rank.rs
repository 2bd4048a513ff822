//! One rank of a bench.

use super::floor::{SpinBarrier, all_reduce as floor_all_reduce};
use super::report::{Line, Report};
use super::{Assignment, MEET, Operation, Options, wire};
use crate::error::{Error, Result};
use lampyris_comm::{
    Attempt, Communicator, DType, Error as CommError, Generation, Group, Membership, Memory, Node,
    Options as CommOptions, Rank, Secret, Server,
};
use lampyris_hfreduce::kernels::Level;
use lampyris_hfreduce::{Bucket, HfReduce, HostTensor, Options as ReduceOptions};
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Rounds before those that count.
const WARM_UP: usize = 3;

/// Runs one rank: reads its assignment from standard input; rank 0 writes the report to standard output.
///
/// # Errors
/// When anything fails; the starter sees the exit status.
pub fn rank_main() -> Result<()> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|source| CommError::io("reading the assignment", source))?;
    let assignment: Assignment =
        serde_json::from_str(&text).map_err(|error| Error::Invalid(error.to_string()))?;
    if let Some(core) = assignment.core {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set)
            .map_err(|errno| CommError::io("pinning to a core", errno))?;
    }
    let secret: [u8; 32] =
        assignment.secret.try_into().map_err(|_| Error::Invalid("a short secret".into()))?;
    let secret = Secret::from_bytes(secret);
    let rendezvous = assignment
        .rendezvous
        .parse()
        .map_err(|_| Error::Invalid(format!("no address: {}", assignment.rendezvous)))?;
    let served = assignment
        .serve
        .then(|| Server::start(rendezvous, secret.clone(), Attempt(1), MEET))
        .transpose()?;
    let options = assignment.options;
    let per_node = options.ranks / options.nodes;
    let node = u32::try_from(assignment.rank / per_node).expect("few nodes");
    let me = Membership {
        rank: Rank(u32::try_from(assignment.rank).expect("few ranks")),
        ranks: options.ranks,
        node: Node(node),
        attempt: Attempt(1),
        generation: Generation(0),
        rendezvous,
        address: None,
        secret,
    };
    let mut settings = CommOptions::default();
    settings.chunk_bytes = options.chunk_bytes.unwrap_or(settings.chunk_bytes);
    for row in options.prefer.iter().rev() {
        settings.table.prefer(row.parse()?);
    }
    let crowded = options.ranks > std::thread::available_parallelism().map_or(1, usize::from);
    if crowded {
        settings.spin = Duration::ZERO;
    }
    let comm = Communicator::connect(&me, settings)?;
    let report = measure(&comm, &options, rendezvous.ip())?;
    if assignment.rank == 0 {
        let out = std::io::stdout().lock();
        serde_json::to_writer(out, &report).map_err(|error| Error::Invalid(error.to_string()))?;
    }
    comm.world().barrier()?;
    drop(served);
    Ok(())
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

fn measure(comm: &Communicator, options: &Options, rendezvous: std::net::IpAddr) -> Result<Report> {
    let world = comm.world();
    let started = load();
    let raw_stream = if options.nodes > 1 {
        // The address of this host on the emulated network is the one that reaches the rendezvous.
        let here = local_address(rendezvous)?;
        Some(wire::measure(&world, options.seconds, here)?)
    } else {
        None
    };
    let dtype = match options.dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::Bf16,
        "f16" => DType::F16,
        other => return Err(Error::Invalid(format!("no dtype {other:?}: f32, bf16 or f16"))),
    };
    let mut lines = Vec::new();
    for &bytes in &options.sizes {
        let mut case = Case::new(comm, options, dtype, bytes)?;
        case.check()?;
        let mut line = if options.nodes == 1 { case.rounds()? } else { case.back_to_back()? };
        if let Some(raw) = raw_stream.filter(|_| options.operation == Operation::AllReduce) {
            let nodes = options.nodes as f64;
            let bound = 2.0 * (nodes - 1.0) / nodes * bytes as f64 / raw;
            line.share_of_bound = Some(bound / line.mean_s);
        }
        lines.push(line);
    }
    let place = match options.rate_bits {
        Some(rate) => format!(", links of {} Gbit/s", rate as f64 / 1e9),
        None => String::new(),
    };
    let title = format!(
        "{:?}, {} ranks on {} nodes{place}, {}, {}, {} memory, algorithm {}",
        options.operation,
        options.ranks,
        options.nodes,
        options.dtype,
        if options.canonical { "canonical" } else { "fast" },
        if options.private { "private" } else { "shared" },
        options.algorithm.as_deref().unwrap_or("by table"),
    );
    Ok(Report { title, lines, raw_stream, load: (started, load()) })
}

fn local_address(toward: std::net::IpAddr) -> Result<std::net::IpAddr> {
    let failed = |source| CommError::io("finding this host's address", source);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(failed)?;
    socket.connect((toward, 9)).map_err(failed)?;
    Ok(socket.local_addr().map_err(failed)?.ip())
}

/// One size.
struct Case<'a> {
    options: &'a Options,
    world: Group,
    reducer: HfReduce,
    dtype: DType,
    bytes: usize,
    subject: Subject,
    barrier: Option<SpinBarrier>,
    floor: Vec<Memory>,
}

enum Subject {
    Bucket(Bucket),
    Exchange { input: Vec<u8>, output: Vec<u8>, counts: Vec<usize> },
}

impl<'a> Case<'a> {
    fn new(comm: &Communicator, options: &'a Options, dtype: DType, bytes: usize) -> Result<Self> {
        let world = comm.world();
        let algorithm = options.algorithm.as_deref().map(str::parse).transpose()?;
        let settings =
            ReduceOptions { canonical: options.canonical, algorithm, ..ReduceOptions::default() };
        let reducer = HfReduce::new(comm, world.members(), &settings)?;
        let elements = bytes / dtype.bytes();
        let one_node = options.nodes == 1;
        let barrier = one_node.then(|| SpinBarrier::share(&world)).transpose()?;
        let subject = match options.operation {
            Operation::AllToAll => {
                let part = bytes / options.ranks;
                let total = part * options.ranks;
                let counts = vec![part; options.ranks];
                Subject::Exchange { input: vec![0; total], output: vec![0; total], counts }
            }
            Operation::AllReduce if options.private => {
                Subject::Bucket(private(&reducer, dtype, elements)?)
            }
            Operation::AllReduce => Subject::Bucket(reducer.bucket(dtype, elements)?),
        };
        let floor = match &subject {
            Subject::Bucket(bucket) if one_node => bucket.local_memories().to_vec(),
            _ => Vec::new(),
        };
        Ok(Self { options, world, reducer, dtype, bytes, subject, barrier, floor })
    }

    /// One operation on data whose result is known, in whole numbers that every type holds exactly.
    fn check(&mut self) -> Result<()> {
        let (me, ranks) = (self.world.member(), self.options.ranks);
        let wrong = |what: &str| Error::Invalid(format!("WRONG RESULT of {what}"));
        match &mut self.subject {
            Subject::Exchange { input, counts, .. } => {
                for (to, part) in input.chunks_mut(counts[0].max(1)).enumerate() {
                    part.fill(u8::try_from(me * ranks + to).unwrap_or(u8::MAX));
                }
            }
            Subject::Bucket(bucket) => fill(bucket, self.dtype, |i| ((i % 7) + me) as f32),
        }
        self.operate()?;
        match &self.subject {
            Subject::Exchange { output, counts, .. } => {
                for (from, part) in output.chunks(counts[0].max(1)).enumerate() {
                    let value = u8::try_from(from * ranks + me).unwrap_or(u8::MAX);
                    if part.iter().any(|byte| *byte != value) {
                        return Err(wrong("all-to-all"));
                    }
                }
            }
            Subject::Bucket(bucket) => {
                let offset = ranks * (ranks - 1) / 2;
                if !holds(bucket, self.dtype, |i| ((i % 7) * ranks + offset) as f32) {
                    return Err(wrong("all-reduce"));
                }
                fill(bucket, self.dtype, |_| 0.0);
            }
        }
        Ok(())
    }

    fn operate(&mut self) -> Result<()> {
        match &mut self.subject {
            Subject::Bucket(bucket) => Ok(self.reducer.all_reduce(bucket)?.wait()?),
            Subject::Exchange { input, output, counts } => {
                Ok(self.world.all_to_all((input, counts), (output, counts))?)
            }
        }
    }

    /// Paired rounds with the floor; each time is from the entry barrier to the end of the slowest rank.
    fn rounds(&mut self) -> Result<Line> {
        let rounds = WARM_UP + self.options.rounds;
        let (mut ours, mut floors) = (vec![0.0; rounds], vec![0.0; rounds]);
        let before = self.counted();
        for round in 0..rounds {
            self.pass();
            let start = Instant::now();
            self.operate()?;
            ours[round] = start.elapsed().as_secs_f64();
            if !self.floor.is_empty() {
                self.pass();
                let start = Instant::now();
                floor_all_reduce(&self.floor, self.world.member(), self.dtype, Level::detect());
                self.pass();
                floors[round] = start.elapsed().as_secs_f64();
            }
        }
        let after = self.counted();
        let ours = self.slowest(&ours)?;
        let floors = self.slowest(&floors)?;
        let mut line = self.line(&ours[WARM_UP..], rounds, (before, after))?;
        line.floor_s = (!self.floor.is_empty()).then(|| median(&floors[WARM_UP..]));
        Ok(line)
    }

    /// Operations one after the other for the time asked for.
    fn back_to_back(&mut self) -> Result<Line> {
        let start = Instant::now();
        for _ in 0..WARM_UP {
            self.operate()?;
        }
        let one = start.elapsed().as_secs_f64() / WARM_UP as f64;
        let mut count = [(self.options.seconds / one).ceil().max(3.0) as u64];
        self.world.broadcast(&mut count, 0)?;
        let mut ours = Vec::new();
        self.world.barrier()?;
        let before = self.counted();
        let start = Instant::now();
        for _ in 0..count[0] {
            let begin = Instant::now();
            self.operate()?;
            ours.push(begin.elapsed().as_secs_f64());
        }
        let all = start.elapsed().as_secs_f64();
        let after = self.counted();
        let ours = self.slowest(&ours)?;
        let mut line = self.line(&ours, ours.len(), (before, after))?;
        line.mean_s = self.slowest(&[all])?[0] / ours.len() as f64;
        Ok(line)
    }

    fn pass(&mut self) {
        if let Some(barrier) = &mut self.barrier {
            barrier.pass();
        }
    }

    fn counted(&self) -> (u64, u64) {
        let counters = self.world.counters();
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        (get(&counters.network), get(&counters.host_memory))
    }

    /// Per operation, the time of the slowest rank.
    fn slowest(&self, times: &[f64]) -> Result<Vec<f64>> {
        let mut all = vec![0.0; times.len() * self.world.len()];
        self.world.all_gather(times, &mut all)?;
        let of = |i: usize| all.iter().skip(i).step_by(times.len()).copied().fold(0.0, f64::max);
        Ok((0..times.len()).map(of).collect())
    }

    fn line(
        &self,
        times: &[f64],
        operations: usize,
        (before, after): ((u64, u64), (u64, u64)),
    ) -> Result<Line> {
        let per = |a: u64, b: u64| (b - a) as f64 / operations as f64;
        let mut moved = [per(before.0, after.0), per(before.1, after.1)];
        let nodes = self.options.nodes as f64;
        self.world.all_reduce(&mut moved)?;
        let (ranks, locals) = (self.world.len() as f64, self.world.len() as f64 / nodes);
        let between = if self.options.nodes > 1 { 5.0 } else { 0.0 };
        let bus_factor = match self.options.operation {
            Operation::AllReduce => 2.0 * (ranks - 1.0) / ranks,
            Operation::AllToAll => (ranks - 1.0) / ranks,
        };
        Ok(Line {
            bytes: self.bytes,
            operations: times.len(),
            min_s: times.iter().copied().fold(f64::INFINITY, f64::min),
            median_s: median(times),
            mean_s: times.iter().sum::<f64>() / times.len() as f64,
            bus_factor,
            network_bytes: moved[0] / nodes,
            host_bytes: moved[1] / nodes,
            model_bytes: (locals + 1.0 + between) * self.bytes as f64,
            memcpy_s: memcpy(self.bytes),
            floor_s: None,
            share_of_bound: None,
        })
    }
}

fn private(reducer: &HfReduce, dtype: DType, elements: usize) -> Result<Bucket> {
    let bucket = match dtype {
        DType::F32 => {
            let device = Box::new(HostTensor { data: vec![0f32; elements] });
            reducer.private_bucket(dtype, elements, device)
        }
        _ => {
            let device = Box::new(HostTensor { data: vec![0u16; elements] });
            reducer.private_bucket(dtype, elements, device)
        }
    };
    Ok(bucket?)
}

/// Writes values through whatever staging the bucket has.
fn fill(bucket: &Bucket, dtype: DType, value: impl Fn(usize) -> f32) {
    let encode = |i: usize| encode(dtype, value(i));
    let bytes: Vec<u8> = (0..bucket.elements()).flat_map(encode).collect();
    match bucket.memory() {
        Some(_) if dtype == DType::F32 => bucket.with(|all: &mut [f32]| {
            bytemuck::cast_slice_mut::<f32, u8>(all).copy_from_slice(&bytes);
        }),
        Some(_) => bucket.with(|all: &mut [u16]| {
            bytemuck::cast_slice_mut::<u16, u8>(all).copy_from_slice(&bytes);
        }),
        None => {
            let copied = bucket.with_device(|device| {
                device.copy_to_device(Memory::of_const(&bytes), 0..bucket.elements())
            });
            copied.expect("a private bucket").expect("host memory does not refuse");
        }
    }
}

fn holds(bucket: &Bucket, dtype: DType, value: impl Fn(usize) -> f32) -> bool {
    let mut bytes = vec![0u8; bucket.elements() * dtype.bytes()];
    match bucket.memory() {
        Some(_) if dtype == DType::F32 => {
            bucket.with(|all: &mut [f32]| bytes.copy_from_slice(bytemuck::cast_slice(all)));
        }
        Some(_) => bucket.with(|all: &mut [u16]| bytes.copy_from_slice(bytemuck::cast_slice(all))),
        None => {
            let copied = bucket.with_device(|device| {
                device.copy_to_host(0..bucket.elements(), Memory::of(&mut bytes))
            });
            copied.expect("a private bucket").expect("host memory does not refuse");
        }
    }
    bytes.chunks(dtype.bytes()).enumerate().all(|(i, got)| got == encode(dtype, value(i)))
}

fn encode(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::F32 => value.to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => half::f16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

/// Fastest of three.
fn memcpy(bytes: usize) -> f64 {
    let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
    let one = || {
        let start = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        start.elapsed().as_secs_f64()
    };
    std::iter::repeat_with(one).take(3).fold(f64::INFINITY, f64::min)
}
