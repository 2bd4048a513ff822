//! `lampyris up`: a whole cluster in one process, a scheduler and its workers on this machine. Ctrl-C checkpoints what runs
//! and stops; the next `up` goes on with it.

use super::Environment;
use super::cluster::{ClusterArgs, new_socket, socket_address};
use super::daemon::{self, log_to_stderr, make_dir, run_daemon, second_stop_signal, stop_signal};
use super::nodes::{Whose, all as all_nodes, drain_node, resume_node};
use super::scheduler::PolicyArgs;
use crate::backend::scheduler::Scheduler;
use crate::backend::{Backend, Phase, Wanted};
use crate::error::CliError;
use crate::screen;
use lampyris_proto::v1::{self, Capacity};
use lampyris_scheduler::core::Policy;
use lampyris_scheduler::service::{Address, Options};
use lampyris_worker::cores::CoreList;
use lampyris_worker::daemon::Handle;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle, JoinSet};

/// A machine's own cluster notices a lost worker sooner than one whose network has bad minutes.
const LEASE_MS: u64 = 10_000;

/// Between two looks at whether all jobs have stopped.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// How long the nodes of a cluster may take to register.
const NODES_LIMIT: Duration = Duration::from_secs(30);

/// Between two looks at whether they have.
const REGISTER_PERIOD: Duration = Duration::from_millis(20);

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
    workers: Vec<Handle>,
    /// Each gives its node's name when it ends.
    running: JoinSet<(String, Result<(), CliError>)>,
    pub(crate) names: Vec<String>,
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
        let cores = CoreList::allowed().divide(size.nodes);
        let (mut workers, mut running) = (Vec::new(), JoinSet::new());
        for (name, cores) in names.iter().zip(cores) {
            let capacity = Capacity {
                group: "default".into(),
                devices: size.devices,
                shared: size.shared,
                ..Capacity::default()
            };
            let mut options = daemon::options(name.clone(), capacity, environment)?;
            options.state_dir = dir.join(format!("worker-{name}"));
            options.scheduler.address = socket_address(dir);
            options.cores = cores;
            let (handle, worker) = daemon::spawn_worker(options)?;
            workers.push(handle);
            let name = name.clone();
            running.spawn(async move { (name, ended(worker.await)) });
        }
        Ok(Cluster { dir: dir.into(), stop_scheduler, scheduler, workers, running, names })
    }

    /// Where its scheduler is.
    pub(crate) fn address(&self) -> String {
        socket_address(&self.dir)
    }

    /// Ends it. What still runs ends when its lease passes.
    pub(crate) async fn stop(self) -> Result<(), CliError> {
        let (cluster, stopped) = self.stop_workers().await;
        stopped.and(cluster.stop_scheduler().await)
    }

    /// Ends all workers; the first failure of one of them once all have ended.
    async fn stop_workers(mut self) -> (Cluster, Result<(), CliError>) {
        self.workers.iter().for_each(Handle::stop);
        let mut stopped = Ok(());
        while let Some((_, ended)) = self.next_end().await {
            stopped = stopped.and(ended);
        }
        (self, stopped)
    }

    /// The next worker that ends: its node's name, and how.
    async fn next_end(&mut self) -> Option<(String, Result<(), CliError>)> {
        let next = self.running.join_next().await?;
        Some(next.unwrap_or_else(|error| (String::new(), Err(daemon_error(&error)))))
    }

    /// Waits until a worker ends though nobody has stopped it.
    async fn breaks(&mut self) -> CliError {
        let (name, ended) = match self.next_end().await {
            Some((node, ended)) => (format!("the worker of {node}"), ended),
            None => std::future::pending().await,
        };
        let why = ended.err().map_or(String::new(), |error| format!(": {error}"));
        CliError::Daemon { what: format!("{name} has ended by itself{why}") }
    }

    async fn stop_scheduler(self) -> Result<(), CliError> {
        // Gone already is as good.
        self.stop_scheduler.send(()).ok();
        self.scheduler.await.map_err(|error| daemon_error(&error))??;
        Ok(())
    }
}

