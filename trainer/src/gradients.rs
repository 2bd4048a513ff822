//! Gradient accumulators: fp32 buckets, one set per open subtree of the canonical sum (docs/architecture.md, "Canonical
//! reduction"). A leaf is summed into its accumulator left to right; finished leaves are folded pairwise. Expert buckets
//! have such a set for every rank whose tokens reach the experts, since a leaf belongs to one rank's tokens.

use crate::Result;
use crate::flat::{Flat, Memory};
use crate::planted::{Bug, planted};
use crate::state::view;
use lampyris_model::parameter_and_source;
use lampyris_plan::Share;
use lampyris_plan::buckets::Bucket;
use lampyris_plan::inventory::ParameterId;
use lampyris_plan::program::{accumulator_of, folds_after};
use lampyris_torch::WeightGradient;
use tch::{Kind, Tensor};

/// A parameter's place in an accumulator.
#[derive(Debug)]
struct View {
    /// In the parameter's shape.
    tensor: Tensor,
    /// The leaf that is being summed here; none if all that it holds is of leaves that are folded. The first contribution of
    /// the next leaf then takes its place: clearing whole buckets instead takes 2 % of a step where their memory was last
    /// read by another core.
    leaf: Option<usize>,
}

/// The accumulators of all buckets.
#[derive(Debug)]
pub struct Gradients {
    /// By bucket: where its finished gradient lies.
    finished: Vec<Flat>,
    /// `flat[source][level][bucket]`; level 0 of source 0 is `finished`. Dense buckets have one source.
    flat: Vec<Vec<Vec<Option<Tensor>>>>,
    /// `views[source][level][parameter]`, of the parameters that this rank holds.
    views: Vec<Vec<Vec<Option<View>>>>,
    /// By bucket: its parameters.
    members: Vec<Vec<ParameterId>>,
}

impl Gradients {
    /// The accumulators of a rank's share, zeroed. Collective over the replicas.
    ///
    /// # Errors
    /// No memory, or a local rank does not do the same.
    pub fn new(share: &Share, memory: Memory<'_>) -> Result<Gradients> {
        let (inventory, buckets) = (share.inventory(), share.buckets());
        let finished =
            buckets.buckets.iter().map(|b| memory.shared(b.group, b.elements, Kind::Float));
        let finished = finished.collect::<Result<Vec<Flat>>>()?;
        let uses = share.uses();
        let most = uses.iter().map(|used| used.sources).max().unwrap_or(1);
        let array = |source: usize, level: usize, bucket: usize| match (source, level) {
            (0, 0) => Some(finished[bucket].tensor.shallow_clone()),
            _ if source < uses[bucket].sources => {
                Some(memory.private(buckets.buckets[bucket].elements, Kind::Float))
            }
            _ => None,
        };
        let all = 0..buckets.buckets.len();
        let flat: Vec<Vec<Vec<Option<Tensor>>>> = (0..most)
            .map(|source| {
                let level =
                    |level| all.clone().map(|bucket| array(source, level, bucket)).collect();
                (0..share.accumulators()).map(level).collect()
            })
            .collect();
        let of_level = |level: &Vec<Option<Tensor>>| -> Vec<Option<View>> {
            let of = |p: &lampyris_plan::Parameter| {
                let (bucket, placement) = buckets.find(p.id)?;
                let tensor = view(level[bucket].as_ref()?, placement.offset, p);
                Some(View { tensor, leaf: None })
            };
            inventory.parameters.iter().map(of).collect()
        };
        let views = flat.iter().map(|levels| levels.iter().map(of_level).collect()).collect();
        let members = |b: &Bucket| b.placements.iter().map(|p| p.parameter).collect();
        let members = buckets.buckets.iter().map(members).collect();
        Ok(Gradients { finished, flat, views, members })
    }

