//! The data ledger: which samples a step of a run reads, and from which documents. Nothing is logged for it. The order of
//! samples is a function of (seed, text, samples consumed), and how many were consumed follows from the plans of the
//! attempts that led to the step; neither depends on the number of ranks.

use lampyris_checkpoint::{Record, Start};
use lampyris_data::{Dataset, Error, SampleOrder, Span};
use lampyris_plan::{Attempt, lr};
use serde::Serialize;

/// An attempt on the way to the newest one.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    /// What it began from.
    pub(crate) record: Record,
    /// What it was started with.
    pub(crate) start: Start,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which stretch holds it.
    pub(crate) stretch: usize,
    /// Samples consumed before it.
    pub(crate) samples: u64,
    /// Tokens consumed before it.
    pub(crate) tokens: u64,
    /// Samples consumed when its attempt began.
    pub(crate) samples_at_start: u64,
}

/// Finds `step`, counted from 1 as in `metrics.jsonl`, on the way to the newest attempt; none if no step has that number.
/// A step that is still to come stands where the newest attempt will do it.
pub(crate) fn place(path: &[Stretch], step: u64) -> Option<Place> {
    let first = |stretch: &Stretch| stretch.record.parent.map_or(0, |parent| parent.step.0);
    let (mut samples, mut tokens) = (0, 0);
    for (stretch, here) in path.iter().enumerate() {
        let plan = &here.start.plan;
        let samples_at_start = samples;
        let last = path.get(stretch + 1).map_or_else(|| lr::steps(plan), first);
        for done in first(here) + 1..=last {
            if done == step {
                return Some(Place { stretch, samples, tokens, samples_at_start });
            }
            let sequences = lr::sequences_at(plan, tokens) as u64;
            samples += sequences;
            tokens += sequences * plan.batch.sequence_length as u64;
        }
    }
    None
}

/// What a step reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Ledger {
    pub(crate) step: u64,
    pub(crate) attempt: Attempt,
    /// Fingerprint of the text.
    pub(crate) dataset: String,
    pub(crate) sequence_length: usize,
    pub(crate) samples: Vec<Sample>,
}

/// One sequence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Samples that the run consumed before it.
    pub(crate) position: u64,
    /// Micro-batch of the step.
    pub(crate) micro_batch: usize,
    /// Passes over the text before this one.
    pub(crate) epoch: u64,
    /// Window of the text: its inputs are the tokens `[window * S, (window + 1) * S)`.
    pub(crate) window: u64,
    pub(crate) documents: Vec<Document>,
}

/// A stretch of a sequence inside one document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Document {
    /// Number of the training document.
    pub(crate) document: u64,
    /// Number of the source in the plan.
    pub(crate) source: usize,
    pub(crate) file: String,
    /// Of a JSONL file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<u64>,
    /// Tokens of the document, the last not included.
    pub(crate) tokens: [u64; 2],
    /// Their text, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
}

/// Names the documents of `step`, which stands at `place`.
///
/// # Errors
/// A sequence longer than the text, tokens that are no text.
pub(crate) fn ledger(
    path: &[Stretch],
    (step, place): (u64, Place),
    dataset: &Dataset,
    with_text: bool,
) -> Result<Ledger, Error> {
    let Stretch { record, start } = &path[place.stretch];
    let batch = &start.plan.batch;
    let windows = dataset.training(batch.sequence_length, 0)?;
    let order = SampleOrder::new(start.plan.seed, windows.samples());
    let sequences = lr::sequences_at(&start.plan, place.tokens);
    let sample = |nth: usize| {
        let position = place.samples + nth as u64;
        let id = order.sample_at(position);
        let row = windows.batch(&[id]);
        let mut rest = &row.row(0)[..batch.sequence_length];
        let document = |span: Span| {
            let (here, later) = rest.split_at((span.tokens.end - span.tokens.start) as usize);
            rest = later;
            let text = with_text.then(|| decode(dataset, here)).transpose()?;
            let tokens = [span.tokens.start, span.tokens.end];
            let Span { document, source, file, line, .. } = span;
            Ok(Document { document, source, file, line, tokens, text })
        };
        let spans = dataset.locate(windows.inputs(id.index));
        Ok(Sample {
            position,
            micro_batch: nth / batch.micro_batch,
            epoch: id.epoch,
            window: id.index,
            documents: spans.into_iter().map(document).collect::<Result<_, Error>>()?,
        })
    };
    Ok(Ledger {
        step,
        attempt: record.attempt,
        dataset: dataset.fingerprint().into(),
        sequence_length: batch.sequence_length,
        samples: (0..sequences).map(sample).collect::<Result<_, Error>>()?,
    })
}

fn decode(dataset: &Dataset, tokens: &[i64]) -> Result<String, Error> {
    let tokens: Vec<u32> = tokens.iter().filter_map(|&token| u32::try_from(token).ok()).collect();
    dataset.tokenizer().decode(&tokens)
}
