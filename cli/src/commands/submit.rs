//! `lampyris submit RECIPE`: makes the run directory and hands it to the scheduler, which runs it when there is room, or to
//! Slurm.

use super::cluster::ClusterArgs;
use super::submit_job::{JobOptions, Prepared};
use super::submit_slurm::{self, Cluster, SlurmJobArgs};
use super::train::RunDirArgs;
use super::{Environment, RecipeArgs};
use crate::backend::scheduler::{Scheduler, details};
use crate::error::CliError;
use crate::launch::LayoutArgs;
use crate::screen::{self, AttachedView};
use lampyris_proto::v1;
use lampyris_proto::v1::JobState;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long a followed job is looked for again while the scheduler does not answer.
const LOST_LIMIT: Duration = Duration::from_secs(60);

/// Between two tries to find the scheduler again.
const RETRY_PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    run_dir: RunDirArgs,
    #[command(flatten)]
    layout: LayoutArgs,
    #[command(flatten)]
    job: JobOptions,
    /// Stay and show the job until it has ended
    #[arg(long, short)]
    follow: bool,
    /// Print JSON: the job
    #[arg(long, conflicts_with = "follow")]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Hand it there instead of to the scheduler
    #[arg(long = "cluster", value_enum, conflicts_with_all = ["follow", "json", "scheduler"])]
    on: Option<Cluster>,
    #[command(flatten)]
    slurm: SlurmJobArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AdoptArgs {
    /// Run directory
    run: PathBuf,
    /// Nodes [default: 1]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    #[command(flatten)]
    job: JobOptions,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let launch = args.layout.launch();
    let named = args.run_dir.named()?;
    if let Some(Cluster::Slurm) = args.on {
        return submit_slurm::run(&args.recipe, named, &launch, &args.slurm, environment);
    }
    let scheduler = args.cluster.connect(environment)?;
    scheduler.check_access()?;
    let prepared = Prepared::new(&args.recipe, &launch, named, environment)?;
    let submitted = prepared.submit(&scheduler, &args.job, environment);
    let job = match submitted {
        // Any other failure may come after the job was taken.
        Err(refused @ CliError::Refused { .. }) => prepared.run.or_remove(Err(refused))?,
        other => other?,
    };
    if args.json {
        screen::json(&details(&job));
        return Ok(0);
    }
    screen::say(screen::jobs::submitted(&job));
    if args.follow { follow(&scheduler, job.id) } else { Ok(0) }
}

/// Hands a run that exists to the scheduler.
pub(crate) fn adopt(args: &AdoptArgs, environment: &Environment) -> Result<u8, CliError> {
    let scheduler = args.cluster.connect(environment)?;
    let launch = LayoutArgs::of_nodes(args.nodes).launch();
    let prepared = Prepared::existing(&args.run, &launch)?;
    let job = prepared.submit(&scheduler, &args.job, environment)?;
    screen::say(screen::jobs::submitted(&job));
    Ok(0)
}

/// Shows a job until it has ended, and gives its exit code. A scheduler that goes away for a while is found again.
pub(crate) fn follow(scheduler: &Scheduler, job: u64) -> Result<u8, CliError> {
    let mut view = AttachedView::new(screen::has_terminal());
    let mut lost: Option<Instant> = None;
    loop {
        let mut last: Option<v1::Job> = None;
        let request = v1::WatchProgressRequest { job };
        let watched = scheduler.stream(
            request,
            async |mut client, request| client.watch_progress(request).await,
            &mut |answer: v1::WatchProgressResponse| {
                let Some(job) = answer.job else { return true };
                view.show(&job, Instant::now());
                // The stream goes on while a job is suspended; whoever follows does not.
                let goes_on = matches!(exit_code(&job), Ok(None));
                last = Some(job);
                goes_on
            },
        );
        if last.is_some() {
            lost = None;
        }
        match watched {
            Ok(()) => {
                let now = scheduler.job(job)?;
                view.show(&now, Instant::now());
                if let Some(code) = exit_code(&now)? {
                    return Ok(code);
                }
            }
            Err(error @ CliError::SchedulerLost { .. }) => {
                if lost.get_or_insert_with(Instant::now).elapsed() > LOST_LIMIT {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        thread::sleep(RETRY_PERIOD);
    }
}

/// The exit code of a job that has ended or that waits for a person.
fn exit_code(job: &v1::Job) -> Result<Option<u8>, CliError> {
    match job.state() {
        JobState::Succeeded => Ok(Some(0)),
        JobState::Cancelled => Ok(Some(130)),
        JobState::Failed => {
            let failure = job.failure.clone().unwrap_or_default();
            Err(CliError::JobFailed { job: job.id, what: failure.message })
        }
        JobState::Suspended if job.wanted() == v1::Wanted::Suspended => Ok(Some(86)),
        _ => Ok(None),
    }
}
