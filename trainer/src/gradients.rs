//! Gradient accumulators: fp32 buckets, one set per open subtree of the canonical sum (docs/architecture.md, "Canonical
//! reduction"). A leaf is summed into its accumulator left to right; finished leaves are folded pairwise.

use crate::Result;
use crate::state::{Allocate, view};
use lampyris_plan::buckets::Buckets;
use lampyris_plan::inventory::Inventory;
use lampyris_plan::program::{accumulator_of, folds_after};
use lampyris_torch::WeightGradient;
use tch::{Kind, Tensor};

/// The accumulators of all buckets.
#[derive(Debug)]
pub struct Gradients {
    /// `flat[level][bucket]`.
    flat: Vec<Vec<Tensor>>,
    /// `views[level][parameter]`, in the parameter's shape.
    views: Vec<Vec<Tensor>>,
    /// Level that contributions go to.
    open: usize,
}

impl Gradients {
    /// `levels` accumulators per bucket, zeroed.
    pub fn new(
        inventory: &Inventory,
        buckets: &Buckets,
        levels: usize,
        allocate: Allocate<'_>,
    ) -> Gradients {
        let flat: Vec<Vec<Tensor>> = (0..levels)
            .map(|_| buckets.buckets.iter().map(|b| allocate(b.elements, Kind::Float)).collect())
            .collect();
        let views = flat.iter().map(|level| {
            let of = |p: &lampyris_plan::Parameter| {
                let (bucket, placement) = buckets.place(p.id);
                view(&level[bucket], placement.offset, p)
            };
            inventory.parameters.iter().map(of).collect()
        });
        Gradients { views: views.collect(), flat, open: 0 }
    }

    /// Clears the accumulator of `leaf` and opens it.
    pub fn begin_leaf(&mut self, leaf: usize) {
        self.open = accumulator_of(leaf);
        for bucket in &mut self.flat[self.open] {
            let _zeroed = bucket.zero_();
        }
    }

    /// Adds one contribution to the open leaf.
    pub fn add(&mut self, gradient: WeightGradient) -> Result<()> {
        let views = &mut self.views[self.open];
        match gradient {
            WeightGradient::Matmul { parameter, x, dy } => {
                let view = &mut views[parameter];
                if x.kind() == Kind::Float {
                    let _sum = view.f_addmm_(&dy.tr(), &x)?;
                } else {
                    let _sum = view.f_add_(&dy.tr().f_matmul(&x)?)?;
                }
            }
            WeightGradient::Direct { parameter, gradient } => {
                let _sum = views[parameter].f_add_(&gradient)?;
            }
            WeightGradient::Embedding { parameter, ids, dy } => {
                let _sum = views[parameter].f_index_add_(0, &ids, &dy.to_kind(Kind::Float))?;
            }
        }
        Ok(())
    }

    /// After the last contribution of `leaf` to `bucket`: adds the subtrees that it completes.
    pub fn fold(&mut self, bucket: usize, leaf: usize) -> Result<()> {
        let mut top = accumulator_of(leaf);
        for _ in 0..folds_after(leaf) {
            let (below, above) = self.flat.split_at_mut(top);
            let _sum = below[top - 1][bucket].f_add_(&above[0][bucket])?;
            top -= 1;
        }
        Ok(())
    }

    /// The finished gradient of a parameter, in its shape.
    pub fn of(&self, parameter: usize) -> &Tensor {
        &self.views[0][parameter]
    }

    /// The finished gradient of a bucket.
    pub fn bucket(&self, bucket: usize) -> &Tensor {
        &self.flat[0][bucket]
    }
}