fn daemon_error(error: &JoinError) -> CliError {
    CliError::Daemon { what: error.to_string() }
}

/// How a task ended: a panic is a failure too.
fn ended(task: Result<Result<(), CliError>, JoinError>) -> Result<(), CliError> {
    task.map_err(|error| daemon_error(&error))?
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
    run_daemon(async {
        let mut cluster = Cluster::start(&dir, &size, policy, environment)?;
        let (address, names) = (cluster.address(), cluster.names.clone());
        let broken = tokio::select! {
            () = stop_signal() => None,
            why = cluster.breaks() => Some(why),
            Err(why) = serve(address.clone(), names.clone()) => Some(why),
        };
        if let Some(why) = &broken {
            tracing::error!("{why}");
        }
        let stopped = stop(cluster, address, names).await;
        broken.map_or(stopped.map(|()| 0), Err)
    })
}

/// Checkpoints what runs and ends the cluster; a signal ends it at once.
async fn stop(cluster: Cluster, address: String, names: Vec<String>) -> Result<(), CliError> {
    screen::note("checkpointing what runs; Ctrl-C again stops at once");
    let drained = (address.clone(), names.clone());
    let emptied = tokio::select! {
        emptied = blocking(move || empty(&drained.0, &drained.1)) => emptied,
        () = second_stop_signal() => {
            screen::note("jobs go on from their last checkpoints");
            Ok(())
        }
    };
    // Each of these is done whatever became of the ones before.
    let (cluster, stopped) = cluster.stop_workers().await;
    let reopened = blocking(move || reopen(&address, &names)).await;
    let ended = cluster.stop_scheduler().await;
    emptied.and(stopped).and(reopened).and(ended)
}

/// Waits until the named nodes are in service, or [`NODES_LIMIT`] has passed: a job that comes before them would hear that
/// there is no room, or make room among those that are there.
pub(crate) async fn await_nodes(address: String, names: Vec<String>) -> Result<(), CliError> {
    let wanted = names.len();
    let in_service = move |node: &v1::Node| {
        node.state() == v1::node::State::Online && names.contains(&node.name)
    };
    blocking(move || {
        let scheduler = Scheduler::connect(&ClusterArgs::at(address).address_only())?;
        let until = Instant::now() + NODES_LIMIT;
        while Instant::now() < until {
            let nodes = all_nodes(&scheduler, "")?;
            if nodes.iter().filter(|node| in_service(node)).count() == wanted {
                break;
            }
            thread::sleep(REGISTER_PERIOD);
        }
        Ok(())
    })
    .await
}

/// Makes the cluster ready and says so. Never returns but with an error.
async fn serve(address: String, names: Vec<String>) -> Result<Infallible, CliError> {
    let (nodes, reopened) = (names.len(), (address.clone(), names.clone()));
    // Those of an `up` that was killed while it emptied its nodes.
    blocking(move || reopen(&reopened.0, &reopened.1)).await?;
    await_nodes(address.clone(), names).await?;
    screen::say(format_args!(
        "a cluster of {nodes} nodes at {address}\n`lampyris submit RECIPE` gives it a job, `lampyris top` shows it, Ctrl-C stops it",
    ));
    say_if_crowded(nodes);
    std::future::pending().await
}

/// Says that some workers have a core together.
fn say_if_crowded(nodes: usize) {
    let cores = CoreList::allowed().len();
    if cores < nodes {
        screen::note(format_args!(
            "{nodes} nodes share {cores} cores: some jobs side by side are slower than alone"
        ));
    }
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

/// Ends the drains that [`empty`] has made; those of a person stay.
fn reopen(address: &str, nodes: &[String]) -> Result<(), CliError> {
    let scheduler = connect(address)?;
    for node in nodes {
        match resume_node(&scheduler, node, Whose::Hosts) {
            // A node that never registered is not known.
            Ok(_) | Err(CliError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
