//! Memory that other processes of the node can map, and raw views of memory that a put may read.
//!
//! Shared memory is a sealed memfd passed over a Unix socket: nothing to unlink, nothing left behind when a process is
//! killed, and not bounded by a container's small `/dev/shm`. The seal forbids shrinking, so a peer cannot make this
//! process fault on a mapping it already checked.

#![allow(
    unsafe_code,
    reason = "mapping shared memory and viewing it as bytes is this module's purpose"
)]

use crate::error::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A run of bytes that several processes see. Whoever shares it agrees on who writes which bytes when.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
    fd: OwnedFd,
    bytes: usize,
}

impl SharedMemory {
    /// New zeroed memory. Pages are given by the kernel when they are first touched.
    ///
    /// # Errors
    /// When the system has no memory or file descriptor left.
    pub fn create(name: &str, bytes: usize) -> Result<Arc<Self>> {
        let failed = |source| Error::io(format!("creating {bytes} bytes of shared memory"), source);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(format!("lampyris-{name}"), flags).map_err(failed)?;
        rustix::fs::ftruncate(&fd, bytes.max(1) as u64).map_err(failed)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(failed)?;
        Self::map(fd, bytes)
    }

    /// Maps memory that another process created and sent.
    ///
    /// # Errors
    /// When the descriptor is not a sealed memfd of exactly this size.
    pub fn from_fd(fd: OwnedFd, bytes: usize) -> Result<Arc<Self>> {
        let failed = |source| Error::io("checking shared memory from a peer", source);
        let size = rustix::fs::fstat(&fd).map_err(failed)?.st_size;
        if size != i64::try_from(bytes.max(1)).unwrap_or(i64::MAX) {
            return Err(Error::Invalid(format!("a peer shared {size} bytes instead of {bytes}")));
        }
        if !rustix::fs::fcntl_get_seals(&fd).map_err(failed)?.contains(SealFlags::SHRINK) {
            return Err(Error::Invalid("a peer shared memory that it could shrink later".into()));
        }
        Self::map(fd, bytes)
    }

    fn map(fd: OwnedFd, bytes: usize) -> Result<Arc<Self>> {
        let map = MmapOptions::new().len(bytes.max(1)).map_raw(&fd).map_err(|source| {
            Error::io(format!("mapping {bytes} bytes of shared memory"), source)
        })?;
        Ok(Arc::new(Self { map, fd, bytes }))
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Where it is mapped in this process; page aligned.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// All of it as a raw view.
    pub fn memory(&self) -> Memory {
        Memory { ptr: self.as_ptr(), bytes: self.bytes }
    }

    /// Touches every page now, so that the first operation does not pay for page faults.
    pub fn populate(&self) {
        let advice = rustix::mm::Advice::LinuxPopulateWrite;
        // SAFETY: the range is this mapping; populating does not change its contents.
        let done = unsafe { rustix::mm::madvise(self.as_ptr().cast(), self.bytes.max(1), advice) };
        if let Err(error) = done {
            tracing::debug!(%error, "kernel without MADV_POPULATE_WRITE: pages come on first touch");
        }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A raw view of memory owned elsewhere: address and length, nothing else. Whoever makes one keeps the memory alive,
/// and keeps others from writing it, as long as the operation that holds the view runs.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    ptr: *mut u8,
    bytes: usize,
}

// SAFETY: a view is an address; every dereference is an unsafe call whose caller answers for exclusivity.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// No bytes.
    pub const EMPTY: Self =
        Self { ptr: std::ptr::NonNull::<u64>::dangling().as_ptr().cast(), bytes: 0 };

    /// A view of a slice that the caller keeps borrowed for as long as the view is used.
    pub fn of<T: bytemuck::Pod>(slice: &mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr().cast(), bytes: size_of_val(slice) }
    }

    /// A view of a slice that is only read.
    pub fn of_const<T: bytemuck::Pod>(slice: &[T]) -> Self {
        Self { ptr: slice.as_ptr().cast_mut().cast(), bytes: size_of_val(slice) }
    }

    /// Number of bytes.
    pub fn len(self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.bytes == 0
    }

    /// Its first byte.
    pub fn as_ptr(self) -> *mut u8 {
        self.ptr
    }

    /// Whether both views start at the same address.
    pub fn same_start(self, other: Self) -> bool {
        self.ptr == other.ptr
    }

    /// The bytes `range` of this view.
    ///
    /// Panics when the range is not inside.
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        Self { ptr: self.ptr.wrapping_add(range.start), bytes: range.len() }
    }

    /// The bytes.
    ///
    /// # Safety
    /// The memory is alive for `'a` and nobody writes it meanwhile.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }

    /// The bytes, writable.
    ///
    /// # Safety
    /// The memory is alive for `'a` and nobody else reads or writes it meanwhile.
    pub unsafe fn bytes_mut<'a>(self) -> &'a mut [u8] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_see_one_memory() {
        let ours = SharedMemory::create("test", 5000).expect("memory");
        let theirs = SharedMemory::from_fd(ours.as_fd().try_clone_to_owned().expect("fd"), 5000)
            .expect("map");
        // SAFETY: nobody else touches this memory in the test.
        unsafe {
            ours.memory().slice(4990..5000).bytes_mut().fill(7);
            assert_eq!(theirs.memory().slice(4989..5000).bytes()[..3], [0, 7, 7]);
        }
    }

    #[test]
    fn unsealed_or_wrong_memory_is_refused() {
        let ours = SharedMemory::create("test", 5000).expect("memory");
        let wrong = SharedMemory::from_fd(ours.as_fd().try_clone_to_owned().expect("fd"), 5001);
        assert!(matches!(wrong, Err(Error::Invalid(_))), "{wrong:?}");
        let file = rustix::fs::memfd_create("loose", MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::fs::ftruncate(&file, 10).expect("size");
        assert!(matches!(SharedMemory::from_fd(file, 10), Err(Error::Invalid(_))));
    }
}
