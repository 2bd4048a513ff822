//! Tensors of private buckets: a device that takes its time, one that breaks, and reading and writing any of them.

use lampyris_comm::{DType, Memory};
use lampyris_hfreduce::{Bucket, CopyId, DeviceCopy, Error, HostTensor, Result};
use std::collections::HashMap;
use std::ops::Range;

/// A tensor of elements of any type in the process's memory, which the processor may work on where it lies.
pub(crate) fn at_home(dtype: DType, elements: usize) -> Box<dyn DeviceCopy> {
    match dtype.bytes() {
        1 => Box::new(HostTensor { data: vec![0u8; elements] }),
        2 => Box::new(HostTensor { data: vec![0u16; elements] }),
        _ => Box::new(HostTensor { data: vec![0u32; elements] }),
    }
}

/// A device whose copies happen late: some polls after they were asked for, in any order.
pub(crate) struct Slow {
    tensor: Box<dyn DeviceCopy>,
    random: u64,
    next: u64,
    open: HashMap<CopyId, Late>,
}

struct Late {
    polls: u64,
    to_host: bool,
    host: Memory,
    elements: Range<usize>,
}

impl Slow {
    pub(crate) fn new(dtype: DType, elements: usize, seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { tensor: at_home(dtype, elements), random, next: 0, open: HashMap::new() }
    }

    fn later(&mut self, to_host: bool, host: Memory, elements: Range<usize>) -> CopyId {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let id = CopyId(self.next);
        self.next += 1;
        self.open.insert(id, Late { polls: self.random % 20, to_host, host, elements });
        id
    }
}

impl DeviceCopy for Slow {
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId> {
        Ok(self.later(true, to, elements))
    }

    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId> {
        Ok(self.later(false, from, elements))
    }

    fn ready(&mut self, copy: CopyId) -> Result<bool> {
        let late = self.open.get_mut(&copy).expect("it was asked for and has not ended");
        if late.polls > 0 {
            late.polls -= 1;
            return Ok(false);
        }
        let late = self.open.remove(&copy).expect("found above");
        if late.to_host {
            self.tensor.copy_to_host(late.elements, late.host)?;
        } else {
            self.tensor.copy_to_device(late.host, late.elements)?;
        }
        Ok(true)
    }
}

/// A device whose copies fail after so many good ones.
pub(crate) struct Breaking {
    pub(crate) tensor: Slow,
    pub(crate) good: usize,
}

impl DeviceCopy for Breaking {
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId> {
        if self.good == 0 {
            return Err(Error::Device("out of order".into()));
        }
        self.good -= 1;
        self.tensor.copy_to_host(elements, to)
    }

    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId> {
        self.tensor.copy_to_device(from, elements)
    }

    fn ready(&mut self, copy: CopyId) -> Result<bool> {
        self.tensor.ready(copy)
    }
}

/// Runs one copy to its end.
fn finish(bucket: &Bucket, begin: impl FnOnce(&mut dyn DeviceCopy) -> Result<CopyId>) {
    let ended = bucket.with_device(|device| {
        let copy = begin(device)?;
        while !device.ready(copy)? {}
        Ok::<(), Error>(())
    });
    ended.expect("a private bucket").expect("a copy that works");
}

/// The bytes of a bucket, shared or private.
pub(crate) fn read(bucket: &Bucket) -> Vec<u8> {
    let mut bytes = vec![0u8; bucket.elements() * bucket.dtype().bytes()];
    match (bucket.memory(), bucket.dtype().bytes()) {
        (None, _) => {
            let to = Memory::of(&mut bytes);
            finish(bucket, |device| device.copy_to_host(0..bucket.elements(), to));
        }
        (Some(_), 1) => bucket.with(|all: &mut [u8]| bytes.copy_from_slice(all)),
        (Some(_), 2) => {
            bucket.with(|all: &mut [u16]| bytes.copy_from_slice(bytemuck::cast_slice(all)));
        }
        (Some(_), _) => {
            bucket.with(|all: &mut [u32]| bytes.copy_from_slice(bytemuck::cast_slice(all)));
        }
    }
    bytes
}

/// Overwrites all bytes of a bucket, shared or private.
pub(crate) fn write(bucket: &Bucket, bytes: &[u8]) {
    match (bucket.memory(), bucket.dtype().bytes()) {
        (None, _) => {
            let from = Memory::of_const(bytes);
            finish(bucket, |device| device.copy_to_device(from, 0..bucket.elements()));
        }
        (Some(_), 1) => bucket.with(|all: &mut [u8]| all.copy_from_slice(bytes)),
        (Some(_), 2) => bucket.with(|all: &mut [u16]| {
            bytemuck::cast_slice_mut::<u16, u8>(all).copy_from_slice(bytes);
        }),
        (Some(_), _) => bucket.with(|all: &mut [u32]| {
            bytemuck::cast_slice_mut::<u32, u8>(all).copy_from_slice(bytes);
        }),
    }
}
