//! Inside a job. `lampyris slurm claim RUN` runs once per attempt on the first node, before `srun`: it claims the attempt
//! and leaves its number, a fresh secret and the address of the rendezvous in a file of the run directory, so that no
//! node has to wait for another to find them. `lampyris slurm node RUN FILE` runs on every node, under `srun`: one shim,
//! on the first node the rendezvous too.

use super::hostlist;
use super::queue;
use super::submission::{Record, now_ms, record};
use crate::error::CliError;
use crate::launch::{Layout, Place};
use crate::run_dir::RunDir;
use lampyris_checkpoint::disk::regular;
use lampyris_comm::Secret;
use lampyris_worker::shim::control;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest file for `slurm node`.
const MOST_LAUNCH_BYTES: u64 = 4096;

/// What Slurm tells a process of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variables;

impl Variables {
    pub(crate) fn text(self, name: &'static str) -> Result<String, CliError> {
        std::env::var(name).map_err(|_| CliError::OutsideSlurm { variable: name })
    }

    fn number(self, name: &'static str) -> Result<u64, CliError> {
        let text = self.text(name)?;
        text.parse().map_err(|_| CliError::OutsideSlurm { variable: name })
    }
}

/// What every node of an attempt must know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) attempt: u64,
    pub(crate) layout: Layout,
    address: SocketAddr,
    secret: [u8; 32],
}

/// What comes of a claim.
pub(crate) enum Claim {
    /// The file for `slurm node`.
    Launch(PathBuf),
    /// Somebody has asked for the run to stay stopped.
    StayStopped,
}

/// Claims the next attempt of `run` for this job.
pub(crate) fn claim(run: &RunDir) -> Result<Claim, CliError> {
    if control::suspend_requested(run.path()) {
        return Ok(Claim::StayStopped);
    }
    let job = Variables.number("SLURM_JOB_ID")?;
    let nodes = Variables.text("SLURM_JOB_NODELIST")?;
    let restart = Variables.number("SLURM_RESTART_COUNT").unwrap_or(0);
    let layout = layout(run, &nodes)?;
    let hosts = hostlist::expand(&nodes)?;
    let address = match layout.nodes {
        1 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => reachable(hosts.first().map_or("", String::as_str))?,
    };
    // A port that is free now; the shim of this node takes it in a moment. If somebody is faster, the attempt fails
    // with that reason and the next has another port.
    let port = TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr());
    let unusable = |error: std::io::Error| CliError::Rendezvous {
        address: address.to_string(),
        what: error.to_string(),
    };
    let address = port.map_err(unusable)?;
    let attempt = run.checkpoints()?.claim_next()?.0;
    let secret = Secret::random_bytes()?;
    let path = run.path().join(format!("control/launch.attempt-{attempt}.json"));
    write_private(&path, &Launch { attempt, layout, address, secret })?;
    record(run, &Record::Started { job, restart, attempt, nodes, at_ms: now_ms() })?;
    Ok(Claim::Launch(path))
}

/// The plan's ranks on the nodes that Slurm gave.
fn layout(run: &RunDir, nodes: &str) -> Result<Layout, CliError> {
    let nodes = hostlist::expand(nodes)?.len();
    let ranks = run.plan()?.parallel.data;
    if nodes == 0 || !ranks.is_multiple_of(nodes) {
        return Err(CliError::Layout { ranks, nodes });
    }
    Ok(Layout { nodes, ranks_per_node: ranks / nodes })
}

/// An address of `host` that other hosts reach: what its name resolves to or, where that is its own loopback (Debian's
/// 127.0.1.1), what Slurm reaches it at. Never loopback: every node would train alone.
pub(crate) fn reachable(host: &str) -> Result<IpAddr, CliError> {
    let resolve = |name: &str| -> Option<IpAddr> {
        let mut found = (name, 0).to_socket_addrs().ok()?;
        found.find(|address| !address.ip().is_loopback()).map(|address| address.ip())
    };
    if let Some(address) = resolve(host) {
        return Ok(address);
    }
    let named = queue::node_address(host)?;
    named.as_deref().and_then(resolve).ok_or_else(|| CliError::Rendezvous {
        address: host.into(),
        what: "neither its name nor Slurm's NodeAddr is an address that other nodes reach".into(),
    })
}

/// For this user's eyes: it holds the secret.
fn write_private(path: &Path, launch: &Launch) -> Result<(), CliError> {
    let failed = |error| CliError::write(path, error);
    let text = serde_json::to_string(launch).expect("plain data becomes JSON");
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    // Other nodes read it through the network.
    file.sync_all().map_err(failed)
}

impl Launch {
    /// Reads what [`claim`] has left at `path`.
    pub(crate) fn read(path: &Path) -> Result<Launch, CliError> {
        let bytes = regular::read(path, MOST_LAUNCH_BYTES);
        let bytes = bytes.map_err(|error| CliError::read(path, error))?;
        serde_json::from_slice(&bytes).map_err(|error| CliError::read(path, error.into()))
    }

    /// The place of this node: Slurm numbers nodes as it lists them, and the first one is the one that claimed.
    pub(crate) fn place(&self) -> Result<Option<Place>, CliError> {
        if self.layout.world() == 1 {
            return Ok(None);
        }
        let node = Variables.number("SLURM_NODEID")? as usize;
        let nodes = self.layout.nodes;
        if node >= nodes {
            return Err(CliError::NodeRank { node, nodes });
        }
        Ok(Some(Place { node, address: self.address, secret: self.secret }))
    }
}
