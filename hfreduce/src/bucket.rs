//! A bucket: the flat memory that a collective works on, and the handle that a framework holds of it.

#![allow(unsafe_code, reason = "hands out the memory of a bucket as a slice")]

use crate::device::DeviceCopy;
use crate::flags::{Flags, Turn};
use crate::staging::Staging;
use lampyris_comm::{DType, Memory};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory to be reduced. Made by [`crate::HfReduce::bucket`] or [`crate::HfReduce::private_bucket`]; clones are handles
/// of the same memory.
#[derive(Clone)]
pub struct Bucket {
    pub(crate) inner: Arc<Inner>,
}

/// What the handles of a bucket and its operations share.
pub(crate) struct Inner {
    pub(crate) dtype: DType,
    pub(crate) elements: usize,
    pub(crate) flags: Flags,
    /// The buckets of all local ranks where they lie in place; else empty.
    pub(crate) in_place: Vec<Memory>,
    staging: Mutex<Box<dyn Staging>>,
    /// Operations started on this bucket: the generation that its counters follow.
    generation: AtomicU32,
    /// An operation runs: the memory belongs to it.
    busy: AtomicBool,
}

impl Inner {
    /// Begins an operation, to which the memory belongs until [`Self::give_back`].
    ///
    /// Panics when one runs.
    pub(crate) fn take(&self) -> Turn {
        assert!(!self.busy.swap(true, Ordering::AcqRel), "a reduction of this bucket runs");
        let generation = self.generation.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Turn { generation, until: self.flags.deadline() }
    }

    /// Ends the operation that runs.
    pub(crate) fn give_back(&self) {
        let was_busy = self.busy.swap(false, Ordering::AcqRel);
        assert!(was_busy, "an operation gives its bucket back once");
    }

    pub(crate) fn staging(&self) -> MutexGuard<'_, Box<dyn Staging>> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assert_idle(&self) {
        assert!(!self.busy.load(Ordering::Acquire), "a reduction owns the bucket");
    }
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
    pub(crate) fn new(
        dtype: DType,
        elements: usize,
        flags: Flags,
        staging: Box<dyn Staging>,
    ) -> Self {
        let in_place = staging.in_place().map(<[Memory]>::to_vec).unwrap_or_default();
        let inner = Inner {
            dtype,
            elements,
            flags,
            in_place,
            staging: Mutex::new(staging),
            generation: AtomicU32::new(0),
            busy: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
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
        self.inner.in_place.get(self.inner.flags.me()).copied()
    }

    /// The memory of this bucket on every rank of the node, by local index; empty when it is private. The other ranks'
    /// memory is theirs outside of a reduction: whoever reads or writes it needs their word for it.
    pub fn local_memories(&self) -> &[Memory] {
        &self.inner.in_place
    }

    /// Runs `fill` on the elements of a shared bucket.
    ///
    /// Panics when a reduction of it runs, when it is private, or when `T` is not its type's size.
    pub fn with<T: bytemuck::Pod, R>(&self, fill: impl FnOnce(&mut [T]) -> R) -> R {
        self.inner.assert_idle();
        let memory = self.memory().expect("a shared bucket");
        assert_eq!(size_of::<T>(), self.inner.dtype.bytes(), "{:?}", self.inner.dtype);
        // SAFETY: no reduction runs, so the local ranks stay away from it (they enter only with us); the callers of
        // this process take turns, since `fill` cannot leak the slice and `Bucket` users share nothing but this door.
        let bytes = unsafe { memory.bytes_mut() };
        fill(bytemuck::cast_slice_mut(bytes))
    }

    /// Runs `act` on what copies a private bucket; `None` when the bucket is shared.
    ///
    /// Panics when a reduction of it runs.
    pub fn with_device<R>(&self, act: impl FnOnce(&mut dyn DeviceCopy) -> R) -> Option<R> {
        self.inner.assert_idle();
        self.inner.staging().device().map(act)
    }
}
