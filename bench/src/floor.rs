//! The floor: an all-reduce that only moves memory. In place in shared buffers, one fused sum per rank, spinning
//! barriers, no transport, no checks, no failure. Nothing that reports errors can be faster.

#![allow(unsafe_code, reason = "kernels and atomics on shared memory")]

use crate::error::Result;
use lampyris_comm::schedule::even_slices;
use lampyris_comm::{DType, Group, Memory, SharedMemory};
use lampyris_hfreduce::kernels::{Level, Order, Sum};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A barrier of the ranks of one node that spins.
#[derive(Debug)]
pub(super) struct SpinBarrier {
    counts: Vec<Arc<SharedMemory>>,
    me: usize,
    passed: u32,
    /// More ranks than cores: give the core away while spinning.
    yields: bool,
}

impl SpinBarrier {
    pub(super) fn share(group: &Group) -> Result<Self> {
        let counts = group.share(&SharedMemory::create("barrier", 64)?)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { counts, me: group.member(), passed: 0, yields: group.len() > cores })
    }

    pub(super) fn pass(&mut self) {
        self.passed += 1;
        self.count(self.me).store(self.passed, Ordering::Release);
        for of in 0..self.counts.len() {
            while self.count(of).load(Ordering::Acquire) < self.passed {
                if self.yields { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        }
    }

    fn count(&self, of: usize) -> &AtomicU32 {
        // SAFETY: page-aligned memory of 64 bytes, alive as long as `self`, used as an atomic only.
        unsafe { &*self.counts[of].as_ptr().cast::<AtomicU32>() }
    }
}

/// One all-reduce over buffers of all local ranks, between two passes of the barrier.
pub(super) fn all_reduce(buffers: &[Memory], me: usize, dtype: DType, level: Level) {
    let elements = buffers[0].len() / dtype.bytes();
    let slice = even_slices(elements, buffers.len())[me].clone();
    let cut =
        |memory: &Memory| memory.slice(slice.start * dtype.bytes()..slice.end * dtype.bytes());
    let all: Vec<Memory> = buffers.iter().map(cut).collect();
    let (inputs, outputs) = (&all[..], &all[..]);
    let sum = Sum { inputs, outputs, input: dtype, output: dtype, order: Order::Fold };
    // SAFETY: everybody is between the barriers; each rank touches its slice only.
    unsafe { sum.run(level) };
}
