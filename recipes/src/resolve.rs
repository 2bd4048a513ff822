//! From the recipe as typed to the plan: defaults that follow from other keys, keys that do not apply, paths.

use crate::Defaults;
use crate::error::Problems;
use crate::read::PathText;
use crate::recipe_file::{
    self, DecayKind, OptimizerKind, RecipeFile, SourceKind, TokenizerKind, Validation,
};
use crate::tree::Place;
use lampyris_plan::TrainPlan;
use lampyris_plan::train_plan as plan;
use std::path::{Path, PathBuf};

mod model;

/// Bases of relative paths.
pub(crate) struct Paths<'a> {
    origin: &'a Path,
    recipe_dir: PathBuf,
    defaults: &'a Defaults,
}

impl<'a> Paths<'a> {
    pub(crate) fn new(origin: &'a Path, defaults: &'a Defaults) -> Paths<'a> {
        let folder = origin.parent().unwrap_or(Path::new(""));
        Paths { origin, recipe_dir: defaults.current_dir.join(folder), defaults }
    }

    /// A path in the recipe is relative to the recipe's folder, one in `--set` to the current folder.
    fn base(&self, path: &PathText) -> &Path {
        match path.place {
            Place::Set(_) => &self.defaults.current_dir,
            Place::Recipe(_) | Place::Preset(..) | Place::Default => &self.recipe_dir,
        }
    }

    fn resolve(&self, path: &PathText) -> PathBuf {
        self.base(path).join(&path.text)
    }

    /// A glob: what is special in it is so only as far as it was written, not in the folder put before it.
    fn resolve_glob(&self, path: &PathText) -> String {
        if Path::new(&path.text).is_absolute() {
            return path.text.clone();
        }
        let mut glob = String::new();
        for c in self.base(path).to_string_lossy().chars() {
            match c {
                '*' | '?' | '[' => glob.extend(['[', c, ']']),
                _ => glob.push(c),
            }
        }
        Path::new(&glob).join(&path.text).to_string_lossy().into_owned()
    }
}

/// The plan of `recipe`; its relations are not checked yet.
pub(crate) fn plan(
    recipe: RecipeFile,
    paths: &Paths<'_>,
    problems: &mut Problems,
) -> Option<TrainPlan> {
    let tokenizer = tokenizer(&recipe.tokenizer, paths, problems);
    let model = model::spec(&recipe, tokenizer.as_ref(), problems);
    let data = data(&recipe.data, paths, problems);
    let schedule = schedule(recipe.schedule, problems);
    let file_stem =
        || paths.origin.file_stem().map_or("recipe".into(), |stem| stem.to_string_lossy());
    let output = recipe.output;
    Some(TrainPlan {
        schema: plan::SCHEMA,
        name: recipe.name.unwrap_or_else(|| file_stem().into_owned()),
        seed: recipe.seed,
        compute: recipe.compute,
        device: recipe.device,
        model: model?,
        data: data?,
        tokenizer: tokenizer?,
        batch: batch(&recipe.batch, &recipe.parallel),
        optimizer: optimizer(&recipe.optimizer, problems),
        schedule: schedule?,
        parallel: plan::ParallelPlan {
            data: recipe.parallel.data,
            expert: recipe.parallel.expert,
            zero: recipe.parallel.zero,
            threads_per_rank: recipe.parallel.threads_per_rank,
            bucket_bytes: recipe.parallel.bucket_bytes,
            overlap: recipe.parallel.overlap.unwrap_or(recipe.parallel.expert > 1),
            operation_timeout_s: recipe.parallel.operation_timeout_s,
            peer_timeout_ms: recipe.parallel.peer_timeout_ms,
        },
        checkpoint: plan::CheckpointPlan {
            every_steps: recipe.checkpoint.every_steps,
            every_s: recipe.checkpoint.every_s,
            keep: recipe.checkpoint.keep,
            keep_every_steps: recipe.checkpoint.keep_every_steps,
            keep_best: recipe.checkpoint.keep_best,
            replica_every_steps: recipe.checkpoint.replica_every_steps,
            while_saving: recipe.checkpoint.while_saving,
            at_end: recipe.checkpoint.at_end,
        },
        eval: plan::EvalPlan {
            every_steps: recipe.eval.every_steps,
            tokens: recipe.eval.tokens,
            final_tokens: recipe.eval.final_tokens,
            compare_compressors: recipe.eval.compare_compressors,
        },
        output: plan::OutputPlan {
            runs_dir: output
                .runs_dir
                .map_or_else(|| paths.defaults.runs_dir.clone(), |dir| paths.resolve(&dir)),
            log_every_steps: output.log_every_steps,
            tensorboard: output.tensorboard,
            sample_prompt: output.sample_prompt,
            sample_tokens: output.sample_tokens,
        },
    })
}

