//! Global gradient norm with NaN guard (clipping as in 1211.5063), and the update of a bucket: AdamW over flat elements
//! (2.1 of 1711.05101), or Muon over its matrices ([`crate::muon`]).

use crate::muon::Muon;
use crate::state::{State, view};
use crate::{Error, Result};
use lampyris_plan::Inventory;
use lampyris_plan::inventory::Optimizer;
use lampyris_plan::train_plan::{MuonPlan, OptimizerPlan};
use lampyris_torch::{dim, ops};
use tch::Tensor;

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

/// How a step updates.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Settings.
    pub plan: &'a OptimizerPlan,
    /// Learning rate.
    pub lr: f64,
    /// Factor on the gradient (clipping).
    pub grad_scale: f64,
}

impl Update<'_> {
    /// Updates what this rank owns of a bucket.
    pub fn bucket(&self, state: &State, inventory: &Inventory, bucket: usize) -> Result<()> {
        match (state.buckets.buckets[bucket].optimizer, &self.plan.muon) {
            (Optimizer::AdamW, _) => self.adamw(state, bucket),
            (Optimizer::Muon, Some(muon)) => self.muon(state, inventory, bucket, muon),
            (Optimizer::Muon, None) => {
                unreachable!("an inventory is of the plan that it is updated by")
            }
        }
    }

    /// One AdamW step on the owned elements.
    fn adamw(&self, state: &State, bucket: usize) -> Result<()> {
        let array = &state.arrays[bucket];
        let exp_avg_sq = array.exp_avg_sq.as_ref().expect("AdamW has second moments");
        let gradient = &state.gradients.bucket(bucket).tensor;
        let weights = &array.weights.tensor;
        for (range, decays) in &array.runs {
            let of_bucket = |flat: &Tensor| flat.narrow(0, dim(range.start), dim(range.len()));
            let of_owned = |flat: &Tensor| array.of_owned(flat, range);
            let args = ops::AdamW {
                lr: self.lr,
                beta1: self.plan.beta1,
                beta2: self.plan.beta2,
                eps: self.plan.eps,
                weight_decay: if *decays { self.plan.weight_decay } else { 0.0 },
                step: state.progress.step + 1,
                grad_scale: self.grad_scale,
            };
            let copy = array.has_own_master().then(|| of_bucket(weights));
            let moments = (of_owned(&array.exp_avg), of_owned(exp_avg_sq));
            ops::adamw(
                [&of_owned(&array.master), &moments.0, &moments.1],
                &of_bucket(gradient),
                copy.as_ref(),
                &args,
            )?;
        }
        Ok(())
    }

    /// One Muon step on each owned matrix.
    fn muon(
        &self,
        state: &State,
        inventory: &Inventory,
        bucket: usize,
        plan: &MuonPlan,
    ) -> Result<()> {
        let array = &state.arrays[bucket];
        let gradient = &state.gradients.bucket(bucket).tensor;
        let owned = &array.owned;
        let placements = &state.buckets.buckets[bucket].placements;
        for placement in placements.iter().filter(|p| owned.contains(&p.offset)) {
            let parameter = &inventory.parameters[placement.parameter];
            let args = Muon {
                lr: self.lr,
                momentum: plan.momentum,
                weight_decay: if parameter.decay { self.plan.weight_decay } else { 0.0 },
                grad_scale: self.grad_scale,
            };
            let of_owned = |flat: &Tensor| view(flat, placement.offset - owned.start, parameter);
            let mut master = of_owned(&array.master);
            args.step(
                [&mut master, &mut of_owned(&array.exp_avg)],
                &view(gradient, placement.offset, parameter),
                &parameter.parts,
            )?;
            if array.has_own_master() {
                view(&array.weights.tensor, placement.offset, parameter).f_copy_(&master)?;
            }
        }
        Ok(())
    }
}
