//! A training run with nothing left to default. `recipes` makes one from a recipe file; the run directory keeps it as
//! `plan.toml`; the rank process is built from it alone.

use crate::model_spec::ModelSpec;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything a run computes and where it puts it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// Version of this schema.
    pub schema: u32,
    /// Name of the recipe, for people.
    pub name: String,
    /// Seed of initial weights, sample order and everything else that is random.
    pub seed: u64,
    /// Numbers in matrix products and activations.
    pub compute: Compute,
    /// Where the rank computes.
    pub device: Device,
    /// Sizes of the network.
    pub model: ModelSpec,
    /// Where text comes from.
    pub data: DataPlan,
    /// How text becomes tokens.
    pub tokenizer: TokenizerPlan,
    /// How many sequences make a step.
    pub batch: BatchPlan,
    /// Optimizer.
    pub optimizer: OptimizerPlan,
    /// Length of training and the learning-rate schedule.
    pub schedule: SchedulePlan,
    /// Layout over ranks.
    pub parallel: ParallelPlan,
    /// Checkpoints.
    pub checkpoint: CheckpointPlan,
    /// Validation.
    pub eval: EvalPlan,
    /// Run directory and reports.
    pub output: OutputPlan,
}

/// Version of [`TrainPlan`]; part of the build id.
pub const SCHEMA: u32 = 1;

/// Element type of activations and of the weights that matrix products read. Master weights, gradients, optimizer
/// state, norms, router and loss are fp32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// 32-bit.
    Fp32,
    /// bfloat16.
    Bf16,
}

impl Compute {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Compute::Fp32 => 4,
            Compute::Bf16 => 2,
        }
    }
}

/// Device of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// CPU cores.
    Cpu,
    /// One CUDA device per rank; needs a CUDA libtorch.
    Cuda,
}

/// Text sources and the validation split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPlan {
    /// Source files: absolute paths or globs, relative ones resolved against the recipe's folder. Empty in a recipe
    /// that is only planned; training then refuses and shows `obtain`.
    pub sources: Vec<Source>,
    /// Where the text comes from, for the person who has to fetch it.
    pub obtain: String,
    /// Cut the total at this many bytes of text (whole documents, in source order); none takes all.
    pub max_bytes: Option<u64>,
    /// Which part is held out.
    pub validation: ValidationSplit,
    /// Folder of tokenized shards (shared by runs, keyed by fingerprint).
    pub cache_dir: PathBuf,
}

/// One source of documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Every matching file is one document of UTF-8 text.
    Text {
        /// Glob pattern or path.
        path: String,
    },
    /// Every line of every matching file is a JSON object; `field` holds the document.
    Jsonl {
        /// Glob pattern or path.
        path: String,
        /// Name of the text field.
        field: String,
    },
    /// The Rust sources of the packages in the cargo dependency graph of `manifest` (found with `cargo metadata`).
    CargoSources {
        /// Path of a Cargo.toml.
        manifest: String,
    },
}

/// How validation text is held out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ValidationSplit {
    /// Documents whose content hash falls under `fraction`.
    Hash {
        /// Share of documents, 0..1.
        fraction: f64,
    },
    /// The last `fraction` of the bytes of each document (for a corpus of one document), cut at a character.
    Tail {
        /// Share of bytes, 0..1.
        fraction: f64,
    },
}

/// Tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerPlan {
    /// Token = byte value; end of document = 256. Vocabulary 257.
    Byte,
    /// Token = index of the character in the sorted set of characters of the corpus; end of document is one more.
    Char,
    /// Byte-level BPE trained on (a sample of) the training text.
    Bpe {
        /// Size of the vocabulary, end of document included.
        vocab_size: usize,
        /// Bytes of training text the trainer reads.
        train_bytes: u64,
    },
    /// A Hugging Face `tokenizer.json`.
    File {
        /// Path of the file.
        path: PathBuf,
        /// The token that ends a document; must be in its vocabulary.
        end_of_document: String,
    },
}

/// Batch sizes and gradient leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchPlan {
    /// Tokens of one sequence, S.
    pub sequence_length: usize,
    /// Sequences of one micro-batch.
    pub micro_batch: usize,
    /// Sequences of one optimizer step.
    pub global_batch: usize,
    /// Linear growth of the global batch: starts at `ramp_start` sequences, reaches `global_batch` after `ramp_tokens`.
    pub ramp_start: usize,
    /// Tokens over which the batch grows; 0 = no ramp.
    pub ramp_tokens: u64,
    /// Gradient leaves L of the canonical reduction, a power of two; micro-batches per step are a multiple of it.
    pub leaves: usize,
    /// Order of sums.
    pub reduction: Reduction,
}

