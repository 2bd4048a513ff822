//! `list`, `show`, `logs`, `top`, `stop`: one job or many, wherever they live.

use super::Environment;
use super::cluster::ClusterArgs;
use super::submit_slurm::Cluster;
use crate::backend::local::Local;
use crate::backend::slurm::Slurm;
use crate::backend::{Backend, JobName, LogsWanted, Wanted};
use crate::error::CliError;
use crate::screen;
use crate::slurm::submission;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Where runs lie if nobody says.
const RUNS_DIR: &str = "runs";

/// Jobs in a list.
const LIST_LIMIT: usize = 1000;

/// Between two tables of `top`.
const TOP_PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Also jobs that have ended for good
    #[arg(long, short)]
    all: bool,
    /// Only jobs of this user
    #[arg(long)]
    user: Option<String>,
    /// Runs in this folder instead of jobs of a scheduler, each as its directory says
    #[arg(long, value_name = "DIR")]
    local: Option<PathBuf>,
    /// Runs that were handed there, from runs/ or the folder of --local
    #[arg(long = "cluster", value_enum, conflicts_with = "scheduler")]
    on: Option<Cluster>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct JobArgs {
    /// Number of a job, slurm:N, or a run directory
    job: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// Number of a job, slurm:N, or a run directory
    job: String,
    /// Global rank
    #[arg(long, default_value_t = 0)]
    rank: u64,
    /// Attempt [default: the newest]
    #[arg(long)]
    attempt: Option<u64>,
    /// Go on with what is written later
    #[arg(long, short)]
    follow: bool,
    /// Bytes from the beginning to skip; negative: bytes from the end to show
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    offset: i64,
    /// Print JSON: one object with the text
    #[arg(long, conflicts_with = "follow")]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// The backend that knows `job`: a run directory that was handed to nobody is this machine's.
pub(crate) fn backend_of(
    job: &str,
    cluster: &ClusterArgs,
    environment: &Environment,
) -> Result<Box<dyn Backend>, CliError> {
    let local = Local { runs_dir: RUNS_DIR.into() };
    match JobName::parse(job) {
        JobName::RunDir(path) if is_submitted(&path) => Ok(Box::new(cluster.connect(environment)?)),
        JobName::RunDir(path) if submission::is_handed(&path) => Ok(Box::new(Slurm { local })),
        JobName::RunDir(_) => Ok(Box::new(local)),
        JobName::Slurm => Ok(Box::new(Slurm { local })),
        JobName::Number(_) => Ok(Box::new(cluster.connect(environment)?)),
    }
}

/// Whether a run directory belongs to a job of a scheduler.
pub(crate) fn is_submitted(run_dir: &Path) -> bool {
    run_dir.join(super::submit_job::JOB_FILE).exists()
}

pub(crate) fn list(args: &ListArgs, environment: &Environment) -> Result<u8, CliError> {
    let wanted = Wanted { all: args.all, user: args.user.clone(), limit: LIST_LIMIT };
    let local =
        || Local { runs_dir: args.local.clone().unwrap_or_else(|| PathBuf::from(RUNS_DIR)) };
    let rows = match (args.on, &args.local) {
        (Some(Cluster::Slurm), _) => Slurm { local: local() }.list(&wanted)?,
        (None, Some(_)) => local().list(&wanted)?,
        (None, None) => args.cluster.connect(environment)?.list(&wanted)?,
    };
    match args.json {
        true => screen::json(&rows),
        false => screen::say(screen::jobs::jobs(&rows, screen::width())),
    }
    Ok(0)
}

pub(crate) fn show(args: &JobArgs, environment: &Environment) -> Result<u8, CliError> {
    let job = backend_of(&args.job, &args.cluster, environment)?.show(&args.job)?;
    match args.json {
        true => screen::json(&job),
        false => screen::say(screen::jobs::job(&job, screen::width())),
    }
    Ok(0)
}

pub(crate) fn logs(args: &LogsArgs, environment: &Environment) -> Result<u8, CliError> {
    let backend = backend_of(&args.job, &args.cluster, environment)?;
    let (rank, attempt, offset, follow) = (args.rank, args.attempt, args.offset, args.follow);
    let wanted = LogsWanted { rank, attempt, offset, follow };
    if args.json {
        let mut text = Vec::new();
        backend.logs(&args.job, &wanted, &mut |piece| {
            text.extend_from_slice(piece);
            true
        })?;
        let text = String::from_utf8_lossy(&text);
        screen::json(&serde_json::json!({ "job": args.job, "rank": rank, "text": text }));
        return Ok(0);
    }
    let mut out = screen::LogOutput::stdout();
    backend.logs(&args.job, &wanted, &mut |piece| out.piece(piece))?;
    out.finish();
    Ok(0)
}

pub(crate) fn stop(args: &JobArgs, environment: &Environment) -> Result<u8, CliError> {
    let said = backend_of(&args.job, &args.cluster, environment)?.stop(&args.job)?;
    screen::done(args.json, &args.job, &said);
    Ok(0)
}

#[derive(Debug, clap::Args)]
pub(crate) struct TopArgs {
    /// Show it once and end
    #[arg(long)]
    once: bool,
    /// Print JSON, once
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Nodes and running jobs, again every second.
pub(crate) fn top(args: &TopArgs, environment: &Environment) -> Result<u8, CliError> {
    let scheduler = args.cluster.connect(environment)?;
    let wanted = Wanted { all: false, user: None, limit: LIST_LIMIT };
    loop {
        let nodes = super::nodes::all(&scheduler, "")?;
        let jobs = scheduler.list(&wanted)?;
        if args.json {
            let nodes: Vec<_> = nodes.iter().map(super::nodes::json).collect();
            screen::json(&serde_json::json!({ "nodes": nodes, "jobs": jobs }));
            return Ok(0);
        }
        let width = screen::width();
        let (nodes, jobs) = (screen::jobs::nodes(&nodes, width), screen::jobs::jobs(&jobs, width));
        if args.once {
            screen::say(format_args!("{nodes}\n\n{jobs}"));
            return Ok(0);
        }
        screen::again(format!("{nodes}\n\n{jobs}"));
        thread::sleep(TOP_PERIOD);
    }
}
