//! `lampyris resume RUN`: a new attempt that continues from the newest good checkpoint of the run's lineage. With
//! `--recipe` it continues under another recipe; values that may change its numbers must be named. A run of Slurm's
//! continues there, any other on this machine; `--cluster` says otherwise.

use super::cluster::ClusterArgs;
use super::jobs::{backend_of, is_submitted};
use super::submit_slurm::{render, submit};
use super::train::join;
use super::{Environment, RecipeArgs};
use crate::backend::slurm::refuse_if_queued;
use crate::backend::{Backend, JobName};
use crate::error::CliError;
use crate::imported;
use crate::launch::{Announced, LaunchArgs, Layout};
use crate::memory;
use crate::prepare::{check_sample, prepare, reopen};
use crate::rank_program;
use crate::run_dir::RunDir;
use crate::screen;
use crate::slurm::settings::SlurmArgs;
use crate::slurm::submission;
use crate::started_run::Start;
use lampyris_checkpoint::{Error, Run};
use lampyris_data::Dataset;
use lampyris_plan::TrainPlan;
use lampyris_plan::digest::{Change, changes};
use lampyris_plan::validate::{check_trainable, validate};
use lampyris_worker::shim::control;
use std::path::PathBuf;

/// Where a run can continue besides a scheduler of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Home {
    /// This machine
    Local,
    /// A batch job of Slurm
    Slurm,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of a job, slurm:N, or a run directory
    run: PathBuf,
    /// Continue under this recipe instead of the run's own
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Override a value of --recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "recipe")]
    sets: Vec<String>,
    /// Accept a change that may change the numbers of the run, by key or section; may be repeated
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    allow_change: Vec<String>,
    #[command(flatten)]
    launch: LaunchArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Continue there [default: slurm if it was handed to Slurm, else local]
    #[arg(long = "cluster", value_enum, conflicts_with = "rendezvous")]
    on: Option<Home>,
    #[command(flatten)]
    slurm: SlurmArgs,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    if let Some(said) = args.resume_as_it_was(environment)? {
        screen::say(said);
        return Ok(0);
    }
    let place = args.launch.place()?;
    if let Some(place) = place.as_ref().filter(|place| place.node > 0) {
        return join(&args.run, &args.launch, place, environment);
    }
    let run = RunDir::open(&args.run)?;
    let _lock = run.lock()?;
    let before = run.plan()?;
    refuse_if_queued(&run)?;
    let mut plan = args.plan(&before, environment)?;
    let imported = match args.recipe {
        Some(_) => imported::take_sizes(&run, &before, &mut plan)?,
        None => None,
    };
    validate(&plan).map_err(CliError::Invalid)?;
    // Before anything is written.
    let beginning = beginning(&run.checkpoints()?, &plan)?;
    check_trainable(&plan)?;
    let layout = args.layout(&run, &plan)?;
    let changed = changes(&before, &plan);
    refuse_other_optimizer(&run, &before, &plan)?;
    args.refuse(&changed)?;
    let rank_program = rank_program::find(environment.rank_program.clone())?;
    if args.home() == Home::Local {
        memory::check(&plan, layout, place.as_ref())?;
    }
    let dataset = args.dataset(&run, &plan, &changed)?;
    if args.recipe.is_some() {
        check_sample(&plan, &dataset)?;
    }
    if !changed.is_empty() {
        screen::note(format_args!(
            "continuing under a changed recipe{}",
            screen::changes(&changed)
        ));
        run.write_plan(&plan)?;
    }
    if let Some(imported) = &imported {
        run.record_imported(imported)?;
    }
    screen::note(beginning);
    let suspend = control::suspend_path(run.path());
    control::clear_suspend(run.path()).map_err(|source| CliError::write(&suspend, source))?;
    if args.home() == Home::Slurm {
        let script = render(run.path(), &plan.name, layout, &args.slurm, environment)?;
        return submit(&run, &script, layout.nodes);
    }
    Announced::forget(&run)?;
    let (run, plan, dataset, trace) = (&run, &plan, &dataset, args.launch.trace);
    Start { run, plan, dataset, rank_program, layout, place, trace }.claim()?.to_the_end()
}

