//! What a rank holds between steps: flat buckets of weights, master weights and optimizer moments, the gate biases, and
//! how far training has come.

use crate::Result;
use crate::flat::{Flat, Memory};
use crate::gradients::Gradients;
use crate::init;
use lampyris_model::Weights;
use lampyris_plan::buckets::{Bucket, Buckets};
use lampyris_plan::inventory::{Inventory, Optimizer, Parameter, Storage};
use lampyris_plan::shards::shards;
use lampyris_plan::train_plan::Compute;
use lampyris_torch::dim;
use std::ops::Range;
use tch::{Kind, Tensor};

/// One bucket's arrays.
#[derive(Debug)]
pub struct BucketState {
    /// Weights that the forward pass reads, the whole bucket, in their storage type.
    pub weights: Flat,
    /// The shard of each replica: what it counts in the norm, writes into a checkpoint and, with ZeRO-1, updates.
    pub shards: Vec<Range<usize>>,
    /// Which of them is this rank's.
    pub replica: usize,
    /// Elements that this rank updates: its shard with ZeRO-1, else the bucket.
    pub owned: Range<usize>,
    /// Master weights of the owned elements, fp32: the memory of `weights` where those are fp32.
    pub master: Tensor,
    /// First moments of the owned elements, fp32.
    pub exp_avg: Tensor,
    /// Second moments of the owned elements, fp32; none where Muon updates.
    pub exp_avg_sq: Option<Tensor>,
    /// Runs of owned elements that share weight decay: (elements of the bucket, decays).
    pub runs: Vec<(Range<usize>, bool)>,
}

impl BucketState {
    /// This rank's shard.
    pub fn shard(&self) -> Range<usize> {
        self.shards[self.replica].clone()
    }

    /// Elements `range` of the bucket in an array of the owned elements.
    pub fn of_owned(&self, array: &Tensor, range: &Range<usize>) -> Tensor {
        array.narrow(0, dim(range.start - self.owned.start), dim(range.len()))
    }
}

/// How far training has come; everything else about data order follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Samples consumed, over all epochs.
    pub samples: u64,
    /// Tokens consumed.
    pub tokens: u64,
}

/// How the state of a network is laid out over ranks.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Type of the weights that matrix products read.
    pub compute: Compute,
    /// Gradient accumulators: log2(leaves of this rank) + 1.
    pub accumulators: usize,
    /// Keep one set of accumulators for each rank whose tokens contribute to an expert (canonical reduction).
    pub by_source: bool,
    /// ZeRO-1.
    pub sharded: bool,
}

/// The state of a rank.
#[derive(Debug)]
pub struct State {
    /// Layout: parameters that this rank holds.
    pub buckets: Buckets,
    /// Arrays by bucket.
    pub arrays: Vec<BucketState>,
    /// Views that the segments read; empty tensors for experts of other ranks.
    pub weights: Weights,
    /// Gradient accumulators.
    pub gradients: Gradients,
    /// Gate biases by decoder layer.
    pub biases: Vec<Vec<f32>>,
    /// Progress.
    pub progress: Progress,
}

impl State {
    /// Zeroed state for the parameters in `buckets`; fill it with [`State::initialize`] or from a checkpoint. Collective.
    ///
    /// # Errors
    /// No memory, or a local rank does not do the same.
    pub fn new(
        inventory: &Inventory,
        buckets: Buckets,
        layout: &Layout,
        memory: Memory<'_>,
    ) -> Result<State> {
        let shards = shards(inventory, &buckets, |group| memory.ranks.replica(group).0);
        let of_buckets = buckets.buckets.iter().zip(shards);
        let arrays =
            of_buckets.map(|(b, shards)| bucket_state(inventory, (b, shards), layout, memory));
        let arrays = arrays.collect::<Result<Vec<BucketState>>>()?;
        let views = inventory.parameters.iter().map(|p| match buckets.find(p.id) {
            Some((bucket, placement)) => view(&arrays[bucket].weights.tensor, placement.offset, p),
            None => Tensor::empty([0], (Kind::Float, memory.device)),
        });
        let layers = inventory.parameters.iter().filter_map(|p| p.layer).max().map_or(0, |l| l + 1);
        let mut biases = vec![Vec::new(); layers];
        for buffer in &inventory.buffers {
            biases[buffer.layer] = vec![0f32; buffer.shape[0]];
        }
        Ok(State {
            weights: Weights { views: views.collect() },
            gradients: Gradients::new(inventory, &buckets, layout, memory)?,
            arrays,
            buckets,
            biases,
            progress: Progress::default(),
        })
    }