fn data(
    data: &recipe_file::Data,
    paths: &Paths<'_>,
    problems: &mut Problems,
) -> Option<plan::DataPlan> {
    if data.path.is_some() && data.sources.is_some() {
        let message = "data.path and data.sources are both given".to_string();
        problems.at_key("data.path", message, "leave one out; path is short for one text source");
        return None;
    }
    let sources = match (&data.path, &data.sources) {
        (Some(path), _) => vec![plan::Source::Text { path: paths.resolve_glob(path) }],
        (None, Some(listed)) => {
            let mut sources = Vec::new();
            for (i, listed) in listed.iter().enumerate() {
                sources.push(source(listed, &format!("data.sources[{i}]"), paths, problems)?);
            }
            sources
        }
        (None, None) => Vec::new(),
    };
    let fraction = data.validation_fraction;
    Some(plan::DataPlan {
        sources,
        obtain: data.obtain.clone(),
        max_bytes: data.max_bytes,
        validation: match data.validation {
            Validation::Hash => plan::ValidationSplit::Hash { fraction },
            Validation::Tail => plan::ValidationSplit::Tail { fraction },
        },
        cache_dir: match &data.cache_dir {
            Some(dir) => paths.resolve(dir),
            None => paths.defaults.cache_dir.clone(),
        },
    })
}

fn source(
    source: &recipe_file::Source,
    key: &str,
    paths: &Paths<'_>,
    problems: &mut Problems,
) -> Option<plan::Source> {
    let (path, field, manifest) = (&source.path, &source.field, &source.manifest);
    let mut only = Only { section: key, problems };
    match source.kind {
        SourceKind::Text => {
            only.not(
                "kind = \"text\"",
                &[("field", field.is_some()), ("manifest", manifest.is_some())],
            );
            let path = only.needs("kind = \"text\"", "path", path.as_ref())?;
            Some(plan::Source::Text { path: paths.resolve_glob(path) })
        }
        SourceKind::Jsonl => {
            only.not("kind = \"jsonl\"", &[("manifest", manifest.is_some())]);
            let path = only.needs("kind = \"jsonl\"", "path", path.as_ref())?;
            let field = field.clone().unwrap_or_else(|| "text".to_string());
            Some(plan::Source::Jsonl { path: paths.resolve_glob(path), field })
        }
        SourceKind::CargoSources => {
            let kind = "kind = \"cargo_sources\"";
            only.not(kind, &[("path", path.is_some()), ("field", field.is_some())]);
            let manifest = only.needs(kind, "manifest", manifest.as_ref())?;
            let manifest = paths.resolve(manifest).to_string_lossy().into_owned();
            Some(plan::Source::CargoSources { manifest })
        }
    }
}

fn tokenizer(
    tokenizer: &recipe_file::Tokenizer,
    paths: &Paths<'_>,
    problems: &mut Problems,
) -> Option<plan::TokenizerPlan> {
    let bpe_keys = [
        ("vocab_size", tokenizer.vocab_size.is_some()),
        ("train_bytes", tokenizer.train_bytes.is_some()),
    ];
    let file_keys = [
        ("path", tokenizer.path.is_some()),
        ("end_of_document", tokenizer.end_of_document.is_some()),
    ];
    let mut only = Only { section: "tokenizer", problems };
    match tokenizer.kind {
        TokenizerKind::Byte | TokenizerKind::Char => {
            let byte = tokenizer.kind == TokenizerKind::Byte;
            let kind = if byte { "kind = \"byte\"" } else { "kind = \"char\"" };
            only.not(kind, &bpe_keys);
            only.not(kind, &file_keys);
            Some(if byte { plan::TokenizerPlan::Byte } else { plan::TokenizerPlan::Char })
        }
        TokenizerKind::Bpe => {
            only.not("kind = \"bpe\"", &file_keys);
            let vocab_size = only.needs("kind = \"bpe\"", "vocab_size", tokenizer.vocab_size)?;
            let train_bytes = tokenizer.train_bytes.unwrap_or(16 << 20);
            Some(plan::TokenizerPlan::Bpe { vocab_size, train_bytes })
        }
        TokenizerKind::File => {
            let kind = "kind = \"file\"";
            only.not(kind, &bpe_keys);
            let path = only.needs(kind, "path", tokenizer.path.as_ref());
            let end = only.needs(kind, "end_of_document", tokenizer.end_of_document.clone());
            let path = paths.resolve(path?);
            Some(plan::TokenizerPlan::File { path, end_of_document: end? })
        }
    }
}

