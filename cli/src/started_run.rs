//! One start of a run on this machine, from a run directory and prepared data to an exit code: the shim in this process,
//! its events on the screen, the report at the end.

use crate::compressors::{self, Compressed};
use crate::error::{self, CliError};
use crate::rank_program;
use crate::run_dir::RunDir;
use crate::screen::{self, Story, TrainingView};
use lampyris_data::Dataset;
use lampyris_plan::TrainPlan;
use lampyris_proto::{Attempt, Rank};
use lampyris_worker::shim::{Options, Outcome};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

/// Events that may wait for the screen; more are dropped, progress first.
const EVENT_LIMIT: usize = 1024;

/// How long ranks may take to a step boundary before the screen says which have not come.
const REPORT_AFTER: Duration = Duration::from_secs(60);

/// A run that is ready to start.
pub(crate) struct StartedRun<'a> {
    run: &'a RunDir,
    plan: &'a TrainPlan,
    dataset: &'a Dataset,
    attempt: Attempt,
    rank_program: PathBuf,
}

impl<'a> StartedRun<'a> {
    /// Takes the next attempt number of the run.
    pub(crate) fn claim(
        run: &'a RunDir,
        plan: &'a TrainPlan,
        dataset: &'a Dataset,
        rank_program: PathBuf,
    ) -> Result<StartedRun<'a>, CliError> {
        let attempt = Attempt(run.checkpoints()?.claim_next()?.0);
        Ok(StartedRun { run, plan, dataset, attempt, rank_program })
    }

    /// Runs to the end, whatever that is.
    pub(crate) fn to_the_end(&self) -> Result<u8, CliError> {
        let (service, _handle) = self.shim().build()?;
        let (sender, events) = sync_channel(EVENT_LIMIT);
        let terminal = std::io::stderr().is_terminal();
        // The shim has the main thread: the ranks' lives are tied to the thread that starts them.
        let view = thread::spawn(move || TrainingView::new(terminal).watch(&events));
        let outcome = service.run(&sender);
        drop(sender);
        let story = view.join().unwrap_or_default();
        let outcome = outcome?;
        match &outcome {
            Outcome::Finished => self.report(&story)?,
            Outcome::Suspended { step, .. } => screen::say(format_args!(
                "checkpointed after step {step} and stopped; `lampyris resume {}` continues",
                self.run.path().display()
            )),
            Outcome::Failed(_) => {}
        }
        error::exit_code(outcome)
    }

    fn shim(&self) -> Options {
        let arguments: [OsString; 5] = [
            "train".into(),
            "--plan".into(),
            self.run.plan_path().into(),
            "--dataset".into(),
            self.dataset.folder().into(),
        ];
        Options {
            program: self.rank_program.clone(),
            arguments: arguments.into(),
            run_dir: self.run.path().to_path_buf(),
            attempt: self.attempt,
            first_rank: Rank(0),
            local_ranks: self.plan.parallel.data,
            world: self.plan.parallel.data as u64,
            build_id: rank_program::build_id(),
            deadline: None,
            report_after: REPORT_AFTER,
            handle_signals: true,
        }
    }

    fn report(&self, story: &Story) -> Result<(), CliError> {
        let compressed = self.compressed(story)?;
        let corpus = &self.dataset.manifest().training;
        screen::say(screen::report(self.run.path(), story, corpus, &compressed));
        Ok(())
    }

    fn compressed(&self, story: &Story) -> Result<Vec<Compressed>, CliError> {
        match &story.evaluated {
            Some(evaluated) if self.plan.eval.compare_compressors => {
                let text = self.dataset.validation_text(evaluated.tokens);
                compressors::compress(text).map_err(|source| CliError::Compress { source })
            }
            _ => Ok(Vec::new()),
        }
    }
}
