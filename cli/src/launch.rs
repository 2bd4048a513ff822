//! Where the ranks of a start run: how many nodes, how many ranks on each, and where they find each other. The recipe
//! says what is computed and how many ranks it wishes; this is the rest of the command line.
//!
//! Three ways to start several ranks: all of them here on one node (the default); all of them here on several virtual
//! nodes, whose ranks talk over tcp as if they were on different hosts; or some of them here, the others started by hand
//! on other hosts that see the same run directory. Node 0 then claims the attempt, says so in `control/launch.json`, and
//! serves the rendezvous.

use crate::error::CliError;
use crate::run_dir::RunDir;
use lampyris_comm::{self as comm, Secret, Server};
use lampyris_plan::TrainPlan;
use lampyris_proto::Attempt;
use lampyris_worker::run_file;
use lampyris_worker::shim::Rendezvous;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long ranks that have come wait for the others before all are told who is missing: reading a large model's
/// libraries from a cold network disk takes minutes.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);

/// How often another host looks for node 0's word; a shared folder has nothing to wait on.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// Where the ranks run.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct LaunchArgs {
    /// Nodes. Without --rendezvous all are on this machine, and ranks of different nodes talk over tcp [default: 1]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Ranks on each node; nodes times ranks replaces parallel.data [default: parallel.data / nodes]
    #[arg(long, value_name = "R")]
    ranks_per_node: Option<usize>,
    /// Start this node's ranks only; those of other hosts meet them at this address of node 0's host
    #[arg(long, value_name = "HOST:PORT", requires_all = ["node_rank", "secret_file"])]
    rendezvous: Option<String>,
    /// Which node this host is, 0-based
    #[arg(long, value_name = "I", requires = "rendezvous")]
    node_rank: Option<usize>,
    /// 32 random bytes, the same on all hosts, in a file that only its owner can read
    #[arg(long, value_name = "FILE", requires = "rendezvous")]
    secret_file: Option<PathBuf>,
    /// Write a trace of every rank to traces/ in the run directory; ui.perfetto.dev opens it
    #[arg(long)]
    pub(crate) trace: bool,
}

/// The wished layout of a job that a scheduler starts.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct LayoutArgs {
    /// Nodes [default: 1]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Ranks on each node; nodes times ranks replaces parallel.data [default: parallel.data / nodes]
    #[arg(long, value_name = "R")]
    ranks_per_node: Option<usize>,
}

/// Nodes of a job and ranks on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub(crate) nodes: usize,
    pub(crate) ranks_per_node: usize,
}

/// A place among hosts that are started by hand.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) node: usize,
    pub(crate) address: SocketAddr,
    pub(crate) secret: [u8; 32],
}

/// What node 0 tells the other hosts.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    attempt: u64,
    layout: Layout,
}

impl Layout {
    /// All ranks; of a layout that no plan has, as a file may hold it, the largest number.
    pub(crate) fn world(self) -> usize {
        self.nodes.saturating_mul(self.ranks_per_node)
    }

    /// `2 nodes of 4 ranks`.
    pub(crate) fn text(self) -> String {
        format!("{} nodes of {} ranks", self.nodes, self.ranks_per_node)
    }
}

impl LayoutArgs {
    /// So many nodes, as many ranks on each as the plan says.
    pub(crate) fn of_nodes(nodes: Option<usize>) -> LayoutArgs {
        LayoutArgs { nodes, ranks_per_node: None }
    }

    /// As the command line of a start.
    pub(crate) fn launch(&self) -> LaunchArgs {
        let LayoutArgs { nodes, ranks_per_node } = *self;
        LaunchArgs { nodes, ranks_per_node, ..LaunchArgs::default() }
    }

    /// Nodes, at least 1.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.unwrap_or(1)
    }
}

impl LaunchArgs {
    /// The same on `nodes` nodes, unless the command line says how many.
    pub(crate) fn or_nodes(&self, nodes: usize) -> LaunchArgs {
        LaunchArgs { nodes: self.nodes.or(Some(nodes)), ..self.clone() }
    }

    /// The number of data-parallel ranks that the command line asks for, if it does.
    pub(crate) fn ranks(&self) -> Option<usize> {
        self.ranks_per_node.map(|ranks| ranks.saturating_mul(self.nodes.unwrap_or(1)))
    }

    /// The layout of a start of `plan`.
    pub(crate) fn layout(&self, plan: &TrainPlan) -> Result<Layout, CliError> {
        let (ranks, nodes) = (plan.parallel.data, self.nodes.unwrap_or(1));
        if nodes == 0 || !ranks.is_multiple_of(nodes) {
            return Err(CliError::Layout { ranks, nodes });
        }
        Ok(Layout { nodes, ranks_per_node: ranks / nodes })
    }