    /// Adds one contribution to `leaf`. Its parameter number says from which source it comes
    /// ([`lampyris_model::sourced`]).
    ///
    /// # Errors
    /// libtorch refuses.
    ///
    /// # Panics
    /// If the accumulator still holds another leaf; a program that was checked has no such order.
    pub fn add(&mut self, gradient: &WeightGradient, leaf: usize) -> lampyris_model::Result<()> {
        let leaf = if planted(Bug::OffByOneLeaf) && leaf == 1 { 0 } else { leaf };
        let (WeightGradient::Matmul { parameter, .. }
        | WeightGradient::Direct { parameter, .. }
        | WeightGradient::Embedding { parameter, .. }) = gradient;
        let (parameter, source) = parameter_and_source(*parameter, self.views[0][0].len());
        // Where accumulators are not kept apart, all sources share the first.
        let source = source.min(self.views.len() - 1);
        let view = self.views[source][accumulator_of(leaf)][parameter].as_mut();
        view.expect("a rank computes gradients of parameters that it holds").add(gradient, leaf)
    }

    /// After the last contribution of `leaf` to `bucket`: adds the subtrees that it completes.
    pub fn fold(&mut self, bucket: usize, leaf: usize) -> Result<()> {
        for source in &mut self.views {
            let level = &mut source[accumulator_of(leaf)];
            for &parameter in &self.members[bucket] {
                if let Some(view) = &mut level[parameter] {
                    view.close()?;
                }
            }
        }
        for source in &mut self.flat {
            let mut top = accumulator_of(leaf);
            for _ in 0..folds_after(leaf) {
                let (below, above) = source.split_at_mut(top);
                if let (Some(sum), Some(part)) = (&mut below[top - 1][bucket], &above[0][bucket]) {
                    let _sum = sum.f_add_(part)?;
                }
                top -= 1;
            }
        }
        Ok(())
    }

    /// After the last leaf: adds the sources of a bucket as one balanced tree. Their ranks follow each other, so this is
    /// the next part of the canonical sum.
    pub fn merge_sources(&mut self, bucket: usize) -> Result<()> {
        let sources = self.flat.iter().filter(|source| source[0][bucket].is_some()).count();
        let sources = if planted(Bug::DropSource) { 1 } else { sources };
        let mut distance = 1;
        while distance < sources {
            for left in (0..sources - distance).step_by(2 * distance) {
                let (below, above) = self.flat.split_at_mut(left + distance);
                if let (Some(sum), Some(part)) = (&mut below[left][0][bucket], &above[0][0][bucket])
                {
                    let _sum = sum.f_add_(part)?;
                }
            }
            distance *= 2;
        }
        Ok(())
    }

    /// The finished gradient of a parameter, in its shape; none if this rank does not hold it.
    pub fn of(&self, parameter: usize) -> Option<&Tensor> {
        self.views[0][0][parameter].as_ref().map(|view| &view.tensor)
    }

    /// The finished gradient of a bucket, and what a reducer takes.
    pub fn bucket(&self, bucket: usize) -> &Flat {
        &self.finished[bucket]
    }
}

impl View {
    fn add(&mut self, gradient: &WeightGradient, leaf: usize) -> lampyris_model::Result<()> {
        let first = self.leaf.is_none();
        let open = *self.leaf.get_or_insert(leaf);
        assert_eq!(open, leaf, "leaf {open} is not folded");
        match gradient {
            WeightGradient::Matmul { x, dy, .. } if x.kind() != Kind::Float => {
                self.add_or_set(&dy.tr().f_matmul(x)?, first)?;
            }
            WeightGradient::Matmul { x, dy, .. } if first => {
                let _product = dy.tr().f_mm_out(&self.tensor, x)?;
            }
            WeightGradient::Matmul { x, dy, .. } => {
                let _sum = self.tensor.f_addmm_(&dy.tr(), x)?;
            }
            WeightGradient::Direct { gradient, .. } => self.add_or_set(gradient, first)?,
            WeightGradient::Embedding { ids, dy, .. } => {
                if first {
                    let _zeroed = self.tensor.f_zero_()?;
                }
                let _sum = self.tensor.f_index_add_(0, ids, &dy.to_kind(Kind::Float))?;
            }
        }
        Ok(())
    }

    fn add_or_set(&mut self, part: &Tensor, first: bool) -> lampyris_model::Result<()> {
        match first {
            true => self.tensor.f_copy_(part)?,
            false => {
                let _sum = self.tensor.f_add_(part)?;
            }
        }
        Ok(())
    }

    /// The leaf has its last contribution: what it holds is zero if none came.
    fn close(&mut self) -> lampyris_model::Result<()> {
        if self.leaf.take().is_none() {
            let _zeroed = self.tensor.f_zero_()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
