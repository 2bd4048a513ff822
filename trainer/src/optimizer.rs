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

/// Norm and clipping factor from the squared norms of all parameters, added in parameter order.
///
/// # Errors
/// [`Error::NotFinite`] names the first parameter whose gradient is not finite.
pub fn grad_norm(
    squares: impl Iterator<Item = f64>,
    inventory: &Inventory,
    plan: &OptimizerPlan,
    step: u64,
) -> Result<GradNorm> {
    let mut total = 0f64;
    for (parameter, square) in inventory.parameters.iter().zip(squares) {
        if plan.nan_guard && !square.is_finite() {
            let what = format!("gradient of {}", parameter.parts[0].hf_name);
            return Err(Error::NotFinite { step, what });
        }
        total += square;
    }
    let norm = total.sqrt();
    let limit = plan.clip_norm;
    let scale = if limit > 0.0 && norm > limit { limit / (norm + 1e-6) } else { 1.0 };
    Ok(GradNorm { norm, scale })
}

/// One AdamW step on the elements of a bucket that this rank owns.
pub fn update(
    state: &mut State,
    bucket: usize,
    plan: &OptimizerPlan,
    lr: f64,
    grad_scale: f64,
) -> Result<()> {
    let array = &state.arrays[bucket];
    let gradient = &state.gradients.bucket(bucket).tensor;
    let weights = &array.weights.tensor;
    let copied = weights.kind() != tch::Kind::Float;
    for (range, decays) in &array.runs {
        let of_bucket = |flat: &tch::Tensor| flat.narrow(0, dim(range.start), dim(range.len()));
        let of_owned = |flat: &tch::Tensor| array.of_owned(flat, range);
        let args = ops::AdamW {
            lr,
            beta1: plan.beta1,
            beta2: plan.beta2,
            eps: plan.eps,
            weight_decay: if *decays { plan.weight_decay } else { 0.0 },
            step: state.progress.step + 1,
            grad_scale,
        };
        let copy = copied.then(|| of_bucket(weights));
        let moments = (of_owned(&array.exp_avg), of_owned(&array.exp_avg_sq));
        ops::adamw(
            [&of_owned(&array.master), &moments.0, &moments.1],
            &of_bucket(gradient),
            copy.as_ref(),
            &args,
        )?;
    }
    Ok(())
}
