//! A bucket: the flat memory that a reduction works on.
//!
//! `InPlace` buckets lie in shared memory, so the local ranks read each other's gradients where backward left them.
//! `Copying` buckets are private (or on a device) and pass through rings of shared chunks: `copying.rs`.

#![allow(unsafe_code, reason = "hands out the memory of a bucket as a slice")]

use crate::copying::{Copying, DeviceCopy};
use crate::flags::Flags;
use lampyris_comm::{DType, Memory, SharedMemory};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// How the bytes of a bucket reach the host's cores.
pub(crate) enum Staging {
    /// They are there: every local rank's bucket, by local index.
    InPlace(Vec<Arc<SharedMemory>>),
    /// Through rings.
    Copying(Box<Mutex<Copying>>),
}

/// Memory to be reduced. Made by [`crate::HfReduce::bucket`] or [`crate::HfReduce::private_bucket`].
#[derive(Clone)]
pub struct Bucket {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) dtype: DType,
    pub(crate) elements: usize,
    pub(crate) staging: Staging,
    pub(crate) flags: Flags,
    /// Operations started on this bucket: the generation that its counters follow.
    pub(crate) generation: AtomicU32,
    /// An operation runs: the memory belongs to it.
    pub(crate) busy: AtomicBool,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = &self.inner;
        f.debug_struct("Bucket")
            .field("dtype", &inner.dtype)
            .field("elements", &inner.elements)
            .field("busy", &inner.busy.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl Bucket {
    pub(crate) fn new(dtype: DType, elements: usize, staging: Staging, flags: Flags) -> Self {
        let (generation, busy) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { dtype, elements, staging, flags, generation, busy }) }
    }

    /// Type of its elements.
    pub fn dtype(&self) -> DType {
        self.inner.dtype
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.inner.elements
    }

    /// Its memory, when it lies in shared memory: what a framework wraps as a tensor. Between the start of a reduction
    /// and the end of its wait the memory belongs to the reduction.
    pub fn memory(&self) -> Option<Memory> {
        match &self.inner.staging {
            Staging::InPlace(all) => Some(all[self.inner.flags.group().member()].memory()),
            Staging::Copying(_) => None,
        }
    }

    /// Runs `fill` on the elements of a shared bucket.
    ///
    /// Panics when a reduction of it runs, when it is private, or when `T` is not its type's size.
    pub fn with<T: bytemuck::Pod, R>(&self, fill: impl FnOnce(&mut [T]) -> R) -> R {
        assert!(!self.inner.busy.load(Ordering::Acquire), "a reduction owns the bucket");
        let memory = self.memory().expect("a shared bucket");
        assert_eq!(size_of::<T>(), self.inner.dtype.bytes(), "{:?}", self.inner.dtype);
        // SAFETY: no reduction runs, so the local ranks stay away from it (they enter only with us); the callers of
        // this process take turns, since `fill` cannot leak the slice and `Bucket` users share nothing but this door.
        let bytes = unsafe { memory.bytes_mut() };
        fill(bytemuck::cast_slice_mut(bytes))
    }

    /// The copier of a private bucket, back from its last reduction.
    ///
    /// Panics when a reduction of it runs.
    pub fn with_device<R>(&self, act: impl FnOnce(&mut dyn DeviceCopy) -> R) -> Option<R> {
        assert!(!self.inner.busy.load(Ordering::Acquire), "a reduction owns the bucket");
        match &self.inner.staging {
            Staging::InPlace(_) => None,
            Staging::Copying(copying) => {
                let mut copying = copying.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                Some(act(&mut *copying.device))
            }
        }
    }
}
