//! What rank 0 said of an attempt that a final report shows. The host of rank 0 leaves it in the run directory as
//! `report.json` once the attempt has finished, so that whoever waited for it can show it.

use crate::run_file;
use lampyris_proto::rank::from_rank::Body;
use lampyris_proto::rank::{Evaluated, Finished, Sample, Saved, StepDone};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

const FILE: &str = "report.json";

/// Largest file that is read: it holds one sample of text and a few numbers.
const MOST_BYTES: u64 = 16 << 20;

/// The first step of an attempt, and the last word of everything else.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The first step.
    pub first_step: Option<StepDone>,
    /// The newest evaluation.
    pub evaluated: Option<Evaluated>,
    /// The newest checkpoint.
    pub saved: Option<Saved>,
    /// What the model writes.
    pub sample: Option<Sample>,
    /// The end.
    pub finished: Option<Finished>,
}

impl Report {
    /// Takes in what rank 0 said.
    pub fn note(&mut self, body: &Body) {
        match body {
            Body::StepDone(step) => {
                self.first_step.get_or_insert(*step);
            }
            Body::Evaluated(evaluated) => self.evaluated = Some(*evaluated),
            Body::Saved(saved) => self.saved = Some(saved.clone()),
            Body::Sample(sample) => self.sample = Some(sample.clone()),
            Body::Finished(finished) => self.finished = Some(*finished),
            // Of no interest in the end.
            Body::Ready(_) | Body::Operation(_) | Body::Note(_) => {}
            Body::Suspended(_) | Body::Failed(_) => {}
        }
    }

    /// Leaves it in a run directory, whole by rename.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain data becomes JSON");
        run_file::write(run_dir, FILE, 0o666, (text + "\n").as_bytes())
    }

    /// That of the run directory's last finished attempt.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read(run_dir: &Path) -> io::Result<Report> {
        let text = run_file::read(run_dir, FILE, MOST_BYTES)?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_and_the_last_of_everything_else() {
        let step = |step| StepDone { step, loss: 2.5, ..Default::default() };
        let evaluated = |step| Evaluated { step, bits_per_byte: 2.0, ..Default::default() };
        let sample = Sample { prompt: "fn".into(), text: " main() {}\n".into() };
        let mut report = Report::default();
        for body in [
            Body::StepDone(step(7)),
            Body::Evaluated(evaluated(7)),
            Body::StepDone(step(8)),
            Body::Evaluated(evaluated(8)),
            Body::Sample(sample.clone()),
        ] {
            report.note(&body);
        }
        let expected = Report {
            first_step: Some(step(7)),
            evaluated: Some(evaluated(8)),
            sample: Some(sample),
            ..Default::default()
        };
        assert_eq!(report, expected);
        let dir = tempfile::tempdir().unwrap();
        assert!(Report::read(dir.path()).is_err());
        report.write(dir.path()).unwrap();
        assert_eq!(Report::read(dir.path()).unwrap(), expected);
        std::fs::File::create(dir.path().join(FILE)).unwrap().set_len(MOST_BYTES + 1).unwrap();
        let error = Report::read(dir.path()).unwrap_err().to_string();
        assert_eq!(error, "has more than 16777216 bytes");
    }
}
