//! The end of a run in words: what was trained, how well, what it writes, and where everything lies.

use super::training::duration_text;
use crate::compressors::Compressed;
use indicatif::{HumanBytes, HumanCount};
use lampyris_data::PartSummary;
use lampyris_plan::visible;
use lampyris_worker::report::Report;
use std::fmt::Write;
use std::path::Path;

/// The report of a finished run; `compressed` holds compressors' sizes of the text on which the model was evaluated.
pub(crate) fn report(
    run_dir: &Path,
    said: &Report,
    corpus: &PartSummary,
    compressed: &[Compressed],
) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    write_report(&mut text, run_dir, said, corpus, compressed).ok();
    text
}

fn write_report(
    out: &mut String,
    run_dir: &Path,
    said: &Report,
    corpus: &PartSummary,
    compressed: &[Compressed],
) -> std::fmt::Result {
    if let Some(finished) = &said.finished {
        let (steps, tokens) = (HumanCount(finished.step), HumanCount(finished.tokens));
        let time = duration_text(finished.train_s);
        let speed = speed(said).map(|s| format!(" ({} tokens/s)", HumanCount(s as u64)));
        let speed = speed.unwrap_or_default();
        writeln!(out, "Trained to step {steps}, {tokens} tokens; {time} of training{speed}")?;
        let (all, bytes) = (HumanCount(corpus.tokens), HumanBytes(corpus.bytes));
        let epochs = finished.tokens as f64 / corpus.tokens as f64;
        let part = if epochs < 1.0 {
            format!("{:.1} % of it seen, each sample once", 100.0 * epochs)
        } else {
            format!("seen {epochs:.1} times")
        };
        writeln!(out, "Corpus of {all} tokens ({bytes} of text): {part}")?;
    }
    if let Some(evaluated) = &said.evaluated {
        let bytes = HumanCount(evaluated.bytes);
        writeln!(out, "\nBits per byte on {bytes} bytes of held-out text")?;
        writeln!(out, "  this model  {:.3}", evaluated.bits_per_byte)?;
        for other in compressed {
            writeln!(out, "  {:<10}  {:.3}", other.name, other.bits_per_byte())?;
        }
    }
    if let Some(sample) = &said.sample {
        writeln!(out, "\nIt writes")?;
        for line in format!("{}{}", sample.prompt, sample.text).lines() {
            writeln!(out, "  | {}", visible::prose(line))?;
        }
    }
    let run = run_dir.to_string_lossy();
    writeln!(out, "\nRun         {}", visible::line(&run))?;
    if let Some(saved) = &said.saved {
        writeln!(out, "Checkpoint  {}", visible::line(&saved.path))?;
    }
    let word = super::word(run_dir);
    write!(out, "Try         lampyris generate {} --prompt \"...\"", visible::line(&word))
}

/// Tokens per second of this attempt, its first step (which warms caches up) left out.
fn speed(said: &Report) -> Option<f64> {
    let (first, finished) = (said.first_step.as_ref()?, said.finished.as_ref()?);
    let seconds = finished.train_s - first.step_s;
    let tokens = finished.tokens.checked_sub(first.tokens)?;
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compressors::compress;
    use lampyris_proto::rank::{Evaluated, Finished, Sample, Saved, StepDone};

    #[test]
    fn the_whole_report() {
        let said = Report {
            first_step: Some(StepDone {
                step: 1,
                tokens: 2_000,
                step_s: 4.0,
                ..Default::default()
            }),
            evaluated: Some(Evaluated {
                bits_per_byte: 1.2345,
                bytes: 64_000,
                ..Default::default()
            }),
            saved: Some(Saved {
                path: "run/checkpoints/step-750.attempt-1".into(),
                ..Default::default()
            }),
            sample: Some(Sample { prompt: "/// Returns".into(), text: " the\n/// number".into() }),
            finished: Some(Finished { step: 750, tokens: 1_502_000, train_s: 304.0 }),
        };
        let compressed = compress(&[b'a'; 64_000]).unwrap();
        let corpus = PartSummary { documents: 10, tokens: 15_020_000, bytes: 40 << 20 };
        let expected = "\
Trained to step 750, 1,502,000 tokens; 5m04s of training (5,000 tokens/s)
Corpus of 15,020,000 tokens (40.00 MiB of text): 10.0 % of it seen, each sample once

Bits per byte on 64,000 bytes of held-out text
  this model  1.234
  xz -9       0.018
  gzip -9     0.012

It writes
  | /// Returns the
  | /// number

Run         runs/one
Checkpoint  run/checkpoints/step-750.attempt-1
Try         lampyris generate runs/one --prompt \"...\"";
        assert_eq!(report(Path::new("runs/one"), &said, &corpus, &compressed), expected);
    }

    #[test]
    fn what_was_not_said_is_left_out() {
        let nothing = PartSummary { documents: 0, tokens: 0, bytes: 0 };
        let text = report(Path::new("r"), &Report::default(), &nothing, &[]);
        assert_eq!(text, "\nRun         r\nTry         lampyris generate r --prompt \"...\"");
    }
}
