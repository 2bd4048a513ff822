//! Measures all-reduce and all-to-all: starts the ranks itself, checks results, times, and says what was moved.
//!
//! Inside one node every round is paired with the floor (`floor.rs`: in place, spinning barriers, no transport, no
//! checks), so a ratio compares neighbouring moments of the same machine. Between emulated nodes operations run back
//! to back for [`Options::seconds`], as does one raw tcp stream over the same shaped link: the bound.
//!
//! The starting program calls [`run`]; a rank is the same program started with arguments that lead to [`rank_main`].

mod arguments;
mod error;
mod floor;
mod rank;
mod report;
mod wire;

pub use arguments::Arguments;
pub use error::{Error, Result};
pub use rank::rank_main;
pub use report::{Line, Report};

use lampyris_comm::emulation::{Hosts, Shape};
use lampyris_comm::{Attempt, Error as CommError, Secret, Server};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Which operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// The sum of all buffers in all of them.
    AllReduce,
    /// An equal part of every buffer to everybody.
    AllToAll,
}

/// What to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Which operation.
    pub operation: Operation,
    /// Ranks in all.
    pub ranks: usize,
    /// Nodes. More than one: tcp between them, on loopback or, with `rate_bits`, between emulated hosts.
    pub nodes: usize,
    /// Bytes per rank.
    pub sizes: Vec<usize>,
    /// `f32`, `bf16`, `f16`.
    pub dtype: String,
    /// Algorithm between the nodes; the table's choice when absent.
    pub algorithm: Option<String>,
    /// Rows in front of the table of algorithms.
    pub prefer: Vec<String>,
    /// Canonical order.
    pub canonical: bool,
    /// Buffers in private memory instead of shared.
    pub private: bool,
    /// Measured rounds inside one node.
    pub rounds: usize,
    /// Time of back-to-back operations between nodes.
    pub seconds: f64,
    /// Emulate the nodes as hosts with links of this rate.
    pub rate_bits: Option<u64>,
    /// Most bytes of a piece between nodes.
    pub chunk_bytes: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            operation: Operation::AllReduce,
            ranks: 2,
            nodes: 1,
            sizes: vec![1 << 20, 16 << 20, 64 << 20, 256 << 20],
            dtype: "f32".into(),
            algorithm: None,
            prefer: Vec::new(),
            canonical: true,
            private: false,
            rounds: 12,
            seconds: 3.0,
            rate_bits: None,
            chunk_bytes: None,
        }
    }
}

/// How a rank is started: a program and the arguments with which it calls [`rank_main`].
#[derive(Debug, Clone)]
pub struct RankProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// What a rank reads from its standard input, so that the secret is in no argument list.
#[derive(Debug, Serialize, Deserialize)]
struct Assignment {
    options: Options,
    rank: usize,
    rendezvous: String,
    /// This rank runs the rendezvous.
    serve: bool,
    secret: Vec<u8>,
    /// The bench is between processes on one machine: keep each rank on one core.
    core: Option<usize>,
}

/// Port of the rendezvous on the first emulated host.
const HOST_PORT: u16 = 29_400;

/// Time for all ranks to meet.
const MEET: Duration = Duration::from_secs(30);

/// Measures.
///
/// # Errors
/// When a rank cannot be started, a result is wrong, or the options make no sense.
pub fn run(options: &Options, program: &RankProgram) -> Result<Report> {
    if options.nodes == 0 || !options.ranks.is_multiple_of(options.nodes) {
        let (ranks, nodes) = (options.ranks, options.nodes);
        return Err(Error::Invalid(format!("{ranks} ranks on {nodes} nodes")));
    }
    let secret = lampyris_comm::Secret::random_bytes()?;
    let shape = options.rate_bits.map(Shape::of);
    let hosts = shape.map(|shape| Hosts::new(options.nodes, Some(shape))).transpose()?;
    let any = "127.0.0.1:0".parse().expect("an address");
    let server = match &hosts {
        Some(_) => None,
        None => Some(Server::start(any, Secret::from_bytes(secret), Attempt(1), MEET)?),
    };
    let rendezvous = match (&hosts, &server) {
        (Some(hosts), _) => format!("{}:{HOST_PORT}", hosts.address(0)),
        (None, server) => server.as_ref().expect("made above").address().to_string(),
    };
    let mut children = Vec::new();
    for rank in 0..options.ranks {
        let node = rank / (options.ranks / options.nodes);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let assignment = Assignment {
            options: options.clone(),
            rank,
            rendezvous: rendezvous.clone(),
            serve: hosts.is_some() && rank == 0,
            secret: secret.to_vec(),
            core: (options.nodes == 1).then_some(rank % cores),
        };
        let command = match &hosts {
            Some(hosts) => hosts.command(node, &program.program),
            None => Command::new(&program.program),
        };
        children.push(start(command, &program.arguments, &assignment)?);
    }
    collect(children)
}

/// Runs a program, the first of `words`, on every one of `nodes` emulated hosts with links of this rate, with the
/// environment of a `torch.distributed` job: for other libraries beside ours.
///
/// # Errors
/// When the hosts cannot be made or a program ends badly.
pub fn on_hosts(nodes: usize, rate_bits: u64, words: &[OsString]) -> Result<()> {
    let [program, arguments @ ..] = words else {
        return Err(Error::Invalid("no program to run on the hosts".into()));
    };
    let hosts = Hosts::new(nodes, Some(Shape::of(rate_bits)))?;
    let failed = |source| Error::Comm(CommError::io("a program on an emulated host", source));
    let mut children = Vec::new();
    for rank in 0..nodes {
        let child = hosts
            .command(rank, Path::new(program))
            .args(arguments)
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", nodes.to_string())
            .env("MASTER_ADDR", hosts.address(0).to_string())
            .spawn();
        children.push(child.map_err(failed)?);
    }
    let ends = children.iter_mut().map(|child| child.wait().map_err(failed));
    let ends = ends.collect::<Result<Vec<_>>>()?;
    match ends.iter().position(|status| !status.success()) {
        Some(rank) => Err(Error::Invalid(format!("rank {rank} ended with {}", ends[rank]))),
        None => Ok(()),
    }
}

fn start(mut command: Command, arguments: &[String], assignment: &Assignment) -> Result<Child> {
    let failed = |source| Error::Comm(CommError::io("starting a rank of the bench", source));
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let line = serde_json::to_vec(assignment).expect("plain data");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(&line).map_err(failed)?;
    Ok(child)
}

/// The report is rank 0's output; every rank must end well.
fn collect(children: Vec<Child>) -> Result<Report> {
    let mut report = None;
    let mut failures = Vec::new();
    for (rank, child) in children.into_iter().enumerate() {
        let output = child
            .wait_with_output()
            .map_err(|source| CommError::io("waiting for a rank of the bench", source))?;
        if !output.status.success() {
            failures.push(format!("rank {rank} ended with {}", output.status));
        } else if rank == 0 {
            let parsed = serde_json::from_slice(&output.stdout);
            report = Some(parsed.map_err(|error| Error::Invalid(error.to_string()))?);
        }
    }
    if !failures.is_empty() {
        return Err(Error::Invalid(failures.join("; ")));
    }
    Ok(report.expect("rank 0 ended well"))
}