impl Args {
    /// Lets a job of the scheduler or of Slurm go on as it was, if `run` is one and nothing is to change; what was said.
    fn resume_as_it_was(&self, environment: &Environment) -> Result<Option<String>, CliError> {
        let job = self.run.to_string_lossy();
        let name = JobName::parse(&job);
        let is_number = matches!(name, JobName::Number(_));
        if self.recipe.is_none() && (is_number || is_submitted(&self.run)) {
            let scheduler = self.cluster.connect(environment)?;
            // A run whose job has ended is a person's again.
            if is_number || !scheduler.show(&job)?.row.phase.is_final() {
                return scheduler.resume(&job).map(Some);
            }
        }
        if name == JobName::Slurm || (self.home() == Home::Slurm && self.changes_nothing()) {
            return backend_of(&job, &self.cluster, environment)?.resume(&job).map(Some);
        }
        Ok(None)
    }

    fn home(&self) -> Home {
        let handed = || if submission::is_handed(&self.run) { Home::Slurm } else { Home::Local };
        self.on.unwrap_or_else(handed)
    }

    /// Whether the batch script of a run of Slurm's can stay as it is.
    fn changes_nothing(&self) -> bool {
        let plain = self.launch == LaunchArgs::default() && self.slurm == SlurmArgs::default();
        self.recipe.is_none() && plain && submission::is_handed(&self.run)
    }

    /// As many nodes as before, for a run of Slurm's of which nothing else is said.
    fn layout(&self, run: &RunDir, plan: &TrainPlan) -> Result<Layout, CliError> {
        match submission::handed(run)? {
            Some(handed) if self.home() == Home::Slurm => {
                self.launch.or_nodes(handed.nodes).layout(plan)
            }
            _ => self.launch.layout(plan),
        }
    }

    fn plan(&self, before: &TrainPlan, environment: &Environment) -> Result<TrainPlan, CliError> {
        let ranks = self.launch.ranks();
        if let Some(recipe) = &self.recipe {
            let (recipe, sets) = (recipe.clone(), self.sets.clone());
            return RecipeArgs { recipe, sets }.with_ranks(ranks).load(environment);
        }
        let mut plan = before.clone();
        plan.parallel.data = ranks.unwrap_or(plan.parallel.data);
        Ok(plan)
    }

    /// Refuses numeric changes that are not named.
    fn refuse(&self, changed: &[Change]) -> Result<(), CliError> {
        let unnamed = |change: &&Change| change.numeric && !self.allows(&change.key);
        let refused: Vec<Change> = changed.iter().filter(unnamed).cloned().collect();
        if refused.is_empty() { Ok(()) } else { Err(CliError::Changed { changes: refused }) }
    }

    /// Whether `key`, its section or the list it is in is named.
    fn allows(&self, key: &str) -> bool {
        self.allow_change.iter().any(|allowed| {
            let rest = key.strip_prefix(allowed.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// The text the run has read so far, unless another one is accepted.
    fn dataset(
        &self,
        run: &RunDir,
        plan: &TrainPlan,
        changed: &[Change],
    ) -> Result<Dataset, CliError> {
        let of_text = |change: &Change| change.numeric && is_text(&change.key);
        let other_text = changed.iter().any(of_text);
        let record = run.dataset()?;
        let kept = match &record {
            Some(record) if !other_text => reopen(plan, record)?,
            _ => None,
        };
        let dataset = kept.map_or_else(|| prepare(plan), Ok)?;
        match record {
            Some(record) if record.fingerprint == dataset.fingerprint() => {}
            Some(_) if !other_text && !self.allows("data") => {
                return Err(CliError::OtherText { run: run.path().to_path_buf() });
            }
            _ => run.record_dataset(&dataset)?,
        }
        Ok(dataset)
    }
}

/// What the run goes on from, in words.
fn beginning(checkpoints: &Run, plan: &TrainPlan) -> Result<String, CliError> {
    match checkpoints.to_load() {
        Ok(ids) => Ok(ids.first().map_or_else(
            || "there is no checkpoint yet: starting from the beginning".into(),
            |id| format!("continuing from {id}"),
        )),
        Err(Error::NoneGood { .. }) if plan.checkpoint.replica_every_steps > 0 => {
            Ok("no checkpoint is left on disk: looking into the memory of the nodes".into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Moments of one optimizer are of no use to another.
fn refuse_other_optimizer(
    run: &RunDir,
    before: &TrainPlan,
    after: &TrainPlan,
) -> Result<(), CliError> {
    let kind = |plan: &TrainPlan| if plan.optimizer.muon.is_some() { "muon" } else { "adamw" };
    let (found, wanted) = (kind(before), kind(after));
    if found == wanted || run.checkpoints()?.candidates()?.is_empty() {
        return Ok(());
    }
    Err(CliError::OtherOptimizer { run: run.path().to_path_buf(), found, wanted })
}

/// Whether a key of the plan says which tokens are read.
fn is_text(key: &str) -> bool {
    key.starts_with("data.") || key.starts_with("tokenizer.")
}
