//! What a rank holds between steps: flat buckets of master weights, compute copies and optimizer moments, the gate
//! biases, and how far training has come.

use crate::gradients::Gradients;
use crate::init;
use lampyris_model::Weights;
use lampyris_plan::buckets::{Bucket, Buckets};
use lampyris_plan::inventory::{Inventory, Parameter, Storage};
use lampyris_plan::train_plan::Compute;
use lampyris_torch::dim;
use tch::{Device, Kind, Tensor};

/// Gives zeroed memory for a bucket of that many elements: heap, shared memory or device.
pub type Allocate<'a> = &'a dyn Fn(usize, Kind) -> Tensor;

/// Zeroed memory of the device.
pub fn device_memory(device: Device) -> impl Fn(usize, Kind) -> Tensor {
    move |elements, kind| Tensor::zeros([dim(elements)], (kind, device))
}

/// One bucket's arrays, all of its length.
#[derive(Debug)]
pub struct BucketState {
    /// Master weights, fp32.
    pub master: Tensor,
    /// First moments, fp32.
    pub exp_avg: Tensor,
    /// Second moments, fp32.
    pub exp_avg_sq: Tensor,
    /// Weights in compute type, where that is not fp32.
    pub copy: Option<Tensor>,
    /// Runs of parameters that share weight decay: (first element, elements, decays).
    pub runs: Vec<(usize, usize, bool)>,
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
    /// Layout.
    pub buckets: Buckets,
    /// Arrays by bucket.
    pub arrays: Vec<BucketState>,
    /// Views that the segments read.
    pub weights: Weights,
    /// Gradient accumulators.
    pub gradients: Gradients,
    /// Gate biases by decoder layer.
    pub biases: Vec<Vec<f32>>,
    /// Progress.
    pub progress: Progress,
}

impl State {
    /// Zeroed state for `inventory`; fill it with [`State::initialize`] or from a checkpoint.
    pub fn new(
        inventory: &Inventory,
        buckets: Buckets,
        compute: Compute,
        accumulators: usize,
        allocate: Allocate<'_>,
    ) -> State {
        let arrays: Vec<BucketState> =
            buckets.buckets.iter().map(|b| bucket_state(inventory, b, compute, allocate)).collect();
        let views = inventory.parameters.iter().map(|p| {
            let (bucket, placement) = buckets.place(p.id);
            let array = &arrays[bucket];
            view(array.copy.as_ref().unwrap_or(&array.master), placement.offset, p)
        });
        let layers = inventory.parameters.iter().filter_map(|p| p.layer).max().map_or(0, |l| l + 1);
        let mut biases = vec![Vec::new(); layers];
        for buffer in &inventory.buffers {
            biases[buffer.layer] = vec![0f32; buffer.shape[0]];
        }
        State {
            weights: Weights { views: views.collect() },
            gradients: Gradients::new(inventory, &buckets, accumulators, allocate),
            arrays,
            buckets,
            biases,
            progress: Progress::default(),
        }
    }

    /// Initial weights from the seed; moments and biases zero.
    pub fn initialize(&mut self, inventory: &Inventory, seed: u64) {
        for parameter in &inventory.parameters {
            let mut values = vec![0f32; parameter.elements()];
            init::fill(seed, parameter, &mut values);
            self.set_master(parameter, &values);
        }
        self.refresh_copies();
    }

    /// Overwrites a parameter's master weights; call [`State::refresh_copies`] when all are set.
    pub fn set_master(&mut self, parameter: &Parameter, values: &[f32]) {
        self.master(parameter).copy_(&Tensor::from_slice(values).view_as(&self.master(parameter)));
    }

    /// View of a parameter's master weights, in its shape.
    pub fn master(&self, parameter: &Parameter) -> Tensor {
        let (bucket, placement) = self.buckets.place(parameter.id);
        view(&self.arrays[bucket].master, placement.offset, parameter)
    }

    /// Rewrites the compute copies from the master weights.
    pub fn refresh_copies(&mut self) {
        for array in &mut self.arrays {
            if let Some(copy) = &mut array.copy {
                copy.copy_(&array.master);
            }
        }
    }
}

fn bucket_state(
    inventory: &Inventory,
    bucket: &Bucket,
    compute: Compute,
    allocate: Allocate<'_>,
) -> BucketState {
    let float = || allocate(bucket.elements, Kind::Float);
    let copied = bucket.storage == Storage::Compute && compute == Compute::Bf16;
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    for (i, placement) in bucket.placements.iter().enumerate() {
        // A run takes the alignment gap behind a parameter along: its elements are zero and stay zero.
        let end = bucket.placements.get(i + 1).map_or(bucket.elements, |next| next.offset);
        let decays = inventory.parameters[placement.parameter].decay;
        match runs.last_mut() {
            Some(run) if run.2 == decays => run.1 = end - run.0,
            _ => runs.push((placement.offset, end - placement.offset, decays)),
        }
    }
    BucketState {
        master: float(),
        exp_avg: float(),
        exp_avg_sq: float(),
        copy: copied.then(|| allocate(bucket.elements, Kind::BFloat16)),
        runs,
    }
}

/// The parameter's part of a flat array, in its shape.
pub(crate) fn view(flat: &Tensor, offset: usize, parameter: &Parameter) -> Tensor {
    let shape: Vec<i64> = parameter.shape.iter().map(|&size| dim(size)).collect();
    flat.narrow(0, dim(offset), dim(parameter.elements())).view(shape.as_slice())
}