fn batch(batch: &recipe_file::Batch, parallel: &recipe_file::Parallel) -> plan::BatchPlan {
    let canonical = parallel.data > 0 && batch.leaves.is_multiple_of(parallel.data);
    let by_layout = if canonical { plan::Reduction::Canonical } else { plan::Reduction::Fast };
    plan::BatchPlan {
        sequence_length: batch.sequence_length,
        micro_batch: batch.micro_batch,
        global_batch: batch.global_batch,
        ramp_start: batch.ramp_start.unwrap_or(batch.global_batch),
        ramp_tokens: batch.ramp_tokens,
        leaves: batch.leaves,
        reduction: batch.reduction.unwrap_or(by_layout),
    }
}

fn optimizer(optimizer: &recipe_file::Optimizer, problems: &mut Problems) -> plan::OptimizerPlan {
    let momentum = optimizer.momentum;
    let muon = match optimizer.kind {
        OptimizerKind::AdamW => {
            let mut only = Only { section: "optimizer", problems };
            only.not("kind = \"adamw\"", &[("momentum", momentum.is_some())]);
            None
        }
        OptimizerKind::Muon => Some(plan::MuonPlan { momentum: momentum.unwrap_or(0.95) }),
    };
    plan::OptimizerPlan {
        beta1: optimizer.beta1,
        beta2: optimizer.beta2,
        eps: optimizer.eps,
        weight_decay: optimizer.weight_decay,
        clip_norm: optimizer.clip_norm,
        nan_guard: optimizer.nan_guard,
        muon,
    }
}

fn schedule(
    schedule: recipe_file::Schedule,
    problems: &mut Problems,
) -> Option<plan::SchedulePlan> {
    let (final_ratio, decay_fraction) = (schedule.final_ratio, schedule.decay_fraction);
    let given = [
        ("final_ratio", final_ratio.is_some()),
        ("decay_fraction", decay_fraction.is_some()),
        ("milestones", schedule.milestones.is_some()),
        ("segments", schedule.segments.is_some()),
    ];
    let mut only = Only { section: "schedule", problems };
    // Keys that the decay uses; all others of the list above are refused.
    let (decay, used): (&str, &[&str]) = match schedule.decay {
        DecayKind::Constant => ("decay = \"constant\"", &[]),
        DecayKind::Cosine => ("decay = \"cosine\"", &["final_ratio"]),
        DecayKind::Wsd => ("decay = \"wsd\"", &["final_ratio", "decay_fraction"]),
        DecayKind::MultiStep => ("decay = \"multi_step\"", &["milestones"]),
        DecayKind::Segments => ("decay = \"segments\"", &["segments"]),
    };
    let unused: Vec<_> = given.into_iter().filter(|(key, _)| !used.contains(key)).collect();
    only.not(decay, &unused);
    let final_ratio = final_ratio.unwrap_or(0.1);
    let decay = match schedule.decay {
        DecayKind::Constant => plan::Decay::Constant,
        DecayKind::Cosine => plan::Decay::Cosine { final_ratio },
        DecayKind::Wsd => {
            plan::Decay::Wsd { decay_fraction: decay_fraction.unwrap_or(0.2), final_ratio }
        }
        DecayKind::MultiStep => plan::Decay::MultiStep {
            milestones: only
                .needs(decay, "milestones", schedule.milestones)?
                .into_iter()
                .map(|step| plan::Milestone { fraction: step.fraction, ratio: step.ratio })
                .collect(),
        },
        DecayKind::Segments => plan::Decay::Segments {
            segments: only
                .needs(decay, "segments", schedule.segments)?
                .into_iter()
                .map(|s| plan::Segment { until_tokens: s.until_tokens, shape: s.shape, lr: s.lr })
                .collect(),
        },
    };
    Some(plan::SchedulePlan {
        total_tokens: schedule.total_tokens,
        peak_lr: schedule.peak_lr,
        warmup_tokens: schedule.warmup_tokens,
        decay,
        mtp_loss_weight: schedule.mtp_loss_weight,
        mtp_loss_steps: schedule
            .mtp_loss_steps
            .into_iter()
            .map(|step| plan::MtpLossStep { from_tokens: step.from_tokens, weight: step.weight })
            .collect(),
        bias_update_until_tokens: schedule.bias_update_until_tokens,
    })
}

/// Keys that only some kinds of a section have.
struct Only<'a> {
    section: &'a str,
    problems: &'a mut Problems,
}

impl Only<'_> {
    /// Refuses those `keys` that are given, because `kind` (`key = "value"`) has no use for them.
    fn not(&mut self, kind: &str, keys: &[(&str, bool)]) {
        for (key, _) in keys.iter().filter(|(_, given)| *given) {
            let key = format!("{}.{key}", self.section);
            let message = format!("{key} has no meaning with {kind}");
            self.problems.at_key(&key, message, format!("remove it, or change {kind}"));
        }
    }

    /// The value of a key that `kind` cannot do without.
    fn needs<T>(&mut self, kind: &str, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            let message = format!("{}.{key} is missing", self.section);
            self.problems.at_section(self.section, message, format!("{kind} needs it"));
        }
        value
    }
}
