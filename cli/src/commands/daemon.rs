//! `lampyris worker`, and what all daemons share: logging, runtime, signals.

use super::Environment;
use super::cluster::ClusterArgs;
use crate::error::CliError;
use crate::rank_program;
use crate::screen::DaemonLog;
use lampyris_proto::v1::Capacity;
use lampyris_worker::client::Target;
use lampyris_worker::cores::CoreList;
use lampyris_worker::daemon::{Handle, Options};
use lampyris_worker::hangup;
use lampyris_worker::private;
use lampyris_worker::shim::status::host_name;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How often a shim is asked how far its ranks are.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// How long the threads of a daemon that has ended may take to end too.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What a node offers.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OfferArgs {
    /// Group to which jobs are submitted
    #[arg(long, default_value = "default")]
    group: String,
    /// Devices: GPUs, or CPU slots
    #[arg(long, value_name = "N", default_value_t = 1)]
    devices: u32,
    /// Let jobs take single devices
    #[arg(long)]
    shared: bool,
    /// Zone: nodes with full bandwidth between them
    #[arg(long, default_value = "")]
    zone: String,
    /// Switch inside the zone
    #[arg(long, default_value = "")]
    switch: String,
    /// Size of a rank's log on disk beyond which its older half is given back
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    log_mib: u64,
}

/// What a worker offers and where it works.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WorkerArgs {
    /// Name of the node, unique in the cluster [default: the host name]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    offer: OfferArgs,
    /// Cores on which its jobs compute, e.g. 0-3,8 [default: all that this process may use]
    #[arg(long, value_name = "LIST")]
    cores: Option<CoreList>,
    /// Address of this node that the others reach
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Folder that survives the daemon [default: in $LAMPYRIS_CACHE]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl OfferArgs {
    fn capacity(&self) -> Capacity {
        Capacity {
            group: self.group.clone(),
            devices: self.devices,
            shared: self.shared,
            zone: self.zone.clone(),
            switch: self.switch.clone(),
        }
    }

    /// The same as words of a command line.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = vec![format!("--group={}", self.group)];
        words.push(format!("--devices={}", self.devices));
        words.extend(self.shared.then(|| "--shared".to_string()));
        words.push(format!("--zone={}", self.zone));
        words.push(format!("--switch={}", self.switch));
        words.push(format!("--log-mib={}", self.log_mib));
        words
    }

    /// A worker that offers this as `node`, at `host`.
    pub(crate) fn options(
        &self,
        node: String,
        host: IpAddr,
        cluster: &ClusterArgs,
        environment: &Environment,
    ) -> Result<Options, CliError> {
        Ok(Options {
            scheduler: cluster.target(environment),
            state_dir: environment.cluster_dir().join(format!("worker-{node}")),
            host,
            log_bytes: self.log_mib << 20,
            ..options(node, self.capacity(), environment)?
        })
    }
}

impl WorkerArgs {
    fn options(&self, environment: &Environment) -> Result<Options, CliError> {
        let node = self.name.clone().unwrap_or_else(host_name);
        let mut options = self.offer.options(node, self.host, &self.cluster, environment)?;
        if let Some(state_dir) = &self.state_dir {
            options.state_dir.clone_from(state_dir);
        }
        if let Some(cores) = &self.cores {
            options.cores = cores.clone().within(&options.cores)?;
        }
        Ok(options)
    }
}

/// A worker of this machine, still without a scheduler and a folder.
pub(crate) fn options(
    node: String,
    capacity: Capacity,
    environment: &Environment,
) -> Result<Options, CliError> {
    let own = std::env::current_exe().map_err(|source| CliError::OwnPath { source })?;
    Ok(Options {
        node,
        scheduler: Target::default(),
        state_dir: PathBuf::new(),
        capacity,
        cores: CoreList::allowed(),
        shim_command: vec![own.into(), "shim".into()],
        rank_program: rank_program::find(environment.rank_program.clone())?,
        host: Ipv4Addr::LOCALHOST.into(),
        log_bytes: 64 << 20,
        progress_period: PROGRESS_PERIOD,
    })
}

/// `lampyris worker`.
pub(crate) fn worker(args: &WorkerArgs, environment: &Environment) -> Result<u8, CliError> {
    log_to_stderr();
    let options = args.options(environment)?;
    work_until(options, stop_signal())
}

/// Runs a worker until `leave` is over.
pub(crate) fn work_until(
    options: Options,
    leave: impl Future<Output = ()> + Send + 'static,
) -> Result<u8, CliError> {
    run_daemon(async {
        let (service, handle) = options.build()?;
        tokio::spawn(async move {
            leave.await;
            handle.stop();
        });
        service.run().await?;
        Ok(0)
    })
}

/// Starts a worker in this process; it ends when its handle is stopped.
pub(crate) fn spawn_worker(
    options: Options,
) -> Result<(Handle, tokio::task::JoinHandle<Result<(), CliError>>), CliError> {
    let (service, handle) = options.build()?;
    let running = tokio::spawn(async move { Ok(service.run().await?) });
    Ok((handle, running))
}

/// Runs a daemon to its end. What a disk keeps in its threads then does not keep the process.
pub(crate) fn run_daemon<T>(
    daemon: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let runtime = runtime()?;
    let ended = runtime.block_on(daemon);
    runtime.shutdown_timeout(END_LIMIT);
    ended
}

/// A runtime for a daemon.
pub(crate) fn runtime() -> Result<Runtime, CliError> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|source| CliError::Runtime { source })
}

/// What a daemon says goes to stderr; LAMPYRIS_LOG chooses how much (`info`, `debug`, `lampyris_worker=debug`).
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("LAMPYRIS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // A second call changes nothing.
    subscriber.with_writer(DaemonLog::default).try_init().ok();
}

/// Waits for SIGINT, SIGTERM, or SIGHUP unless it is ignored.
pub(crate) async fn stop_signal() {
    if hangup::is_ignored() {
        return second_stop_signal().await;
    }
    tokio::select! {
        () = one(SignalKind::hangup()) => {}
        () = second_stop_signal() => {}
    }
}

/// Waits for another SIGINT or SIGTERM, which does not wait for checkpoints. SIGHUP is none: when a terminal is closed,
/// the kernel and the shell may each send one.
pub(crate) async fn second_stop_signal() {
    one_of(SignalKind::interrupt(), SignalKind::terminate()).await;
}

/// Waits for the first of two signals.
pub(crate) async fn one_of(first: SignalKind, second: SignalKind) {
    tokio::select! {
        () = one(first) => {}
        () = one(second) => {}
    }
}

async fn one(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        Err(error) => {
            tracing::error!(%error, "cannot take signals");
            std::future::pending::<()>().await;
        }
    }
}

/// Makes a folder for a daemon's state, which only its owner can enter.
pub(crate) fn make_dir(path: &Path) -> Result<(), CliError> {
    private::make_folder(path).map_err(|source| CliError::write(path, source))
}
