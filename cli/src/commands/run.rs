//! `lampyris run RECIPE`: a cluster for one job, on this machine, for as long as the job takes. The way of a job is the same
//! as on a large cluster; Ctrl-C checkpoints, and `lampyris resume` continues.

use super::cluster::ClusterArgs;
use super::daemon::{runtime, stop_signal};
use super::submit::follow;
use super::submit_job::{JobOptions, Prepared};
use super::train::RunDirArgs;
use super::up::{Cluster, Size, blocking};
use super::{Environment, RecipeArgs};
use crate::backend::Backend;
use crate::backend::scheduler::Scheduler;
use crate::error::CliError;
use crate::launch::LayoutArgs;
use crate::screen;
use crate::started_run;
use lampyris_scheduler::core::Policy;
use lampyris_worker::report::Report;
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
        // Short: a socket's path must be.
        let path = std::env::temp_dir().join(format!("lampyris-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| CliError::write(&path, source))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let launch = args.layout.launch();
    let named = args.run_dir.named()?;
    let prepared = Arc::new(Prepared::new(&args.recipe, &launch, named, environment)?);
    let scratch = Scratch::new()?;
    let size = Size { nodes: args.layout.nodes(), devices: 1, shared: false };
    let policy = Policy { lease_ms: LEASE_MS, ..Policy::default() };
    let environment = environment.clone();
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let cluster = Cluster::start(&scratch.0, &size, policy, &environment)?;
        let target = ClusterArgs::at(cluster.address()).address_only();
        let (submit, prepared) = (target.clone(), Arc::clone(&prepared));
        let job = blocking(move || {
            let scheduler = Scheduler::connect(&submit)?;
            prepared.hand_over(&scheduler, &JobOptions::default(), &environment)
        });
        let job = job.await?.id;
        let watched = target.clone();
        let mut following =
            std::pin::pin!(blocking(move || { follow(&Scheduler::connect(&watched)?, job) }));
        let ended = tokio::select! {
            ended = &mut following => ended,
            () = stop_signal() => {
                screen::note("checkpointing at the next step boundary; Ctrl-C again stops at once");
                let said = blocking(move || {
                    Scheduler::connect(&target)?.suspend(&job.to_string(), "Ctrl-C")
                });
                said.await?;
                tokio::select! {
                    ended = &mut following => ended,
                    () = stop_signal() => Ok(STOPPED),
                }
            }
        };
        cluster.stop().await?;
        ended
    });
    // After a second Ctrl-C the thread that follows the job still looks for its scheduler.
    runtime.shutdown_background();
    let code = code?;
    match code {
        0 => {
            let path = prepared.run.path();
            let said = Report::read(path).map_err(|source| CliError::read(path, source))?;
            started_run::report(&prepared.run, &prepared.plan, &prepared.dataset, &said)?;
        }
        _ => {
            let run = screen::word(prepared.run.path());
            screen::say(format_args!("stopped; `lampyris resume {run}` continues"));
        }
    }
    Ok(code)
}
