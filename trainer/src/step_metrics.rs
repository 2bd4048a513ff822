//! What a step writes into the metrics: loss and its parts, rate, norm, speed, memory, expert load.

use crate::eval::Evaluation;
use crate::executor::{StepInput, StepReport};
use crate::machine;
use crate::metrics::{Began, Metrics};
use crate::saves::SaveEvent;
use crate::state::Progress;
use lampyris_checkpoint::Target;
use lampyris_plan::TrainPlan;
use lampyris_plan::flops::ForwardFlops;
use serde_json::{Map, Value, json};
use std::io;
use std::path::Path;

/// Writes the metrics of one attempt.
#[derive(Debug)]
pub struct StepMetrics {
    metrics: Metrics,
    /// Training FLOPs of one token: three times the forward pass (models as in PaLM, appendix B).
    flops_per_token: f64,
    peak_flops: f64,
}

impl StepMetrics {
    /// Opens the metrics of a run directory. `peak_flops`: speed of a large matrix product on this rank's device.
    ///
    /// # Errors
    /// The files cannot be created.
    pub fn open(
        run_dir: &Path,
        began: Began,
        plan: &TrainPlan,
        peak_flops: f64,
    ) -> io::Result<StepMetrics> {
        let forward = ForwardFlops::per_token(&plan.model, plan.batch.sequence_length);
        Ok(StepMetrics {
            metrics: Metrics::open(run_dir, began, plan.output.tensorboard)?,
            flops_per_token: 3.0 * forward.with_mtp() as f64,
            peak_flops,
        })
    }

    /// One step. `data` is (valid targets, epochs passed), `speed` is (tokens, seconds).
    ///
    /// # Errors
    /// The disk refuses.
    pub fn step(
        &mut self,
        progress: Progress,
        report: &StepReport,
        input: &StepInput,
        data: (usize, f64),
        speed: (u64, f64),
    ) -> io::Result<()> {
        let tokens_per_s = speed.0 as f64 / speed.1;
        let (valid, epochs) = (data.0.max(1) as f64, data.1);
        let mut line = Map::new();
        let mut put = |key: &str, value: Value| line.insert(key.to_string(), value);
        put("step", json!(progress.step));
        put("tokens", json!(progress.tokens));
        put("epochs", json!(epochs));
        put("loss", json!(report.loss_sums[0] / valid));
        for (depth, sum) in report.loss_sums.iter().enumerate().skip(1) {
            put(&format!("mtp_loss_{depth}"), json!(sum / valid));
        }
        if !report.expert_counts.iter().all(Vec::is_empty) {
            put("balance_loss", json!(report.balance_sum * input.balance_scale));
            put("experts", Value::Object(expert_load(&report.expert_counts)));
        }
        put("lr", json!(input.lr));
        if let Some(norm) = report.grad_norm {
            put("grad_norm", json!(norm.norm));
            put("clip_scale", json!(norm.scale));
        }
        put("step_s", json!(speed.1));
        put("tokens_per_s", json!(tokens_per_s));
        put("mfu", json!(tokens_per_s * self.flops_per_token / self.peak_flops));
        put("memory_peak_bytes", json!(machine::peak_memory()));
        self.metrics.write(progress.step, line)
    }

    /// One evaluation.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn evaluation(&mut self, step: u64, evaluation: &Evaluation) -> io::Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.insert("validation".into(), json!(evaluation));
        self.metrics.write(step, line)
    }

    /// What has become of a save.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&mut self, event: &SaveEvent) -> io::Result<()> {
        let (step, key, value) = match *event {
            SaveEvent::Saved { step, to, bytes, stall_s, write_s } => {
                let value = json!({ "bytes": bytes, "stall_s": stall_s, "write_s": write_s });
                let key = if to == Target::Memory { "saved_in_memory" } else { "saved" };
                (step, key, value)
            }
            SaveEvent::LeftOut { step, saving } => {
                (step, "save_left_out", json!({ "saving": saving }))
            }
        };
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.insert(key.into(), value);
        self.metrics.write(step, line)
    }
}

/// Per layer: least and most loaded expert relative to the mean, and the mean violation |load - mean| / mean.
fn expert_load(counts: &[Vec<u64>]) -> Map<String, Value> {
    let layers = counts.iter().enumerate().filter(|(_, counts)| !counts.is_empty());
    layers
        .map(|(layer, counts)| {
            let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
            let relative = |count: &u64| *count as f64 / mean.max(1e-9);
            let loads: Vec<f64> = counts.iter().map(relative).collect();
            let violation = loads.iter().map(|load| (load - 1.0).abs()).sum::<f64>();
            let load = json!({
                "min": loads.iter().copied().fold(f64::INFINITY, f64::min),
                "max": loads.iter().copied().fold(0.0, f64::max),
                "mean_violation": violation / loads.len() as f64,
            });
            (format!("layer_{layer}"), load)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_relative_to_the_mean() {
        let load = expert_load(&[vec![], vec![0, 4, 2, 2]]);
        assert_eq!(load["layer_1"], json!({"min": 0.0, "max": 2.0, "mean_violation": 0.5}));
        assert!(!load.contains_key("layer_0"));
    }
}
