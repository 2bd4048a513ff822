//! `lampyris pilot`: nodes of Slurm become nodes of a Lampyris scheduler for as long as their allocation lasts.

use super::Environment;
use super::cluster::ClusterArgs;
use super::daemon::{OfferArgs, log_to_stderr, one_of, work_until};
use super::nodes::{Whose, all, drain_node, resume_node};
use crate::backend::scheduler::Scheduler;
use crate::error::CliError;
use crate::rank_program;
use crate::screen;
use crate::slurm::allocation::{self, Variables};
use crate::slurm::pilot::{self, Pilot};
use crate::slurm::settings::{Settings, SlurmArgs, SlurmConfig};
use crate::slurm::submission::PREFIX;
use jiff::Zoned;
use lampyris_worker::client::{ClientError, Target};
use std::thread;
use std::time::Duration;
use tokio::signal::unix::SignalKind;

/// How often a node that comes asks for its scheduler, and one that leaves whether it is empty.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes to ask Slurm for
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    #[command(flatten)]
    offer: OfferArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    slurm: SlurmArgs,
    /// Print the batch script; submit nothing
    #[arg(long, help_heading = "Slurm")]
    dry_run: bool,
}

/// What every node of a pilot is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    offer: OfferArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Submits the allocation.
pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let settings = Settings::new(&args.slurm, &SlurmConfig::read(&environment.configuration)?)?;
    let program = std::env::current_exe().map_err(|source| CliError::OwnPath { source })?;
    let stamp = Zoned::now().strftime("%Y%m%d-%H%M%S.%f").to_string();
    let folder = environment.cluster_dir().join(format!("pilot-{stamp}"));
    let target = args.cluster.target(environment);
    let worker: Vec<String> = args.offer.words().into_iter().chain(words(&target)).collect();
    let pilot = Pilot { folder: &folder, program: &program, nodes: args.nodes, worker: &worker };
    let script = pilot::render(&pilot, &settings)?;
    if args.dry_run {
        screen::say_source(script.trim_end());
        return Ok(0);
    }
    rank_program::find(environment.rank_program.clone())?;
    // What the nodes could not reach either is better said here.
    Scheduler::connect(&target)?;
    if target.address.starts_with("unix:") {
        let address = &target.address;
        screen::note(format_args!(
            "{address} serves this host only; for other nodes run `lampyris scheduler --listen HOST:PORT` and give --scheduler"
        ));
    }
    let job = pilot::submit(&folder, &script)?;
    screen::say(format_args!("{PREFIX}{job}"));
    screen::note(format_args!(
        "`lampyris nodes` shows the nodes when they have come; their log is in {}",
        folder.display()
    ));
    Ok(0)
}

/// A scheduler as words of a command line.
fn words(target: &Target) -> Vec<String> {
    let mut words = vec![format!("--scheduler={}", target.address)];
    let files = [("ca", &target.ca_file), ("token-file", &target.token_file)];
    for (name, file) in files {
        words.extend(file.as_ref().map(|file| format!("--{name}={}", file.display())));
    }
    words.extend(target.insecure.then(|| "--insecure".to_string()));
    words
}

/// `lampyris slurm worker`: a worker named like its node. On SIGTERM (preemption, scancel) and SIGUSR2 (time limit) it
/// leaves: the scheduler suspends what runs here and lets it go on elsewhere.
pub(crate) fn worker(args: &WorkerArgs, environment: &Environment) -> Result<u8, CliError> {
    log_to_stderr();
    let node = Variables.text("SLURMD_NODENAME")?;
    let host = allocation::reachable(&node)?;
    let options = args.offer.options(node.clone(), host, &args.cluster, environment)?;
    let target = options.scheduler.clone();
    come_back(&target, &node)?;
    work_until(options, async move {
        one_of(SignalKind::terminate(), SignalKind::user_defined2()).await;
        let left = tokio::task::spawn_blocking(move || leave(&target, &node)).await;
        if let Err(error) = left {
            tracing::error!(%error, "cannot leave");
        }
    })
}

/// Takes the node back that a pilot before this one may have left from, however long the scheduler is away: Slurm ends
/// the wait.
fn come_back(target: &Target, node: &str) -> Result<(), CliError> {
    let mut said = false;
    loop {
        match Scheduler::connect(target)
            .and_then(|scheduler| resume_node(&scheduler, node, Whose::Hosts))
        {
            // Refused: a node that never was here is not known yet.
            Ok(_) | Err(CliError::Refused { .. }) => return Ok(()),
            Err(
                error @ (CliError::Client(ClientError::Connect { .. })
                | CliError::SchedulerLost { .. }),
            ) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, "trying until the scheduler answers");
                }
            }
            Err(error) => return Err(error),
        }
        thread::sleep(LOOK_PERIOD);
    }
}

/// Drains the node and waits until nothing runs on it, however often the scheduler has to be asked: Slurm ends the wait.
fn leave(target: &Target, node: &str) {
    let mut drained = false;
    loop {
        let empty = Scheduler::connect(target).and_then(|scheduler| {
            if !drained {
                drain_node(&scheduler, node, true, Whose::Hosts)?;
                drained = true;
            }
            let nodes = all(&scheduler, "")?;
            Ok(nodes.iter().all(|other| other.name != node || other.holdings.is_empty()))
        });
        match empty {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot leave yet"),
        }
        thread::sleep(LOOK_PERIOD);
    }
}
