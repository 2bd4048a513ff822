//! `lampyris import FOLDER --recipe RECIPE`: a new run whose step 0 holds the weights of a Hugging Face folder; `resume`
//! trains it, `generate` and `export` take it as it is.
//!
//! Sizes come from the folder, all else (text, batch, schedule, what a configuration cannot say) from the recipe. The
//! checkpoint is an ordinary one: moments are zero and nothing is consumed, as before the first step.

use super::train::RunDirArgs;
use super::{Environment, RecipeArgs};
use crate::error::CliError;
use crate::imported::Imported;
use crate::prepare::prepare;
use crate::run_dir::RunDir;
use crate::screen;
use jiff::Zoned;
use lampyris_checkpoint::hf::{Folder, Import};
use lampyris_checkpoint::tensors::{kept, split, training_tensors};
use lampyris_checkpoint::{CheckpointId, Digests, Kind, Meta, Piece, Run, Transfer};
use lampyris_plan::validate::{check_trainable, validate};
use lampyris_plan::{Inventory, Rank, Step, TrainPlan, digest};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Hugging Face folder: config.json and safetensors
    folder: PathBuf,
    /// Recipe of the training to come
    #[arg(long)]
    recipe: PathBuf,
    /// Override a value of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    #[command(flatten)]
    run_dir: RunDirArgs,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let recipe = RecipeArgs { recipe: args.recipe.clone(), sets: args.sets.clone() };
    let mut plan = recipe.load(environment)?;
    let named = args.run_dir.named()?;
    let import = Import::new(Folder::open(&args.folder)?)?;
    let imported = Imported { recipe_model: plan.model.clone() };
    take_sizes(&mut plan, &import);
    validate(&plan).map_err(|broken| CliError::Mismatch {
        folder: args.folder.clone(),
        problems: broken.iter().map(ToString::to_string).collect(),
    })?;
    check_trainable(&plan)?;
    let dataset = prepare(&plan)?;
    let weights = Weights::read(&plan, &import)?;
    let mut text = recipe.text_with_sets()?;
    text.push_str(&format!("\n# [model] of {}", args.folder.join("config.json").display()));
    let run = RunDir::create(&plan, named, &Zoned::now(), &text)?;
    let recorded = run.record_dataset(&dataset).and_then(|()| run.record_imported(&imported));
    let path =
        run.or_remove(recorded.and_then(|()| commit(&run.checkpoints()?, &plan, &weights)))?;
    if import.mtp_left_out {
        screen::note("the folder declares an MTP layer and holds none of it: left out");
    }
    if !import.unexpected.is_empty() {
        screen::note(format_args!("not used: {}", import.unexpected.join(", ")));
    }
    screen::note(format_args!("weights in {}", path.display()));
    screen::say(format_args!("`lampyris resume {}` trains it", screen::word(run.path())));
    Ok(0)
}

/// The folder's sizes; how experts are balanced stays the recipe's.
fn take_sizes(plan: &mut TrainPlan, import: &Import) {
    let mut model = import.spec.clone();
    if let (Some(moe), Some(recipe)) = (&mut model.moe, &plan.model.moe) {
        moe.bias_update_speed = recipe.bias_update_speed;
        moe.balance_loss = recipe.balance_loss;
    }
    plan.model = model;
}

/// The values of a model, read before anything is written, so that a bad folder leaves no run behind.
struct Weights {
    /// The folder's parameters, with what the recipe updates them by.
    inventory: Inventory,
    /// Values of each parameter.
    parameters: Vec<Vec<f32>>,
    /// Values of each buffer.
    buffers: Vec<Vec<f32>>,
}

impl Weights {
    fn read(plan: &TrainPlan, import: &Import) -> Result<Weights, CliError> {
        let inventory = Inventory::of(plan);
        let mut parameters = Vec::with_capacity(inventory.parameters.len());
        for parameter in &inventory.parameters {
            let mut values = vec![0.0; parameter.elements()];
            import.read_parameter(parameter, &mut values)?;
            parameters.push(values);
        }
        let mut buffers = Vec::with_capacity(inventory.buffers.len());
        for buffer in &inventory.buffers {
            let mut values = vec![0.0; buffer.shape.iter().product()];
            import.read_buffer(buffer, &mut values)?;
            buffers.push(values);
        }
        Ok(Weights { inventory, parameters, buffers })
    }
}

/// Commits step 0 of attempt 1.
fn commit(run: &Run, plan: &TrainPlan, weights: &Weights) -> Result<PathBuf, CliError> {
    let attempt = run.claim_next()?;
    run.record(attempt, None)?;
    let id = CheckpointId { step: Step(0), attempt };
    let Weights { inventory, parameters, buffers } = weights;
    // One stretch of zeros stands for all moments.
    let zeros = vec![0.0; parameters.iter().map(Vec::len).max().unwrap_or(0)];
    let mut pieces = Vec::new();
    for (parameter, values) in inventory.parameters.iter().zip(parameters) {
        for part in split(parameter, 0..values.len()) {
            let tensor = part.tensor;
            let start = part.start;
            let zeros = &zeros[..part.within.len()];
            let values = &values[part.within];
            pieces.extend(kept(parameter).iter().map(|&kind| {
                let data = if kind == Kind::Weight { values } else { zeros };
                Piece { tensor, kind, start, data }
            }));
        }
    }
    for (buffer, data) in inventory.buffers.iter().zip(buffers) {
        pieces.push(Piece { tensor: &buffer.hf_name, kind: Kind::GateBias, start: 0, data });
    }
    let report = run.write_shard(id, Rank(0), &pieces, Transfer::default())?;
    let digests = digest::Digests::of(plan);
    let meta = Meta {
        id,
        digests: Digests { numerics: digests.numerics, plan: digests.plan },
        fingerprint: Default::default(),
        validation_loss: None,
        // The trainer's progress, before anything is consumed.
        state: ["step", "samples", "tokens"].map(|key| (key.to_string(), 0.into())).into(),
        tensors: training_tensors(inventory),
    };
    Ok(run.commit(&meta, &[report])?)
}
