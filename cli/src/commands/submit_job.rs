//! From a recipe to a job of the scheduler: everything that can go wrong without the cluster goes wrong first, then the
//! run directory is made and handed over.

use super::{Environment, RecipeArgs};
use crate::backend::scheduler::{Scheduler, absolute, priority_of};
use crate::error::CliError;
use crate::launch::{LaunchArgs, Layout};
use crate::prepare::{check_evaluation, check_sample, prepare, reopen};
use crate::rank_program;
use crate::run_dir::RunDir;
use crate::screen;
use jiff::Zoned;
use lampyris_comm::Secret;
use lampyris_data::Dataset;
use lampyris_plan::memory::{RankMemory, checkpoint_bytes};
use lampyris_plan::validate::check_trainable;
use lampyris_plan::{Shares, TrainPlan};
use lampyris_proto::v1;
use lampyris_worker::run_file;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Notes in a run directory which job it is.
pub(crate) const JOB_FILE: &str = "control/job.json";

/// How long a submission is tried again while the scheduler does not answer.
const SUBMIT_LIMIT: Duration = Duration::from_secs(20);

/// Between two tries.
const RETRY_PERIOD: Duration = Duration::from_millis(200);

/// How a job is to be treated.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct JobOptions {
    /// low, below_normal, normal, above_normal, high, very_high or extreme_high
    #[arg(long, default_value = "normal")]
    priority: String,
    /// Name for people [default: the recipe's]
    #[arg(long)]
    name: Option<String>,
    /// Group of nodes
    #[arg(long, default_value = "default")]
    group: String,
    /// Devices on each node, on nodes that are shared [default: whole nodes]
    #[arg(long, value_name = "N")]
    devices_per_node: Option<u32>,
    /// Starts after a failure that may pass by itself, without progress in between
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_retries: u32,
    /// Seconds without progress after which it counts as hung; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    hang_timeout_s: u64,
    /// Fail a hung job instead of starting it again
    #[arg(long)]
    fail_on_hang: bool,
    /// Seconds one start runs at most, if known: lets it fill gaps
    #[arg(long, value_name = "SECONDS")]
    max_runtime_s: Option<u64>,
}

impl Default for JobOptions {
    /// As on the command line.
    fn default() -> JobOptions {
        JobOptions {
            priority: "normal".into(),
            name: None,
            group: "default".into(),
            devices_per_node: None,
            max_retries: 3,
            hang_timeout_s: 1800,
            fail_on_hang: false,
            max_runtime_s: None,
        }
    }
}

/// A run that is ready to be handed over.
pub(crate) struct Prepared {
    pub(crate) run: RunDir,
    pub(crate) plan: TrainPlan,
    pub(crate) dataset: Dataset,
    pub(crate) layout: Layout,
}

impl Prepared {
    /// A new run of a recipe.
    pub(crate) fn new(
        recipe: &RecipeArgs,
        launch: &LaunchArgs,
        named: Option<&Path>,
        environment: &Environment,
    ) -> Result<Prepared, CliError> {
        let recipe = recipe.with_ranks(launch.ranks());
        let plan = recipe.load(environment)?;
        check_trainable(&plan)?;
        let layout = launch.layout(&plan)?;
        rank_program::locate(environment.rank_program.clone())?;
        let dataset = prepare(&plan)?;
        check_evaluation(&plan, &dataset)?;
        check_sample(&plan, &dataset)?;
        let run = RunDir::create(&plan, named, &Zoned::now(), &recipe.text_with_sets()?)?;
        run.or_remove(run.record_dataset(&dataset))?;
        screen::note(format_args!("run directory {}", run.path().display()));
        Ok(Prepared { run, plan, dataset, layout })
    }

