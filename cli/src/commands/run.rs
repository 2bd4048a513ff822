//! `lampyris run RECIPE`: a cluster for one job, on this machine, for as long as the job takes. The way of a job is the same
//! as on a large cluster; Ctrl-C checkpoints, and `lampyris resume` continues.

use super::cluster::{ClusterArgs, remove_socket};
use super::daemon::{runtime, second_stop_signal, stop_signal};
use super::submit::follow;
use super::submit_job::{JobOptions, Prepared};
use super::train::RunDirArgs;
use super::up::{Cluster, Size, await_nodes, blocking};
use super::{Environment, RecipeArgs};
use crate::backend::Backend;
use crate::backend::scheduler::Scheduler;
use crate::error::CliError;
use crate::interrupt;
use crate::launch::LayoutArgs;
use crate::memory;
use crate::screen;
use crate::started_run;
use lampyris_scheduler::core::Policy;
use lampyris_worker::client::Target;
use lampyris_worker::report::Report;
use lampyris_worker::shim::status::unix_ms;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Nobody else is on this cluster: heartbeats, and with them the progress that is shown, come every second.
const LEASE_MS: u64 = 4_000;

/// Exit code of a run that was stopped before its checkpoint was complete.
const STOPPED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run_dir: RunDirArgs,
    #[command(flatten)]
    layout: LayoutArgs,
}

/// A folder that goes when the command does.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, CliError> {
        let name = format!("lampyris-{}-{}", std::process::id(), unix_ms());
        let path = std::env::temp_dir().join(name);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| CliError::write(&path, source))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_socket(&self.0);
        std::fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let launch = args.layout.launch();
    let named = args.run_dir.named()?;
    let prepared = Arc::new(Prepared::new(&args.recipe, &launch, named, environment)?);
    let ended = on_own_cluster(&prepared, args.layout.nodes(), environment);
    match prepared.run.or_remove(ended)? {
        0 => {
            let path = prepared.run.path();
            let said = Report::read(path).map_err(|source| CliError::read(path, source))?;
            started_run::report(&prepared.run, &prepared.plan, &prepared.dataset, &said)?;
            Ok(0)
        }
        code => {
            let run = screen::word(prepared.run.path());
            screen::say(format_args!("stopped; `lampyris resume {run}` continues"));
            Ok(code)
        }
    }
}

/// Starts a cluster, runs the job on it to its end, and ends the cluster; the job's exit code.
fn on_own_cluster(
    prepared: &Arc<Prepared>,
    nodes: usize,
    environment: &Environment,
) -> Result<u8, CliError> {
    memory::check(&prepared.plan, prepared.layout, None)?;
    let scratch = Scratch::new()?;
    let size = Size { nodes, devices: 1, shared: false };
    let policy = Policy { lease_ms: LEASE_MS, ..Policy::default() };
    let environment = environment.clone();
    interrupt::hand_over();
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let cluster = Cluster::start(&scratch.0, &size, policy, &environment)?;
        let target = ClusterArgs::at(cluster.address()).address_only();
        let (submit, prepared) = (target.clone(), Arc::clone(prepared));
        await_nodes(cluster.address(), cluster.names.clone()).await?;
        let job = blocking(move || {
            let scheduler = Scheduler::connect(&submit)?;
            prepared.hand_over(&scheduler, &JobOptions::default(), &environment)
        });
        let job = job.await?.id;
        let ended = watch(target, job).await;
        cluster.stop().await?;
        ended
    });
    // After a second Ctrl-C the thread that follows the job still looks for its scheduler.
    runtime.shutdown_background();
    code
}

/// Shows the job to its end. The first signal checkpoints it, a second one leaves it.
async fn watch(target: Target, job: u64) -> Result<u8, CliError> {
    let watched = target.clone();
    let mut following =
        std::pin::pin!(blocking(move || { follow(&Scheduler::connect(&watched)?, job) }));
    tokio::select! {
        ended = &mut following => return ended,
        () = stop_signal() => {}
    }
    screen::note("checkpointing at the next step boundary; Ctrl-C again stops at once");
    let suspend = move || Scheduler::connect(&target)?.suspend(&job.to_string(), "Ctrl-C");
    blocking(suspend).await?;
    tokio::select! {
        ended = &mut following => ended,
        () = second_stop_signal() => Ok(STOPPED),
    }
}
