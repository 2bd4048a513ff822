//! A recipe as typed: every section and key with its type, default and meaning. `docs/recipes.md` shows this page as
//! tables; a test keeps the two equal.

use crate::error::Problems;
use crate::read::{Key, PathText, Read, choice, section};
use crate::tree::Node;
use lampyris_plan::model_spec::Gate;
use lampyris_plan::train_plan::{Compute, Device, Reduction, Shape, WhileSaving};

section! {
    /// A whole recipe.
    struct RecipeFile {
        /// Name of the run's folder and of the job.
        name: String = absent("the file name without `.toml`");
        /// Seed of initial weights, sample order and everything else that is random.
        seed: u64 = default("0");
        /// Numbers in matrix products and activations. Master weights, gradients, optimizer state, norms, router and
        /// loss are fp32 in both.
        compute: Compute = default("\"bf16\"");
        /// Where the rank computes; `cuda` needs a CUDA libtorch.
        device: Device = default("\"cpu\"");
        /// Sizes of the network.
        model: Model = default("{}");
        /// Where text comes from. Without it a recipe can be planned, not trained.
        data: Data = default("{}");
        /// How text becomes tokens.
        tokenizer: Tokenizer = default("{}");
        /// How many sequences make a step.
        batch: Batch = default("{}");
        /// AdamW or Muon.
        optimizer: Optimizer = default("{}");
        /// Length of training and learning rate.
        schedule: Schedule = default("{}");
        /// Wished layout over ranks.
        parallel: Parallel = default("{}");
        /// Periodic checkpoints.
        checkpoint: Checkpoint = default("{}");
        /// Validation.
        eval: Eval = default("{}");
        /// Run directory and reports.
        output: Output = default("{}");
    }

    /// Sizes of the network, in the papers' words.
    struct Model {
        /// Shipped recipe whose `[model]` section lies below this one; keys given here replace its keys.
        preset: String = absent("no preset");
        /// `llama`: GQA, dense. `deepseek_moe`: GQA and experts. `deepseek_v2`, `deepseek_v3`: MLA, dense or with
        /// experts.
        architecture: Architecture = required;
        /// Rows of embedding and head, at least the tokens of the tokenizer.
        vocab_size: usize = absent("the tokens of a byte or bpe tokenizer; else required");
        /// Hidden size d.
        hidden: usize = required;
        /// Decoder layers L, without MTP layers.
        layers: usize = required;
        /// Width f of a dense feed-forward.
        ffn_hidden: usize = absent("required if a layer is dense");
        /// Attention heads h.
        heads: usize = required;
        /// Key and value heads (GQA); divides `heads`.
        kv_heads: usize = absent("`heads`; llama and deepseek_moe only");
        /// Size of a head (GQA).
        head_dim: usize = absent("`hidden / heads`; llama and deepseek_moe only");
        /// Low rank of queries r_q (MLA); 0 projects queries directly.
        q_rank: usize = absent("required for deepseek_v2 and deepseek_v3");
        /// Low rank of keys and values r_kv (MLA).
        kv_rank: usize = absent("required for deepseek_v2 and deepseek_v3");
        /// Part of a head without position d_n (MLA).
        nope_dim: usize = absent("required for deepseek_v2 and deepseek_v3");
        /// Part of a head with RoPE d_r (MLA); even.
        rope_dim: usize = absent("required for deepseek_v2 and deepseek_v3");
        /// Size of a value head d_v (MLA).
        v_dim: usize = absent("required for deepseek_v2 and deepseek_v3");
        /// Base of the rotary embedding.
        rope_theta: f64 = default("10000.0");
        /// YaRN context extension.
        yarn: Yarn = absent("no extension");
        /// Epsilon of block norms and final norm (MLA's low-rank norms always use 1e-6).
        norm_eps: f64 = default("1e-6");
        /// Standard deviation of every initial matrix.
        init_std: f64 = default("0.006");
        /// The head is the embedding matrix.
        tie_embeddings: bool = default("false");
        /// Longest sequence the model is meant for, written to config.json.
        max_positions: usize = absent("`batch.sequence_length`");
        /// Routed experts E.
        experts: usize = absent("no experts: a dense model");
        /// Routed experts per token K.
        experts_per_token: usize = absent("required with experts");
        /// Shared experts, always on.
        shared_experts: usize = absent("required with experts");
        /// Width m of one expert.
        expert_hidden: usize = absent("required with experts");
        /// The first layers that stay dense.
        first_dense_layers: usize = absent("required with experts");
        /// How logits become scores and select experts.
        gate: Gate = absent("`sigmoid_bias` for deepseek_v3; `softmax_group_limited` for deepseek_v2 with several groups; else `softmax_greedy`");
        /// Routing groups G; divides `experts`.
        groups: usize = absent("1");
        /// Groups a token may use M.
        groups_per_token: usize = absent("`groups`");
        /// Factor on the routing weights.
        routed_scale: f64 = absent("1.0");
        /// Speed gamma of the bias update; 0 leaves the biases fixed.
        bias_update_speed: f64 = absent("0.001 for `sigmoid_bias`, else 0");
        /// Weight alpha of the sequence-wise balance loss; 0 turns it off.
        balance_loss: f64 = absent("0.0001");
        /// Multi-token prediction depth D.
        mtp_layers: usize = default("0");
    }

    /// YaRN, with the keys of Hugging Face configurations.
    struct Yarn {
        /// Extension factor s.
        factor: f64 = required;
        /// Context length before the extension.
        original_max_positions: usize = required;
        /// beta of the paper.
        beta_fast: f64 = default("32.0");
        /// alpha of the paper.
        beta_slow: f64 = default("1.0");
        /// Scale of cos and sin relative to `mscale_all_dim`.
        mscale: f64 = absent("not set");
        /// Scale of the softmax.
        mscale_all_dim: f64 = absent("not set");
        /// Factor on cos and sin, in place of the two above.
        attention_factor: f64 = absent("not set");
    }

    /// Text and the validation split.
    struct Data {
        /// One text source: a path or glob; every matching file is a document. Short for a list of one in `sources`.
        path: PathText = absent("`sources`");
        /// Text sources, in this order.
        sources: Vec<Source> = absent("`path`");
        /// Cut the text at this many bytes (whole documents, in source order).
        max_bytes: u64 = absent("all of it");
        /// How validation text is held out: `hash` takes documents whose content hash falls under the share, `tail`
        /// the last bytes of every document.
        validation: Validation = default("\"hash\"");
        /// Share of the text that is held out.
        validation_fraction: f64 = default("0.02");
        /// Folder of tokenized shards, shared by runs.
        cache_dir: PathText = absent("`~/.cache/lampyris/data`");
        /// Where the text comes from, told to a person who trains without `path` or `sources`.
        obtain: String = default("\"\"");
    }

    /// One source of documents.
    struct Source {
        /// `text`: every file is a document. `jsonl`: every line of every file is a JSON object. `cargo_sources`: the
        /// Rust sources of a cargo dependency graph.
        kind: SourceKind = required;
        /// Path or glob (text, jsonl).
        path: PathText = absent("required for text and jsonl");
        /// Name of the text field (jsonl).
        field: String = absent("`text`; jsonl only");
        /// Path of a Cargo.toml (cargo_sources).
        manifest: PathText = absent("required for cargo_sources");
    }

    /// Tokenizer.
    struct Tokenizer {
        /// `byte`: 256 bytes and an end of document. `char`: the characters of the corpus. `bpe`: trained on the
        /// corpus. `file`: a Hugging Face tokenizer.json.
        kind: TokenizerKind = required;
        /// Tokens to learn, end of document included (bpe).
        vocab_size: usize = absent("required for bpe");
        /// Bytes of training text that the BPE trainer reads.
        train_bytes: u64 = absent("16777216; bpe only");
        /// Path of the tokenizer.json (file).
        path: PathText = absent("required for file");
        /// Token that ends a document (file); must be in its vocabulary.
        end_of_document: String = absent("required for file");
    }

    /// Batch sizes and gradient leaves.
    struct Batch {
        /// Tokens of one sequence S.
        sequence_length: usize = required;
        /// Sequences of one micro-batch.
        micro_batch: usize = required;
        /// Sequences of one optimizer step.
        global_batch: usize = required;
        /// Sequences of the first step, if the batch grows.
        ramp_start: usize = absent("`global_batch`");
        /// Tokens over which the batch grows linearly to `global_batch`.
        ramp_tokens: u64 = default("0");
        /// Gradient leaves L of the canonical reduction, a power of two; the micro-batches of a step are a multiple
        /// of it.
        leaves: usize = default("8");
        /// Order of gradient sums: `canonical` gives the same bits on any layout, `fast` is reproducible on one.
        reduction: Reduction = absent("`canonical` where `parallel.data` divides `leaves`, else `fast`");
    }

    /// AdamW or Muon, with global-norm clipping.
    struct Optimizer {
        /// Optimizer of hidden matrices: attention, feed-forwards, experts, MTP projections. Embedding, head, gates and
        /// norms are AdamW's in both. `muon` takes learning rate and weight decay as AdamW does, and scales its updates to
        /// the size of AdamW's (Moonlight's variant).
        kind: OptimizerKind = default("\"adamw\"");
        /// Decay of Muon's momentum.
        momentum: f64 = absent("0.95; muon only");
        /// First-moment decay.
        beta1: f64 = default("0.9");
        /// Second-moment decay.
        beta2: f64 = default("0.95");
        /// Added to the root of the second moment.
        eps: f64 = default("1e-8");
        /// Decoupled weight decay on matrices; norm weights have none.
        weight_decay: f64 = default("0.1");
        /// Largest global gradient norm; 0 = no clipping.
        clip_norm: f64 = default("1.0");
        /// Stop, naming step and tensor, when a loss or gradient is not finite.
        nan_guard: bool = default("true");
    }

    /// Length of training and learning rate, in tokens.
    struct Schedule {
        /// Tokens to train on; 14.8e12 is allowed.
        total_tokens: u64 = required;
        /// Peak learning rate.
        peak_lr: f64 = required;
        /// Tokens of linear warm-up from 0.
        warmup_tokens: u64 = default("0");
        /// Shape after the warm-up: `constant`; `cosine`, half a cosine to the end; `wsd`, constant and then linear;
        /// `multi_step`, factors from `milestones`; `segments`, pieces laid end to end.
        decay: DecayKind = default("\"cosine\"");
        /// Final learning rate over peak (cosine, wsd).
        final_ratio: f64 = absent("0.1; cosine and wsd only");
        /// Share of the tokens in the decay (wsd).
        decay_fraction: f64 = absent("0.2; wsd only");
        /// Steps of the rate (multi_step).
        milestones: Vec<Milestone> = absent("required for multi_step");
        /// Pieces of the curve (segments).
        segments: Vec<Segment> = absent("required for segments");
        /// Weight lambda of the MTP loss.
        mtp_loss_weight: f64 = default("0.3");
        /// Later weights of the MTP loss.
        mtp_loss_steps: Vec<MtpLossStep> = default("[]");
        /// The gate biases stop moving after this many tokens.
        bias_update_until_tokens: u64 = absent("they move to the end");
    }

    /// One step of the learning rate.
    struct Milestone {
        /// Share of `total_tokens` at which it begins.
        fraction: f64 = required;
        /// Factor on the peak from there on.
        ratio: f64 = required;
    }

    /// One piece of the learning-rate curve.
    struct Segment {
        /// Tokens at which it ends.
        until_tokens: u64 = required;
        /// `constant`: at `lr` throughout. `linear`, `cosine`: from the rate before it to `lr`.
        shape: Shape = required;
        /// Learning rate at its end.
        lr: f64 = required;
    }

    /// One change of the MTP loss weight.
    struct MtpLossStep {
        /// Tokens seen before it applies.
        from_tokens: u64 = required;
        /// Weight from there on.
        weight: f64 = required;
    }

    /// Layout over ranks.
    struct Parallel {
        /// Data-parallel ranks.
        data: usize = default("1");
        /// Expert-parallel ranks, carved out of `data`.
        expert: usize = default("1");
        /// ZeRO stage: 1 shards optimizer state and master weights over the data-parallel ranks.
        zero: usize = default("0");
        /// Compute threads of a rank, at most its cores (and 8 under canonical reduction); 0 = all cores shared evenly.
        threads_per_rank: usize = default("0");
        /// Largest gradient bucket in bytes of fp32.
        bucket_bytes: usize = default("33554432");
        /// Compute the forward pass of a micro-batch in turns with the backward pass of the one before, so that rows fly to experts under computation.
        overlap: bool = absent("whether `expert` is above 1");
        /// An exchange between ranks that has not ended after this many seconds fails, naming the ranks that did not enter.
        operation_timeout_s: u64 = default("600");
        /// A host that acknowledges nothing for this many milliseconds has vanished.
        peer_timeout_ms: u64 = default("5000");
    }

    /// Periodic checkpoints.
    struct Checkpoint {
        /// Save every this many steps; 0 = no step period.
        every_steps: u64 = default("0");
        /// Save when this many seconds have passed since the last; 0 = no time period.
        every_s: u64 = default("300");
        /// Keep the last this many.
        keep: usize = default("2");
        /// Keep those whose step is a multiple of this as well; 0 = none for this reason.
        keep_every_steps: u64 = default("0");
        /// Keep the one with the lowest validation loss as well, among those saved at a step that was evaluated.
        keep_best: bool = default("false");
        /// Keep a snapshot in the memory of each node and of the one after it every this many steps, and of every
        /// checkpoint, so that losing a node loses no more steps than that; 0 = none.
        replica_every_steps: u64 = default("0");
        /// A periodic save that is due while another is being written: `by_period` waits if it is due by steps and is
        /// left out if by time; `wait` and `skip` do the same for both.
        while_saving: WhileSaving = default("\"by_period\"");
        /// Save at the end of training.
        at_end: bool = default("true");
    }

    /// Validation during and after training.
    struct Eval {
        /// Evaluate every this many steps; 0 = only at the end.
        every_steps: u64 = default("0");
        /// Tokens of validation text per evaluation during training; 0 = all.
        tokens: u64 = default("0");
        /// Tokens of validation text in the final evaluation; 0 = all.
        final_tokens: u64 = default("0");
        /// Print bits per byte of gzip and xz on the same text beside the final ones.
        compare_compressors: bool = default("false");
    }

    /// Run directory and reports.
    struct Output {
        /// Parent of run directories.
        runs_dir: PathText = absent("`runs` in the current folder");
        /// Write a metrics line every this many steps.
        log_every_steps: u64 = default("1");
        /// Write TensorBoard event files.
        tensorboard: bool = default("true");
        /// Text the model continues at the end; empty = no sample.
        sample_prompt: String = default("\"\"");
        /// Tokens of that sample.
        sample_tokens: usize = default("128");
    }
}

