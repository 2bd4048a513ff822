//! `parity`: runs golden inputs of a Hugging Face folder through the training path and compares logits, loss and every
//! gradient with what `transformers` computed.

use crate::build::Rank;
use crate::executor::StepInput;
use crate::trace::Clock;
use anyhow::{Context, Result, bail, ensure};
use lampyris_checkpoint::hf::{Folder, Golden, Import};
use lampyris_model::{MicroBatch, head};
use lampyris_plan::inventory::{Kind, Parameter};
use lampyris_plan::train_plan::{Compute, OptimizerPlan};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Device;

/// What to compare and how strictly.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Hugging Face folder: config.json and safetensors.
    pub folder: PathBuf,
    /// Golden file: input_ids, logits, loss, grad.*.
    pub golden: PathBuf,
    /// Largest allowed max|a-b| / max|b| per tensor.
    #[arg(long, default_value_t = 1e-4)]
    pub tolerance: f64,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Compute type: fp32 or bf16.
    #[arg(long, default_value = "fp32")]
    pub compute: String,
    /// Device: cpu or cuda.
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

/// Result of a comparison.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Everything is within the tolerance.
    pub passed: bool,
    /// The tolerance.
    pub tolerance: f64,
    /// Tensors compared: logits, loss and gradients.
    pub compared: usize,
    /// Worst tensor per kind.
    pub worst: BTreeMap<String, Worst>,
    /// Golden tensors for which there is no gradient here; a parity that skips a tensor fails.
    pub missing: Vec<String>,
    /// What the person should know about the folder.
    pub notes: Vec<String>,
}

/// The tensor of a kind that differs most.
#[derive(Debug, Clone, Serialize)]
pub struct Worst {
    /// Tensors of this kind.
    pub count: usize,
    /// Name of the worst.
    pub tensor: String,
    /// Its max|a-b| / max|b|, or max|a| / 1e-6 * tolerance where b is zero.
    pub error: f64,
}

/// Compares; the report says whether it passed.
pub fn run(options: &Options) -> Result<Report> {
    let compute = match options.compute.as_str() {
        "fp32" => Compute::Fp32,
        "bf16" => Compute::Bf16,
        other => bail!("--compute is fp32 or bf16, not {other}"),
    };
    let device = match options.device.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => Device::Cuda(0),
        other => bail!("--device is cpu or cuda, not {other}"),
    };
    ensure!(options.tolerance > 0.0, "--tolerance must be positive");
    let import = Import::new(Folder::open(&options.folder)?)?;
    let golden = Golden::open(&options.golden)?;
    compare(&import, &golden, options.tolerance, compute, device)
}

fn compare(
    import: &Import,
    golden: &Golden,
    tolerance: f64,
    compute: Compute,
    device: Device,
) -> Result<Report> {
    let mut spec = import.spec.clone();
    if let Some(moe) = &mut spec.moe {
        moe.balance_loss = 0.0; // the golden loss is the cross entropy alone
    }
    let [sequences, length] = golden.shape;
    let limit = i64::try_from(spec.vocab_size)?;
    ensure!(
        golden.input_ids.iter().all(|id| (0..limit).contains(id)),
        "golden input_ids have tokens outside the vocabulary of {limit}"
    );
    let mut rank = Rank::alone(&spec, length, compute, device)?;
    load(&mut rank, import)?;
    let depths = rank.network.graph.depths();
    let batch = golden_batch(golden, depths, device);
    let hidden = rank.reader()?.hidden(&batch)?;
    let weight = rank.state.weights.get(rank.network.head()).0;
    let logits = tch::no_grad(|| head::logits(&hidden, weight)).to_device(Device::Cpu);
    let logits = Vec::<f32>::try_from(logits.flatten(0, -1))?;

    let valid = (sequences * (length - 1)) as f64;
    let mut loss_scales = vec![0.0; depths];
    loss_scales[0] = 1.0 / valid;
    let input = StepInput {
        batches: vec![batch],
        loss_scales,
        balance_scale: 0.0,
        lr: 0.0,
        bias_speed: 0.0,
    };
    let program = rank.share.program().gradients();
    let optimizer = no_update();
    let report = rank.executor(&optimizer, &mut Clock::default()).run(&program, &input)?;

    let mut comparison = Comparison::new(tolerance);
    comparison.add("logits", "logits", &logits, &golden.logits()?.1);
    comparison.add("loss", "loss", &[(report.loss_sums[0] / valid) as f32], &[golden.loss]);
    comparison.gradients(&rank, golden)?;
    if import.mtp_left_out {
        comparison.notes.push(
            "config.json declares an MTP layer but the folder holds none of it: left out".into(),
        );
    }
    if !import.unexpected.is_empty() {
        comparison.notes.push(format!("not used: {}", import.unexpected.join(", ")));
    }
    Ok(comparison.finish())
}

/// Fills a rank's weights and biases from a folder.
pub fn load(rank: &mut Rank, import: &Import) -> Result<()> {
    for parameter in &rank.network.inventory.parameters {
        let mut values = vec![0f32; parameter.elements()];
        import.read_parameter(parameter, &mut values).with_context(|| parameter.name.clone())?;
        rank.state.set_weights(parameter, &values);
    }
    for buffer in &rank.network.inventory.buffers {
        import.read_buffer(buffer, &mut rank.state.biases[buffer.layer])?;
    }
    Ok(())
}

