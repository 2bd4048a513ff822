//! What a rank holds between steps: flat buckets of weights, master weights and optimizer moments, the gate biases, and
//! how far training has come.

use crate::Result;
use crate::flat::{Flat, Memory};
use crate::gradients::Gradients;
use crate::init;
use lampyris_model::Weights;
use lampyris_plan::buckets::{Bucket, Buckets};
use lampyris_plan::inventory::{Inventory, Optimizer, Parameter, Storage};
use lampyris_plan::share::{Share, intersection};
use lampyris_plan::train_plan::{Compute, Sharding};
use lampyris_torch::dim;
use std::ops::Range;
use std::sync::Arc;
use tch::{Kind, Tensor};

/// One bucket's arrays.
#[derive(Debug)]
pub struct BucketState {
    /// Weights that the forward pass reads, the whole bucket, in their storage type.
    pub weights: Flat,
    /// Elements that this rank counts in the norm and writes into a checkpoint.
    pub shard: Range<usize>,
    /// Elements that this rank updates: its shard, or the bucket where the optimizer is not sharded.
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
    /// Whether the master weights are not the weights that the forward pass reads.
    pub fn has_own_master(&self) -> bool {
        self.weights.tensor.kind() != Kind::Float
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

/// The state of a rank.
#[derive(Debug)]
pub struct State {
    /// What this rank holds and updates.
    pub share: Share,
    /// Where the parameters that it holds lie.
    pub buckets: Arc<Buckets>,
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
    /// Zeroed state of a rank's share; fill it with [`State::initialize`] or from a checkpoint. Collective.
    ///
    /// # Errors
    /// No memory, or a local rank does not do the same.
    pub fn new(share: &Share, memory: Memory<'_>) -> Result<State> {
        let (inventory, buckets) = (share.inventory(), share.buckets());
        let arrays = buckets.buckets.iter().map(|bucket| bucket_state(share, bucket, memory));
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
            gradients: Gradients::new(share, memory)?,
            arrays,
            buckets: Arc::clone(buckets),
            share: share.clone(),
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

fn bucket_state(share: &Share, bucket: &Bucket, memory: Memory<'_>) -> Result<BucketState> {
    let owned = share.owned(bucket.id);
    let copied = bucket.storage == Storage::Compute && share.compute() == Compute::Bf16;
    let float = || memory.private(owned.len(), Kind::Float);
    let kind = if copied { Kind::BFloat16 } else { Kind::Float };
    let weights = match share.sharding() {
        Sharding::Optimizer => memory.shared(bucket.group, bucket.elements, kind)?,
        Sharding::Replicated => {
            Flat { tensor: memory.private(bucket.elements, kind), shared: None }
        }
    };
    let master = match copied {
        true => float(),
        false => weights.tensor.narrow(0, dim(owned.start), dim(owned.len())),
    };
    Ok(BucketState {
        weights,
        shard: share.shards(bucket.id)[share.replica(bucket.group).1].clone(),
        master,
        exp_avg: float(),
        exp_avg_sq: (bucket.optimizer == Optimizer::AdamW).then(float),
        runs: share.decay_runs(bucket.id),
        owned,
    })
}

/// The parameter's part of a flat array, in its shape.
pub(crate) fn view(flat: &Tensor, offset: usize, parameter: &Parameter) -> Tensor {
    let shape: Vec<i64> = parameter.shape.iter().map(|&size| dim(size)).collect();
    flat.narrow(0, dim(offset), dim(parameter.elements())).view(shape.as_slice())
}
