//! The data step: the plan's text becomes token shards in the cache, and is checked against the model before any rank
//! starts.

use crate::error::CliError;
use crate::interrupt::Guard;
use crate::run_dir::DatasetRecord;
use crate::screen::{self, DataProgress};
use indicatif::{HumanBytes, HumanCount};
use lampyris_data::{Dataset, Notice, Options, Phase, Progress, Source, Split, TokenizerSpec};
use lampyris_plan::TrainPlan;
use lampyris_plan::train_plan as plan;
use std::path::PathBuf;
use std::time::Instant;

/// Progress on the screen, of work that cleans up after itself if a signal ends it.
struct Interruptible {
    shown: DataProgress,
    guard: Guard,
}

impl Progress for Interruptible {
    fn update(&self, phase: Phase, done: u64, total: u64) {
        self.shown.update(phase, done, total);
    }

    fn notice(&self, notice: Notice) {
        self.shown.notice(notice);
    }

    fn making(&self, make: &mut dyn FnMut() -> Option<PathBuf>) {
        self.guard.remove_if_ended(make);
    }
}

/// Prepares the text of `plan`, or finds it prepared, and refuses a tokenizer that does not fit the model and a sequence
/// longer than the text.
pub(crate) fn prepare(plan: &TrainPlan) -> Result<Dataset, CliError> {
    let began = Instant::now();
    let progress =
        Interruptible { shown: DataProgress::new(screen::has_terminal()), guard: Guard::new() };
    let dataset = lampyris_data::prepare(&options(plan), &progress);
    progress.shown.finish();
    drop(progress);
    let dataset = dataset?;
    dataset.check_vocabulary(plan.model.vocab_size)?;
    dataset.training(plan.batch.sequence_length, plan.model.mtp_layers)?;
    let manifest = dataset.manifest();
    let (training, held_out) = (manifest.training, manifest.validation);
    screen::note(format_args!(
        "data: {} in {} documents, {} tokens; {} held out ({:.1} s)",
        HumanBytes(training.bytes),
        HumanCount(training.documents),
        HumanCount(training.tokens),
        HumanBytes(held_out.bytes),
        began.elapsed().as_secs_f64(),
    ));
    if held_out.tokens == 0 {
        screen::note("no text is held out (data.validation_fraction = 0): nothing is evaluated");
    }
    Ok(dataset)
}

/// Refuses held-out text that does not fill one batch of an evaluation: its loss would say nothing.
pub(crate) fn check_evaluation(plan: &TrainPlan, dataset: &Dataset) -> Result<(), CliError> {
    let tokens = dataset.manifest().validation.tokens;
    let (rows, length) = (plan.batch.micro_batch as u64, plan.batch.sequence_length as u64);
    if tokens == 0 || tokens >= rows * length {
        return Ok(());
    }
    Err(CliError::HeldOut { tokens, rows, length })
}

/// Refuses a prompt that the tokenizer cannot read: the model would be asked to continue it only after all training.
pub(crate) fn check_sample(plan: &TrainPlan, dataset: &Dataset) -> Result<(), CliError> {
    let prompt = &plan.output.sample_prompt;
    if plan.output.sample_tokens == 0 {
        return Ok(());
    }
    let encoded = dataset.tokenizer().encode(prompt);
    encoded.map_err(|source| CliError::Prompt { prompt: prompt.clone(), source })?;
    Ok(())
}

/// The text that `record` names, if the cache still has it whole: the sources are not looked at.
pub(crate) fn reopen(
    plan: &TrainPlan,
    record: &DatasetRecord,
) -> Result<Option<Dataset>, CliError> {
    let folder = plan.data.cache_dir.join(&record.fingerprint);
    if !folder.is_dir() {
        return Ok(None);
    }
    let progress = DataProgress::new(screen::has_terminal());
    let opened =
        Dataset::open(&folder).and_then(|dataset| dataset.verify(&progress).map(|()| dataset));
    progress.finish();
    match opened {
        Ok(dataset) => Ok(Some(dataset)),
        Err(lampyris_data::Error::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The data part of a plan in the words of the data crate, which knows no plan.
fn options(plan: &TrainPlan) -> Options {
    let source = |source: &plan::Source| match source.clone() {
        plan::Source::Text { path } => Source::Text { path },
        plan::Source::Jsonl { path, field } => Source::Jsonl { path, field },
        plan::Source::CargoSources { manifest } => Source::CargoSources { manifest },
    };
    let data = &plan.data;
    Options {
        sources: data.sources.iter().map(source).collect(),
        max_bytes: data.max_bytes,
        validation: match data.validation {
            plan::ValidationSplit::Hash { fraction } => Split::Hash { fraction },
            plan::ValidationSplit::Tail { fraction } => Split::Tail { fraction },
        },
        tokenizer: match plan.tokenizer.clone() {
            plan::TokenizerPlan::Byte => TokenizerSpec::Byte,
            plan::TokenizerPlan::Char => TokenizerSpec::Char,
            plan::TokenizerPlan::Bpe { vocab_size, train_bytes } => {
                TokenizerSpec::Bpe { vocab_size, train_bytes }
            }
            plan::TokenizerPlan::File { path, end_of_document } => {
                TokenizerSpec::File { path, end_of_document }
            }
        },
        cache_dir: data.cache_dir.clone(),
    }
}