/// What decides attention and gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    Llama,
    DeepseekMoe,
    DeepseekV2,
    DeepseekV3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceKind {
    Text,
    Jsonl,
    CargoSources,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validation {
    Hash,
    Tail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenizerKind {
    Byte,
    Char,
    Bpe,
    File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptimizerKind {
    AdamW,
    Muon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecayKind {
    Constant,
    Cosine,
    Wsd,
    MultiStep,
    Segments,
}

choice! {
    Compute { "fp32" => Compute::Fp32, "bf16" => Compute::Bf16 }
    Device { "cpu" => Device::Cpu, "cuda" => Device::Cuda }
    WhileSaving {
        "by_period" => WhileSaving::ByPeriod,
        "wait" => WhileSaving::Wait,
        "skip" => WhileSaving::Skip,
    }
    Reduction { "canonical" => Reduction::Canonical, "fast" => Reduction::Fast }
    Architecture {
        "llama" => Architecture::Llama,
        "deepseek_moe" => Architecture::DeepseekMoe,
        "deepseek_v2" => Architecture::DeepseekV2,
        "deepseek_v3" => Architecture::DeepseekV3,
    }
    Gate {
        "sigmoid_bias" => Gate::SigmoidBias,
        "softmax_greedy" => Gate::SoftmaxGreedy,
        "softmax_group_limited" => Gate::SoftmaxGroupLimited,
    }
    SourceKind {
        "text" => SourceKind::Text,
        "jsonl" => SourceKind::Jsonl,
        "cargo_sources" => SourceKind::CargoSources,
    }
    Validation { "hash" => Validation::Hash, "tail" => Validation::Tail }
    TokenizerKind {
        "byte" => TokenizerKind::Byte,
        "char" => TokenizerKind::Char,
        "bpe" => TokenizerKind::Bpe,
        "file" => TokenizerKind::File,
    }
    OptimizerKind { "adamw" => OptimizerKind::AdamW, "muon" => OptimizerKind::Muon }
    DecayKind {
        "constant" => DecayKind::Constant,
        "cosine" => DecayKind::Cosine,
        "wsd" => DecayKind::Wsd,
        "multi_step" => DecayKind::MultiStep,
        "segments" => DecayKind::Segments,
    }
    Shape { "constant" => Shape::Constant, "linear" => Shape::Linear, "cosine" => Shape::Cosine }
}

impl RecipeFile {
    /// The recipe in `tree`; `None` after a problem.
    pub(crate) fn from_tree(tree: &Node, problems: &mut Problems) -> Option<RecipeFile> {
        RecipeFile::read(tree, "", problems)
    }
}

/// Every key of a recipe; sections are keys with keys below them.
pub fn keys() -> &'static [Key] {
    RecipeFile::KEYS
}