/// Order in which gradients are summed (docs/architecture.md, "Canonical reduction").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Fixed by the recipe: the same bits on any layout.
    Canonical,
    /// Whatever is fastest; reproducible for one layout.
    Fast,
}

/// AdamW or Muon, with global-norm clipping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerPlan {
    /// First-moment decay.
    pub beta1: f64,
    /// Second-moment decay.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay on matrices (norm weights have none).
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 = no clipping.
    pub clip_norm: f64,
    /// Stop with the step and the tensor named if a loss or gradient is not finite.
    pub nan_guard: bool,
    /// Muon for the hidden matrices; none is AdamW for everything. Plans of runs that know no Muon have no such key, and
    /// keep their digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonPlan>,
}

/// Muon on the hidden matrices; all else, and its learning rate and weight decay, are AdamW's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MuonPlan {
    /// Decay of the momentum.
    pub momentum: f64,
}

/// Length of training and learning rate, both in tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulePlan {
    /// Tokens to train on.
    pub total_tokens: u64,
    /// Peak learning rate.
    pub peak_lr: f64,
    /// Tokens of linear warm-up from 0.
    pub warmup_tokens: u64,
    /// What follows the warm-up.
    pub decay: Decay,
    /// Weight lambda of the MTP loss from the first token on.
    pub mtp_loss_weight: f64,
    /// Later weights of the MTP loss, `from_tokens` rising (DeepSeek-V3: 0.3, then 0.1 after 10T tokens).
    pub mtp_loss_steps: Vec<MtpLossStep>,
    /// The gate biases stop moving after this many tokens; none moves them to the end.
    pub bias_update_until_tokens: Option<u64>,
}

/// One change of the MTP loss weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MtpLossStep {
    /// Tokens seen before it applies.
    pub from_tokens: u64,
    /// Weight lambda from there on.
    pub weight: f64,
}

/// Learning-rate shape after the warm-up; fractions are of `total_tokens`. `lr` evaluates it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// Peak to the end.
    Constant,
    /// Half cosine from the peak to `final_ratio * peak` at the end.
    Cosine {
        /// Final learning rate over peak.
        final_ratio: f64,
    },
    /// Warm-up, stable, decay: constant until the last `decay_fraction`, then linear to `final_ratio * peak`.
    Wsd {
        /// Share of tokens in the decay.
        decay_fraction: f64,
        /// Final learning rate over peak.
        final_ratio: f64,
    },
    /// Multi-step (DeepSeek LLM, section 2.3): multiply the peak by `ratio` from `fraction` of the tokens on.
    MultiStep {
        /// (fraction of tokens, factor on the peak), fractions rising.
        milestones: Vec<Milestone>,
    },
    /// Pieces laid end to end (DeepSeek-V3, section 4.2: constant, cosine, constant, constant). The first begins at
    /// the peak when the warm-up ends; the last reaches `total_tokens`.
    Segments {
        /// Pieces, `until_tokens` rising.
        segments: Vec<Segment>,
    },
}

/// One piece of [`Decay::Segments`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Tokens at which it ends.
    pub until_tokens: u64,
    /// How the rate gets to `lr`.
    pub shape: Shape,
    /// Learning rate at its end.
    pub lr: f64,
}

/// How a [`Segment`] moves from the rate before it to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// At its own rate from the start.
    Constant,
    /// On a line.
    Linear,
    /// On half a cosine.
    Cosine,
}

/// One milestone of [`Decay::MultiStep`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Milestone {
    /// Share of `total_tokens` at which it begins.
    pub fraction: f64,
    /// Factor on the peak learning rate from there on.
    pub ratio: f64,
}

/// Layout over ranks. `expert` divides `data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParallelPlan {
    /// Data-parallel ranks.
    pub data: usize,
    /// Expert-parallel ranks, carved out of `data`.
    pub expert: usize,
    /// ZeRO stage of the optimizer state: 0 or 1.
    pub zero: usize,
    /// Compute threads of a rank; 0 = all cores shared evenly.
    pub threads_per_rank: usize,
    /// Largest gradient bucket in bytes of fp32.
    pub bucket_bytes: usize,
    /// Interleave the forward pass of a micro-batch with the backward pass of the one before ([`crate::program::Program::overlapped`]).
    #[serde(default)]
    pub overlap: bool,
    /// An exchange between ranks that has not ended after this many seconds fails, naming the ranks that did not enter.
    #[serde(default = "default_operation_timeout_s")]
    pub operation_timeout_s: u64,
    /// A host that acknowledges nothing for this many milliseconds has vanished.
    #[serde(default = "default_peer_timeout_ms")]
    pub peer_timeout_ms: u64,
}

