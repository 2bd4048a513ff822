//! One start of a run on this machine, from a run directory and prepared data to an exit code: the shim in this process,
//! the rendezvous if there are several ranks, the shim's events on the screen, the report at the end.

use crate::compressors;
use crate::error::{self, CliError};
use crate::interrupt;
use crate::launch::{Announced, Hosted, Layout, Place};
use crate::rank_program;
use crate::run_dir::RunDir;
use crate::screen::{self, TrainingView};
use lampyris_data::Dataset;
use lampyris_plan::TrainPlan;
use lampyris_proto::{Attempt, Rank};
use lampyris_worker::cores::{Claim, CoreList, Given};
use lampyris_worker::report::Report;
use lampyris_worker::shim::{Options, Outcome, Rendezvous};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

/// Events that may wait for the screen; more are dropped, progress first.
const EVENT_LIMIT: usize = 1024;

/// How long ranks may take to a step boundary before the screen says which have not come.
const REPORT_AFTER: Duration = Duration::from_secs(60);

/// What a start consists of.
pub(crate) struct Start<'a> {
    pub(crate) run: &'a RunDir,
    pub(crate) plan: &'a TrainPlan,
    pub(crate) dataset: &'a Dataset,
    pub(crate) rank_program: PathBuf,
    pub(crate) layout: Layout,
    /// None where all ranks run on this machine.
    pub(crate) place: Option<Place>,
    /// Ranks write traces.
    pub(crate) trace: bool,
}

/// A run that is ready to start.
pub(crate) struct StartedRun<'a> {
    start: Start<'a>,
    attempt: Attempt,
}

impl<'a> Start<'a> {
    /// Takes the next attempt number of the run.
    pub(crate) fn claim(self) -> Result<StartedRun<'a>, CliError> {
        let attempt = Attempt(self.run.checkpoints()?.claim_next()?.0);
        Ok(StartedRun { start: self, attempt })
    }

    /// Takes part in an attempt that node 0 has claimed.
    pub(crate) fn join(self, attempt: Attempt) -> StartedRun<'a> {
        StartedRun { start: self, attempt }
    }
}

impl StartedRun<'_> {
    /// Runs to the end, whatever that is.
    pub(crate) fn to_the_end(&self) -> Result<u8, CliError> {
        let hosted = self.host()?;
        let place = self.start.place.as_ref();
        let hosts_it = place.is_some_and(|place| place.node == 0);
        let _announced = match hosts_it {
            true => Some(Announced::new(self.start.run, self.attempt, self.start.layout)?),
            false => None,
        };
        let there = place.map(|place| Rendezvous { address: place.address, secret: place.secret });
        let here = hosted.as_ref().map(|hosted| hosted.rendezvous.clone());
        interrupt::hand_over();
        let (_claim, cores) = self.claim_cores();
        let (service, _handle) = self.shim(here.or(there), cores).build()?;
        let (sender, events) = sync_channel(EVENT_LIMIT);
        let terminal = screen::has_terminal();
        // The shim has the main thread: the ranks' lives are tied to the thread that starts them.
        let view = thread::spawn(move || TrainingView::new(terminal).watch(&events));
        let outcome = service.run(&sender);
        drop(sender);
        let said = view.join().unwrap_or_default();
        let outcome = outcome?;
        match &outcome {
            // Rank 0 evaluates: its host reports.
            Outcome::Finished if place.is_some_and(|place| place.node > 0) => {}
            Outcome::Finished => self.report(&said)?,
            Outcome::Suspended { step, .. } => screen::say(format_args!(
                "checkpointed after step {step} and stopped; `lampyris resume {}` continues",
                screen::word(self.start.run.path())
            )),
            Outcome::Failed(_) => {}
        }
        error::exit_code(outcome)
    }

    /// The rendezvous, if there is anyone to meet and it is this host's to serve.
    fn host(&self) -> Result<Option<Hosted>, CliError> {
        match &self.start.place {
            None if self.start.layout.world() == 1 => Ok(None),
            None => Hosted::here(self.attempt).map(Some),
            Some(place) if place.node == 0 => {
                Hosted::at(place.address, place.secret, self.attempt).map(Some)
            }
            Some(_) => Ok(None),
        }
    }

    /// Takes the cores of this machine that no other run has, as far as the plan can use them.
    fn claim_cores(&self) -> (Claim, Given) {
        let all = CoreList::allowed();
        let threads = self.start.plan.parallel.threads_per_rank;
        let wanted = match threads {
            0 => all.len(),
            threads => all.len().min(threads.saturating_mul(self.local_ranks())),
        };
        let claim = Claim::take(&all, wanted);
        let free = claim.own().len();
        // A plan that fixes the threads keeps them, and with them its bits: nothing is gained by holding it to few cores.
        let given = match threads {
            0 => claim.given(&all),
            _ => Given { cores: all, shared: false },
        };
        if free < wanted {
            screen::note(format_args!(
                "other runs compute on this machine: {free} of the {wanted} cores that this run could use are free"
            ));
        }
        if given.shared {
            screen::note("it shares all of them, with one thread per rank");
        }
        (claim, given)
    }

    /// Ranks on this machine.
    fn local_ranks(&self) -> usize {
        match &self.start.place {
            None => self.start.layout.world(),
            Some(_) => self.start.layout.ranks_per_node,
        }
    }

    fn shim(&self, rendezvous: Option<Rendezvous>, cores: Given) -> Options {
        let Start { run, dataset, layout, .. } = &self.start;
        let mut arguments: Vec<OsString> = vec![
            "train".into(),
            "--plan".into(),
            run.plan_path().into(),
            "--dataset".into(),
            dataset.folder().into(),
        ];
        arguments.extend(self.start.trace.then(|| "--trace".into()));
        let node = self.start.place.as_ref().map_or(0, |place| place.node);
        Options {
            program: self.start.rank_program.clone(),
            arguments,
            run_dir: run.path().to_path_buf(),
            attempt: self.attempt,
            first_rank: Rank((node * layout.ranks_per_node) as u64),
            local_ranks: self.local_ranks(),
            world: layout.world() as u64,
            nodes: layout.nodes as u64,
            node: node as u64,
            rendezvous,
            cores,
            build_id: rank_program::build_id(),
            deadline: None,
            report_after: REPORT_AFTER,
            handle_signals: true,
        }
    }

    fn report(&self, said: &Report) -> Result<(), CliError> {
        report(self.start.run, self.start.plan, self.start.dataset, said)
    }
}

/// Shows what has become of a run that has finished.
pub(crate) fn report(
    run: &RunDir,
    plan: &TrainPlan,
    dataset: &Dataset,
    said: &Report,
) -> Result<(), CliError> {
    let compressed = match &said.evaluated {
        Some(evaluated) if plan.eval.compare_compressors => {
            let text = dataset.validation_text(evaluated.tokens);
            compressors::compress(text).map_err(|source| CliError::Compress { source })?
        }
        _ => Vec::new(),
    };
    screen::say_source(screen::report(run.path(), said, &dataset.manifest().training, &compressed));
    Ok(())
}
