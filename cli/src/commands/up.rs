//! `lampyris up`: a whole cluster in one process, a scheduler and its workers on this machine. Ctrl-C checkpoints what runs
//! and stops; the next `up` goes on with it.

use super::Environment;
use super::cluster::{ClusterArgs, new_socket, socket_address};
use super::daemon::{self, log_to_stderr, make_dir, runtime, second_stop_signal, stop_signal};
use super::nodes::{Whose, drain_node, resume_node};
use super::scheduler::PolicyArgs;
use crate::backend::scheduler::Scheduler;
use crate::backend::{Backend, Phase, Wanted};
use crate::error::CliError;
use crate::screen;
use lampyris_proto::v1::Capacity;
use lampyris_scheduler::core::Policy;
use lampyris_scheduler::service::{Address, Options};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A machine's own cluster notices a lost worker sooner than one whose network has bad minutes.
const LEASE_MS: u64 = 10_000;

/// Between two looks at whether all jobs have stopped.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Jobs that are looked at.
const LIST_LIMIT: usize = 10_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Workers
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Devices of each: GPUs, or CPU slots
    #[arg(long, value_name = "N", default_value_t = 1)]
    devices: u32,
    /// Let jobs take single devices
    #[arg(long)]
    shared: bool,
    /// Folder of the cluster's state [default: in $LAMPYRIS_CACHE]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// What a cluster in this process is made of.
#[derive(Debug, Clone)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) devices: u32,
    pub(crate) shared: bool,
}

/// A cluster in this process.
pub(crate) struct Cluster {
    dir: PathBuf,
    stop_scheduler: oneshot::Sender<()>,
    scheduler: JoinHandle<Result<(), lampyris_scheduler::Error>>,
    workers: Vec<(lampyris_worker::daemon::Handle, JoinHandle<Result<(), CliError>>)>,
    names: Vec<String>,
}

impl Cluster {
    /// Starts it, with its state in `dir`. Needs a runtime.
    pub(crate) fn start(
        dir: &Path,
        size: &Size,
        policy: Policy,
        environment: &Environment,
    ) -> Result<Cluster, CliError> {
        let state_dir = dir.join("scheduler");
        make_dir(&state_dir)?;
        let listen = Address::Unix(new_socket(dir)?);
        let service = Options { policy, ..Options::new(state_dir, listen) }.build()?;
        let (stop_scheduler, stopped) = oneshot::channel();
        let scheduler = tokio::spawn(service.run(async {
            // An error is a sender that is gone, which means the same.
            stopped.await.ok();
        }));
        let names: Vec<String> = (0..size.nodes).map(|node| format!("node-{node}")).collect();
        let mut workers = Vec::new();
        for name in &names {
            let capacity = Capacity {
                group: "default".into(),
                devices: size.devices,
                shared: size.shared,
                ..Capacity::default()
            };
            let mut options = daemon::options(name.clone(), capacity, environment)?;
            options.state_dir = dir.join(format!("worker-{name}"));
            options.scheduler.address = socket_address(dir);
            workers.push(daemon::spawn_worker(options)?);
        }
        Ok(Cluster { dir: dir.into(), stop_scheduler, scheduler, workers, names })
    }

    /// Where its scheduler is.
    pub(crate) fn address(&self) -> String {
        socket_address(&self.dir)
    }

    /// Ends it. What still runs ends when its lease passes.
    pub(crate) async fn stop(self) -> Result<(), CliError> {
        self.stop_workers().await?.stop_scheduler().await
    }

    async fn stop_workers(mut self) -> Result<Cluster, CliError> {
        for (handle, running) in self.workers.drain(..) {
            handle.stop();
            running.await.map_err(|error| CliError::Daemon { what: error.to_string() })??;
        }
        Ok(self)
    }

    async fn stop_scheduler(self) -> Result<(), CliError> {
        // Gone already is as good.
        self.stop_scheduler.send(()).ok();
        self.scheduler.await.map_err(|error| CliError::Daemon { what: error.to_string() })??;
        Ok(())
    }
}

/// Does what blocks outside the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| CliError::Daemon { what: error.to_string() })?
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    log_to_stderr();
    let dir = args.state_dir.clone().unwrap_or_else(|| environment.cluster_dir());
    make_dir(&dir)?;
    let policy = args.policy.read(Policy { lease_ms: LEASE_MS, ..Policy::default() })?;
    let size = Size { nodes: args.nodes, devices: args.devices, shared: args.shared };
    runtime()?.block_on(async {
        let cluster = Cluster::start(&dir, &size, policy, environment)?;
        screen::say(format_args!(
            "a cluster of {} nodes at {}\n`lampyris submit RECIPE` gives it a job, `lampyris top` shows it, Ctrl-C stops it",
            args.nodes,
            cluster.address()
        ));
        stop_signal().await;
        screen::note("checkpointing what runs; Ctrl-C again stops at once");
        let (address, names) = (cluster.address(), cluster.names.clone());
        tokio::select! {
            emptied = blocking(move || empty(&address, &names)) => emptied?,
            () = second_stop_signal() => screen::note("jobs go on from their last checkpoints"),
        }
        let (address, names) = (cluster.address(), cluster.names.clone());
        let cluster = cluster.stop_workers().await?;
        blocking(move || reopen(&address, &names)).await?;
        cluster.stop_scheduler().await?;
        Ok(0)
    })
}

fn connect(address: &str) -> Result<Scheduler, CliError> {
    Scheduler::connect(&ClusterArgs::at(address.into()).address_only())
}

/// Suspends all jobs, to go on when there are nodes again, and waits until none runs.
fn empty(address: &str, nodes: &[String]) -> Result<(), CliError> {
    let scheduler = connect(address)?;
    for node in nodes {
        drain_node(&scheduler, node, true, Whose::Hosts)?;
    }
    let wanted = Wanted { all: false, user: None, limit: LIST_LIMIT };
    let at_rest = |phase| matches!(phase, Phase::Queued | Phase::Suspended);
    while scheduler.list(&wanted)?.iter().any(|job| !at_rest(job.phase)) {
        thread::sleep(LOOK_PERIOD);
    }
    Ok(())
}

/// Ends the drains, now that no worker is there to be given anything.
fn reopen(address: &str, nodes: &[String]) -> Result<(), CliError> {
    let scheduler = connect(address)?;
    for node in nodes {
        resume_node(&scheduler, node, Whose::Hosts)?;
    }
    Ok(())
}
