//! From the data cursor to micro-batches: which samples a step reads, and what each loss is divided by.

use crate::ranks::Ranks;
use crate::state::Progress;
use lampyris_data::{Batch, Dataset, Error, SampleOrder, TrainingWindows};
use lampyris_model::MicroBatch;
use lampyris_plan::train_plan::TrainPlan;
use tch::Device;

/// Training samples in their order.
#[derive(Debug)]
pub struct Batches {
    windows: TrainingWindows,
    order: SampleOrder,
    depths: usize,
    device: Device,
}

impl Batches {
    /// The samples of a plan. `depths` counts next-token prediction and the MTP layers.
    ///
    /// # Errors
    /// A sequence longer than the corpus.
    pub fn new(
        dataset: &Dataset,
        plan: &TrainPlan,
        depths: usize,
        device: Device,
    ) -> Result<Batches, Error> {
        let windows = dataset.training(plan.batch.sequence_length, depths - 1)?;
        let order = SampleOrder::new(plan.seed, windows.samples());
        Ok(Batches { windows, order, depths, device })
    }

    /// This rank's micro-batches of the step that begins at `progress`: `sequences` samples in groups of `micro_batch`,
    /// of which every rank takes equally many that follow each other.
    pub fn step(
        &self,
        progress: Progress,
        sequences: usize,
        micro_batch: usize,
        ranks: &Ranks,
    ) -> Vec<Batch> {
        let each = sequences / micro_batch / ranks.mesh().data;
        (ranks.rank() * each..(ranks.rank() + 1) * each)
            .map(|micro| {
                let first = progress.samples + (micro * micro_batch) as u64;
                let samples: Vec<_> =
                    (first..first + micro_batch as u64).map(|p| self.order.sample_at(p)).collect();
                self.windows.batch(&samples)
            })
            .collect()
    }

    /// On the device.
    pub fn upload(&self, batch: &Batch) -> MicroBatch {
        upload(batch, self.depths, self.device)
    }

    /// Epochs passed at `progress`.
    pub fn epochs(&self, progress: Progress) -> f64 {
        progress.samples as f64 / self.order.samples_per_epoch() as f64
    }
}

/// A data batch on the device.
pub fn upload(batch: &Batch, depths: usize, device: Device) -> MicroBatch {
    let valid: Vec<Vec<bool>> = (0..depths).map(|depth| batch.target_valid(depth)).collect();
    let counts = |depth: usize, i: usize| valid[depth][i];
    MicroBatch::new(&batch.tokens, batch.sequence_length, depths, counts, device)
}