    /// A run that exists, to be continued as a job.
    pub(crate) fn existing(path: &Path, launch: &LaunchArgs) -> Result<Prepared, CliError> {
        let run = RunDir::open(path)?;
        let plan = run.valid_plan()?;
        let layout = launch.layout(&plan)?;
        let record = run.dataset()?;
        let kept = record.as_ref().map(|record| reopen(&plan, record)).transpose()?.flatten();
        let dataset = kept.map_or_else(|| prepare(&plan), Ok)?;
        if record.is_some_and(|record| record.fingerprint != dataset.fingerprint()) {
            return Err(CliError::OtherText { run: path.to_path_buf() });
        }
        Ok(Prepared { run, plan, dataset, layout })
    }

    /// Hands it over, and notes in the run directory whose it is.
    pub(crate) fn submit(
        &self,
        scheduler: &Scheduler,
        options: &JobOptions,
        environment: &Environment,
    ) -> Result<v1::Job, CliError> {
        let job = self.hand_over(scheduler, options, environment)?;
        let path = self.run.path().join(JOB_FILE);
        let word = serde_json::json!({ "job": job.id, "scheduler": scheduler.address() });
        run_file::write(self.run.path(), JOB_FILE, 0o666, format!("{word}\n").as_bytes())
            .map_err(|source| CliError::write(&path, source))?;
        Ok(job)
    }

    /// Hands it over. A scheduler that does not answer is asked again: the request id makes that one job.
    pub(crate) fn hand_over(
        &self,
        scheduler: &Scheduler,
        options: &JobOptions,
        environment: &Environment,
    ) -> Result<v1::Job, CliError> {
        let request = v1::SubmitJobRequest {
            request_id: request_id()?,
            spec: Some(self.spec(options, environment)?),
            run: Some(self.run_spec()?),
            validate_only: false,
        };
        let until = Instant::now() + SUBMIT_LIMIT;
        loop {
            let asked = scheduler.call(request.clone(), async |mut client, request| {
                client.submit_job(request).await
            });
            match asked {
                Err(CliError::SchedulerLost { .. }) if Instant::now() < until => {
                    thread::sleep(RETRY_PERIOD);
                }
                other => return other,
            }
        }
    }

    fn spec(
        &self,
        options: &JobOptions,
        environment: &Environment,
    ) -> Result<v1::JobSpec, CliError> {
        let priority = priority_of(&options.priority)
            .ok_or_else(|| CliError::Priority { word: options.priority.clone() })?;
        let ms = |seconds: u64| seconds.saturating_mul(1000);
        let nodes = u32::try_from(self.layout.nodes).unwrap_or(u32::MAX);
        Ok(v1::JobSpec {
            name: options.name.clone().unwrap_or_else(|| self.plan.name.clone()),
            user: environment.user.clone(),
            group: options.group.clone(),
            priority: priority.into(),
            nodes: vec![nodes],
            devices_per_node: options.devices_per_node,
            max_runtime_ms: options.max_runtime_s.map(ms),
            max_retries: options.max_retries,
            hang_timeout_ms: Some(ms(options.hang_timeout_s)).filter(|ms| *ms > 0),
            restart_on_hang: !options.fail_on_hang,
        })
    }

    fn run_spec(&self) -> Result<v1::RunSpec, CliError> {
        let shares = Shares::of(&self.plan);
        let rank = RankMemory::of(&self.plan, &shares, self.plan.batch.reduction);
        let ranks = self.layout.ranks_per_node as u64;
        Ok(v1::RunSpec {
            run_dir: absolute(self.run.path()),
            dataset: absolute(self.dataset.folder()),
            ranks_per_node: u32::try_from(ranks).unwrap_or(u32::MAX),
            attempt_base: self.run.checkpoints()?.newest_claim()?.0,
            build_id: rank_program::build_id(),
            memory_bytes: rank.total() * ranks,
            disk_bytes: checkpoint_bytes(shares.inventory()),
        })
    }
}

/// 32 hexadecimal digits that nobody else has.
fn request_id() -> Result<String, CliError> {
    let bytes = Secret::random_bytes()?;
    Ok(bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}