    /// Which of several hosts this is; none if all ranks run here.
    pub(crate) fn place(&self) -> Result<Option<Place>, CliError> {
        let (Some(rendezvous), Some(node), Some(file)) =
            (&self.rendezvous, self.node_rank, &self.secret_file)
        else {
            return Ok(None);
        };
        let unknown = |what: String| CliError::Rendezvous { address: rendezvous.clone(), what };
        let mut found = rendezvous.to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
        let address = found.next().ok_or_else(|| unknown("it has no address".into()))?;
        let nodes = self.nodes.unwrap_or(1);
        if node >= nodes {
            return Err(CliError::NodeRank { node, nodes });
        }
        let secret = Secret::from_file(file)?.bytes();
        Ok(Some(Place { node, address, secret }))
    }
}

/// A rendezvous that this process hosts while it lives, and what the ranks must know of it.
pub(crate) struct Hosted {
    _server: Server,
    pub(crate) rendezvous: Rendezvous,
}

impl Hosted {
    /// Of a start whose ranks all run on this machine: a fresh secret, on loopback.
    pub(crate) fn here(attempt: Attempt) -> Result<Hosted, CliError> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Hosted::at(anywhere, Secret::random_bytes()?, attempt)
    }

    /// At an address that other hosts reach.
    pub(crate) fn at(
        address: SocketAddr,
        secret: [u8; 32],
        attempt: Attempt,
    ) -> Result<Hosted, CliError> {
        let number = u32::try_from(attempt.0).map_err(|_| CliError::Attempts)?;
        let key = Secret::from_bytes(secret);
        let server = Server::start(address, key, comm::Attempt(number), JOIN_TIMEOUT)?;
        let rendezvous = Rendezvous { address: server.address(), secret };
        Ok(Hosted { _server: server, rendezvous })
    }
}

/// Node 0's word in the run directory, and its largest size.
const WORD: &str = "control/launch.json";
const MOST_WORD_BYTES: u64 = 4096;

fn word_path(run: &RunDir) -> PathBuf {
    run.path().join(WORD)
}

/// Node 0's word to the other hosts; taken back when dropped, so that none follows an attempt that is over.
pub(crate) struct Announced {
    path: PathBuf,
}

impl Announced {
    pub(crate) fn new(run: &RunDir, attempt: Attempt, layout: Layout) -> Result<Self, CliError> {
        let path = word_path(run);
        let word = Word { attempt: attempt.0, layout };
        let text = serde_json::to_string(&word).expect("plain data becomes JSON");
        run_file::write(run.path(), WORD, 0o666, (text + "\n").as_bytes())
            .map_err(|e| CliError::write(&path, e))?;
        Ok(Announced { path })
    }

    /// Removes the word of a start that could not take it back.
    pub(crate) fn forget(run: &RunDir) -> Result<(), CliError> {
        let path = word_path(run);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(CliError::write(&path, error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

/// Waits for the run at `path` to be started by node 0, and gives it with the attempt to join. The layouts must agree.
pub(crate) fn await_word(path: &Path, args: &LaunchArgs) -> Result<(RunDir, Attempt), CliError> {
    let end = Instant::now() + JOIN_TIMEOUT;
    let file = path.join(WORD);
    let word = loop {
        match run_file::read(path, WORD, MOST_WORD_BYTES) {
            Ok(bytes) => {
                break serde_json::from_slice::<Word>(&bytes)
                    .map_err(|error| CliError::read(&file, error.into()))?;
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(CliError::read(&file, error));
            }
            Err(_) if Instant::now() >= end => {
                return Err(CliError::NotLaunched { path: path.to_path_buf() });
            }
            Err(_) => thread::sleep(LOOK_PERIOD),
        }
    };
    let run = RunDir::open(path)?;
    let ours = args.layout(&run.plan()?)?;
    if ours != word.layout {
        let theirs = word.layout;
        return Err(CliError::OtherLayout { ours, theirs });
    }
    Ok((run, Attempt(word.attempt)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_follows_the_plan_and_the_flags() {
        let text = include_str!("../../recipes/debug_moe.toml");
        let defaults = lampyris_recipes::Defaults {
            current_dir: ".".into(),
            runs_dir: "runs".into(),
            cache_dir: "cache".into(),
        };
        let sets = ["parallel.data=4".to_string()];
        let plan = lampyris_recipes::parse(text, Path::new("r.toml"), &sets, &defaults).unwrap();
        let args = |nodes, ranks_per_node| LaunchArgs { nodes, ranks_per_node, ..<_>::default() };
        let layout = |nodes| args(nodes, None).layout(&plan);
        assert_eq!(layout(None).unwrap(), Layout { nodes: 1, ranks_per_node: 4 });
        assert_eq!(layout(Some(2)).unwrap(), Layout { nodes: 2, ranks_per_node: 2 });
        assert!(layout(Some(3)).is_err());
        assert!(layout(Some(0)).is_err());
        assert_eq!(args(Some(3), Some(2)).ranks(), Some(6));
        assert_eq!(args(None, Some(2)).ranks(), Some(2));
        assert_eq!(args(Some(3), None).ranks(), None);
        assert_eq!(args(Some(3), Some(usize::MAX)).ranks(), Some(usize::MAX));
    }
}
