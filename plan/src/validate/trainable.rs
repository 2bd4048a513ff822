//! What this release can train. Everything else is planned only, and refused here, before anything starts.

use crate::model_spec::{Attention, Gate};
use crate::train_plan::{Device, TrainPlan};
use thiserror::Error;

/// A plan that `lampyris plan` handles and training does not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not trainable: {key} = {value}: {reason}")]
pub struct Unsupported {
    /// Path of the recipe key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What is missing, and what to do instead.
    pub reason: String,
}

/// The first reason why `plan` cannot be trained by this release. Expects a plan that `validate` accepts.
pub fn check_trainable(plan: &TrainPlan) -> Result<(), Unsupported> {
    model(plan)?;
    let cuda = plan.device == Device::Cuda && plan.parallel.data > 1;
    let one_rank =
        "this release trains on several ranks on the CPU only; use 1, or device = \"cpu\"";
    refuse(cuda, "parallel.data", plan.parallel.data, one_rank)?;
    let obtain = if plan.data.obtain.is_empty() {
        "the recipe names no text; give one, e.g. --set data.path=FILE".to_string()
    } else {
        plan.data.obtain.clone()
    };
    refuse(plan.data.sources.is_empty(), "data.sources", "[]", &obtain)
}

fn model(plan: &TrainPlan) -> Result<(), Unsupported> {
    let model = &plan.model;
    let depth = "this release trains at most one MTP layer; use 0 or 1";
    refuse(model.mtp_layers > 1, "model.mtp_layers", model.mtp_layers, depth)?;
    let gqa = matches!(model.attention, Attention::Gqa { .. });
    let latent = "this release trains MTP layers with multi-head latent attention only; use 0";
    refuse(gqa && model.mtp_layers > 0, "model.mtp_layers", model.mtp_layers, latent)?;
    let Some(moe) = &model.moe else { return Ok(()) };
    let gate = match moe.gate {
        Gate::SigmoidBias => "sigmoid_bias",
        Gate::SoftmaxGreedy => "softmax_greedy",
        Gate::SoftmaxGroupLimited => "softmax_group_limited",
    };
    let only = "this release trains sigmoid_bias gates only (architecture = \"deepseek_v3\")";
    refuse(moe.gate != Gate::SigmoidBias, "model.gate", gate, only)?;
    let mla =
        "experts are trained with multi-head latent attention (architecture = \"deepseek_v3\")";
    refuse(gqa, "model.experts", moe.experts, mla)
}

fn refuse(
    refused: bool,
    key: &'static str,
    value: impl ToString,
    reason: &str,
) -> Result<(), Unsupported> {
    if refused {
        return Err(Unsupported { key, value: value.to_string(), reason: reason.to_string() });
    }
    Ok(())
}
