//! Global gradient norm with NaN guard, and AdamW over flat buckets (2.1 of 1711.05101; clipping as in 1211.5063).

use crate::state::State;
use crate::{Error, Result};
use lampyris_plan::Inventory;
use lampyris_plan::train_plan::OptimizerPlan;
use lampyris_torch::{dim, ops};

/// Norm of all gradients and what clipping makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradNorm {
    /// Norm before clipping.
    pub norm: f64,
    /// Factor on every gradient.
    pub scale: f64,
}

/// Squared norms per parameter in fp64, added in parameter order: the same for any layout.
///
/// # Errors
/// [`Error::NotFinite`] names the first parameter whose gradient is not finite.
pub fn grad_norm(state: &State, inventory: &Inventory, plan: &OptimizerPlan) -> Result<GradNorm> {
    let mut total = 0f64;
    for parameter in &inventory.parameters {
        let square = ops::square_sum(state.gradients.of(parameter.id))?;
        if plan.nan_guard && !square.is_finite() {
            return Err(Error::NotFinite {
                step: state.progress.step + 1,
                what: format!("gradient of {}", parameter.parts[0].hf_name),
            });
        }
        total += square;
    }
    let norm = total.sqrt();
    let limit = plan.clip_norm;
    let scale = if limit > 0.0 && norm > limit { limit / (norm + 1e-6) } else { 1.0 };
    Ok(GradNorm { norm, scale })
}

/// One AdamW step on a bucket.
pub fn update(
    state: &mut State,
    bucket: usize,
    plan: &OptimizerPlan,
    lr: f64,
    grad_scale: f64,
) -> Result<()> {
    let array = &state.arrays[bucket];
    for &(first, elements, decays) in &array.runs {
        let part = |flat: &tch::Tensor| flat.narrow(0, dim(first), dim(elements));
        let args = ops::AdamW {
            lr,
            beta1: plan.beta1,
            beta2: plan.beta2,
            eps: plan.eps,
            weight_decay: if decays { plan.weight_decay } else { 0.0 },
            step: state.progress.step + 1,
            grad_scale,
        };
        let copy = array.copy.as_ref().map(part);
        let moments = (part(&array.exp_avg), part(&array.exp_avg_sq));
        let gradient = part(state.gradients.bucket(bucket));
        ops::adamw(
            [&part(&array.master), &moments.0, &moments.1],
            &gradient,
            copy.as_ref(),
            &args,
        )?;
    }
    Ok(())
}