    /// The parameters that this rank holds.
    pub fn held<'a>(&self, inventory: &'a Inventory) -> impl Iterator<Item = &'a Parameter> {
        inventory.parameters.iter().filter(|p| self.buckets.find(p.id).is_some())
    }

    /// Initial weights from the seed; moments and biases zero.
    pub fn initialize(&mut self, inventory: &Inventory, seed: u64) {
        let held: Vec<&Parameter> = self.held(inventory).collect();
        for parameter in held {
            let mut values = vec![0f32; parameter.elements()];
            init::fill(seed, parameter, &mut values);
            self.set_weights(parameter, &values);
        }
    }

    /// Overwrites a parameter: what the forward pass reads, and this rank's part of the master weights.
    pub fn set_weights(&self, parameter: &Parameter, values: &[f32]) {
        let values = Tensor::from_slice(values);
        let (bucket, placement) = self.buckets.place(parameter.id);
        let array = &self.arrays[bucket];
        let whole = placement.offset..placement.offset + placement.elements;
        let flat = &array.weights.tensor;
        flat.narrow(0, dim(whole.start), dim(whole.len())).copy_(&values);
        let owned = intersection(&whole, &array.owned);
        if owned.is_empty() {
            return;
        }
        let part = values.narrow(0, dim(owned.start - whole.start), dim(owned.len()));
        array.of_owned(&array.master, &owned).copy_(&part);
    }
}

/// The common part of two ranges, empty if there is none.
pub(crate) fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

fn bucket_state(
    inventory: &Inventory,
    (bucket, shards): (&Bucket, Vec<Range<usize>>),
    layout: &Layout,
    memory: Memory<'_>,
) -> Result<BucketState> {
    let (_, replica) = memory.ranks.replica(bucket.group);
    let owned = if layout.sharded { shards[replica].clone() } else { 0..bucket.elements };
    let copied = bucket.storage == Storage::Compute && layout.compute == Compute::Bf16;
    let float = || memory.private(owned.len(), Kind::Float);
    let kind = if copied { Kind::BFloat16 } else { Kind::Float };
    let weights = if layout.sharded {
        memory.shared(bucket.group, bucket.elements, kind)?
    } else {
        Flat { tensor: memory.private(bucket.elements, kind), shared: None }
    };
    let master = match copied {
        true => float(),
        false => weights.tensor.narrow(0, dim(owned.start), dim(owned.len())),
    };
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for (i, placement) in bucket.placements.iter().enumerate() {
        // A run takes the alignment gap behind a parameter along: its elements are zero and stay zero.
        let end = bucket.placements.get(i + 1).map_or(bucket.elements, |next| next.offset);
        let decays = inventory.parameters[placement.parameter].decay;
        let part = intersection(&(placement.offset..end), &owned);
        match runs.last_mut() {
            _ if part.is_empty() => {}
            Some(run) if run.1 == decays => run.0.end = part.end,
            _ => runs.push((part, decays)),
        }
    }
    let exp_avg = float();
    let exp_avg_sq = (bucket.optimizer == Optimizer::AdamW).then(float);
    Ok(BucketState { weights, shards, replica, owned, master, exp_avg, exp_avg_sq, runs })
}

/// The parameter's part of a flat array, in its shape.
pub(crate) fn view(flat: &Tensor, offset: usize, parameter: &Parameter) -> Tensor {
    let shape: Vec<i64> = parameter.shape.iter().map(|&size| dim(size)).collect();
    flat.narrow(0, dim(offset), dim(parameter.elements())).view(shape.as_slice())
}