/// What of the training state each of several ranks that hold the same parameters keeps and updates only a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharding {
    /// Nothing: every rank holds and updates everything.
    Replicated,
    /// Optimizer state and master weights (ZeRO-1, 1910.02054).
    Optimizer,
}

impl ParallelPlan {
    /// What the ranks share out among them.
    pub fn sharding(&self) -> Sharding {
        if self.zero == 0 { Sharding::Replicated } else { Sharding::Optimizer }
    }
}

fn default_operation_timeout_s() -> u64 {
    600
}

fn default_peer_timeout_ms() -> u64 {
    5_000
}

/// Periodic checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointPlan {
    /// Save every this many steps; 0 = no step period.
    pub every_steps: u64,
    /// Save when this many seconds have passed since the last; 0 = no time period.
    pub every_s: u64,
    /// Keep the last this many.
    pub keep: usize,
    /// Keep those whose step is a multiple of this as well; 0 = none for this reason.
    #[serde(default)]
    pub keep_every_steps: u64,
    /// Keep the one with the lowest validation loss as well, among those saved at a step that was evaluated.
    #[serde(default)]
    pub keep_best: bool,
    /// Keep a snapshot in the memory of this node and of the next one every this many steps; 0 = none.
    #[serde(default)]
    pub replica_every_steps: u64,
    /// What becomes of a periodic save that is due while another is being written.
    #[serde(default)]
    pub while_saving: WhileSaving,
    /// Save at the end of training.
    pub at_end: bool,
}

/// What becomes of a periodic save that is due while another is being written. The save of a suspend always waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhileSaving {
    /// One that is due by steps waits, one that is due by time is left out.
    #[default]
    ByPeriod,
    /// It waits, and training with it.
    Wait,
    /// It is left out.
    Skip,
}

/// Validation during and after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalPlan {
    /// Evaluate every this many steps; 0 = only at the end.
    pub every_steps: u64,
    /// Tokens of validation text per evaluation during training; 0 = all.
    pub tokens: u64,
    /// Tokens of validation text in the final evaluation; 0 = all.
    pub final_tokens: u64,
    /// Compare the final bits per byte with gzip and xz on the same text.
    pub compare_compressors: bool,
}

/// Run directory and reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputPlan {
    /// Parent of run directories.
    pub runs_dir: PathBuf,
    /// Write a metrics line every this many steps.
    pub log_every_steps: u64,
    /// Write TensorBoard event files.
    pub tensorboard: bool,
    /// Text the model continues at the end; empty = no sample.
    pub sample_prompt: String,
    /// Tokens of that sample.
    pub sample_tokens: usize,
}

impl TrainPlan {
    /// Micro-batches of one full-size step.
    pub fn micro_batches(&self) -> usize {
        self.batch.global_batch / self.batch.micro_batch
    }

    /// Runs of micro-batches that one rank sums apart: its share of the leaves in canonical mode, one in fast mode.
    pub fn leaves_per_rank(&self) -> usize {
        match self.batch.reduction {
            Reduction::Canonical => self.batch.leaves / self.parallel.data,
            Reduction::Fast => 1,
        }
    }

    /// Tokens of one full-size step.
    pub fn step_tokens(&self) -> u64 {
        (self.batch.global_batch * self.batch.sequence_length) as u64
    }

    /// Weight of the MTP loss at the start, 0 without MTP layers; `lr::mtp_loss_weight` follows its later steps.
    pub fn mtp_weight(&self) -> f64 {
        if self.model.mtp_layers == 0 { 0.0 } else { self.schedule.mtp_loss_weight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Run directories outlive releases: what a newer one adds has a default.
    #[test]
    fn a_plan_without_newer_keys_still_parses() {
        let plan = crate::fixture::plan();
        let mut value = serde_json::to_value(&plan).unwrap();
        let checkpoint = value["checkpoint"].as_object_mut().unwrap();
        for key in ["keep_every_steps", "keep_best", "replica_every_steps", "while_saving"] {
            assert!(checkpoint.remove(key).is_some(), "{key}");
        }
        assert_eq!(serde_json::from_value::<TrainPlan>(value).unwrap(), plan);
    }
}
