//! Flat memory of a bucket: a tensor over private memory, or over shared memory that the local ranks reduce in place; and
//! how values from the host get into it.

#![allow(
    unsafe_code,
    reason = "tensors over a bucket's shared memory, and over values that are copied"
)]

use crate::Result;
use crate::ranks::Ranks;
use lampyris_comm::DType;
use lampyris_hfreduce as hfreduce;
use lampyris_plan::inventory::Group;
use lampyris_torch::dim;
use tch::{Device, Kind, Tensor};

/// A bucket's elements.
#[derive(Debug)]
pub struct Flat {
    /// All of them, `[elements]`. Its memory is the bucket's: the two live and end together.
    pub tensor: Tensor,
    /// What a reducer takes, where several ranks hold the bucket.
    pub shared: Option<hfreduce::Bucket>,
}

/// Copies values from the host into a tensor of as many elements, on whatever device it is; a type that is not fp32 takes
/// them rounded to nearest even.
pub(crate) fn copy_in(values: &[f32], tensor: &mut Tensor) {
    assert_eq!(values.len(), tensor.numel(), "as many values as elements");
    // SAFETY: nothing writes through this tensor, and it ends before the values do: a copy from the host's memory that can
    // be reused is over when it returns.
    let host = unsafe {
        let first = values.as_ptr().cast();
        Tensor::from_blob(first, &[dim(values.len())], &[1], Kind::Float, Device::Cpu)
    };
    tensor.copy_(&host);
}

/// Gives memory for the state of a rank.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    /// Where tensors live.
    pub device: Device,
    /// Whom the memory of buckets is shared with.
    pub ranks: &'a Ranks,
}

impl Memory<'_> {
    /// Zeroed memory of this rank alone.
    pub fn private(&self, elements: usize, kind: Kind) -> Tensor {
        Tensor::zeros([dim(elements)], (kind, self.device))
    }

    /// Zeroed memory that the replicas of `group` reduce and gather. Collective over them.
    ///
    /// # Errors
    /// No memory, or a local rank does not do the same.
    pub fn shared(&self, group: Group, elements: usize, kind: Kind) -> Result<Flat> {
        let Some(reducer) = self.ranks.reducer(group) else {
            return Ok(Flat { tensor: self.private(elements, kind), shared: None });
        };
        let dtype = if kind == Kind::BFloat16 { DType::Bf16 } else { DType::F32 };
        let bucket = reducer.bucket(dtype, elements)?;
        let memory = bucket.memory().expect("buckets of a reducer lie in shared memory");
        let options = (kind, Device::Cpu);
        // SAFETY: the memory holds `elements` of this type and is mapped as long as the bucket, which stands beside
        // the tensor in `Flat`; the views that the state makes of it live no longer than the state.
        let tensor = unsafe {
            Tensor::from_blob(memory.as_ptr(), &[dim(elements)], &[1], options.0, options.1)
        };
        Ok(Flat { tensor, shared: Some(bucket) })
    }
}