/// Every position of the golden ids is an input; the last has nothing to predict.
fn golden_batch(golden: &Golden, depths: usize, device: Device) -> MicroBatch {
    let [_, length] = golden.shape;
    let windows: Vec<i64> = golden
        .input_ids
        .chunks_exact(length)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, depths)))
        .collect();
    let valid = |depth: usize, i: usize| i % length + depth + 1 < length;
    MicroBatch::new(&windows, length, depths, valid, device)
}

fn no_update() -> OptimizerPlan {
    OptimizerPlan {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        clip_norm: 0.0,
        nan_guard: false,
        muon: None,
    }
}

struct Comparison {
    tolerance: f64,
    compared: usize,
    passed: bool,
    worst: BTreeMap<String, Worst>,
    missing: Vec<String>,
    notes: Vec<String>,
}

impl Comparison {
    fn new(tolerance: f64) -> Comparison {
        Comparison {
            tolerance,
            compared: 0,
            passed: true,
            worst: BTreeMap::new(),
            missing: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn gradients(&mut self, rank: &Rank, golden: &Golden) -> Result<()> {
        let mut left: Vec<&str> = golden.gradients.iter().map(String::as_str).collect();
        for parameter in &rank.network.inventory.parameters {
            let gradient = rank
                .state
                .gradients
                .of(parameter.id)
                .expect("one rank holds all")
                .to_device(Device::Cpu);
            let gradient = Vec::<f32>::try_from(gradient.flatten(0, -1))?;
            let row = parameter.row_elements();
            for part in &parameter.parts {
                let Some(at) = left.iter().position(|name| *name == part.hf_name) else { continue };
                left.swap_remove(at);
                let ours = &gradient[part.first_row * row..(part.first_row + part.rows) * row];
                self.add(kind(parameter), &part.hf_name, ours, &golden.gradient(&part.hf_name)?.1);
            }
        }
        self.missing = left.into_iter().map(str::to_string).collect();
        Ok(())
    }

    fn add(&mut self, kind: &str, name: &str, ours: &[f32], golden: &[f32]) {
        let error = error(ours, golden, self.tolerance);
        self.compared += 1;
        // A NaN is never within a tolerance.
        self.passed &= error <= self.tolerance;
        let fresh = Worst { count: 0, tensor: name.to_string(), error };
        let worst = self.worst.entry(kind.to_string()).or_insert_with(|| fresh.clone());
        worst.count += 1;
        if error.is_nan() || error > worst.error {
            (worst.tensor, worst.error) = (fresh.tensor, fresh.error);
        }
    }

    fn finish(self) -> Report {
        Report {
            passed: self.passed && self.missing.is_empty(),
            tolerance: self.tolerance,
            compared: self.compared,
            worst: self.worst,
            missing: self.missing,
            notes: self.notes,
        }
    }
}

/// max|a-b| / max|b|; where b is all zero, max|a| in units in which 1e-6 is the tolerance.
fn error(ours: &[f32], golden: &[f32], tolerance: f64) -> f64 {
    if ours.len() != golden.len() {
        return f64::INFINITY;
    }
    // f64::max would drop a NaN: a NaN here must stay the maximum.
    let max = |a: f64, b: f64| if b.is_nan() || b > a { b } else { a };
    let pairs = ours.iter().zip(golden).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, max);
    let scale = golden.iter().map(|&b| f64::from(b).abs()).fold(0.0, max);
    if scale == 0.0 { difference / 1e-6 * tolerance } else { difference / scale }
}

fn kind(parameter: &Parameter) -> &'static str {
    match parameter.kind {
        Kind::Embedding => "embedding",
        Kind::Head => "head",
        Kind::Norm => "norm",
        Kind::Attention => "attention",
        Kind::FeedForward => "feed_forward",
        Kind::Router => "router",
        Kind::Expert { .. } => "expert",
        Kind::MtpProjection => "mtp_projection",
    }
}

impl Report {
    /// The report for people.
    pub fn text(&self, folder: &Path) -> String {
        let verdict = if self.passed { "passed" } else { "FAILED" };
        let mut out = format!(
            "parity {verdict}: {}, {} tensors compared, tolerance {:.0e}\n",
            folder.display(),
            self.compared,
            self.tolerance
        );
        for (kind, worst) in &self.worst {
            let mark = if worst.error <= self.tolerance { ' ' } else { '!' };
            out += &format!(
                "{mark} {kind:<14} {:>4}  worst {:.2e}  {}\n",
                worst.count, worst.error, worst.tensor
            );
        }
        for name in &self.missing {
            out += &format!("! golden gradient without a counterpart: {name}\n");
        }
        for note in &self.notes {
            out += &format!("  note: {note}\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_and_nan_never_passes() {
        assert_eq!(error(&[1.0, 2.0], &[1.0, 4.0], 1e-4), 0.5);
        assert!(error(&[1.0, f32::NAN], &[1.0, 2.0], 1e-4).is_nan());
        assert!((error(&[5e-7], &[0.0], 1e-4) - 5e-5).abs() < 1e-9);
        assert_eq!(error(&[1.0], &[1.0, 2.0], 1e-4), f64::INFINITY);
        let mut comparison = Comparison::new(1e-4);
        comparison.add("k", "fine", &[1.0], &[1.0]);
        comparison.add("k", "broken", &[f32::NAN], &[1.0]);
        comparison.add("k", "fine too", &[1.0], &[1.0]);
        let report = comparison.finish();
        assert!(!report.passed);
        assert_eq!(report.worst["k"].tensor, "broken");
        assert_eq!(report.compared, 3);
    }
}
