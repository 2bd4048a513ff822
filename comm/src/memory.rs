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
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A run of bytes that several processes see. Whoever shares it agrees on who writes which bytes when.
#[derive(Debug)]
pub struct SharedMemory {
    map: Mapping,
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
        let map = Mapping::new(&fd, bytes.max(1)).map_err(|source| {
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
        self.map.start.cast()
    }

    /// All of it as a raw view.
    pub fn memory(&self) -> Memory {
        Memory { ptr: self.as_ptr(), bytes: self.bytes }
    }

    /// Touches every page now, so that the first operation does not pay for page faults, in huge pages where the kernel
    /// has them: sweeps over large buckets are bound by the misses of small ones (measured: 26 instead of 17 GB/s).
    pub fn populate(&self) {
        let whole = self.bytes / HUGE * HUGE;
        // SAFETY: the range is inside this mapping; collapsing pages does not change its contents.
        if whole > 0 && unsafe { libc::madvise(self.map.start, whole, libc::MADV_COLLAPSE) } != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, "no huge pages: shared memory stays in small ones");
        }
        let advice = rustix::mm::Advice::LinuxPopulateWrite;
        // SAFETY: the range is this mapping; populating does not change its contents.
        let done = unsafe { rustix::mm::madvise(self.as_ptr().cast(), self.bytes.max(1), advice) };
        if let Err(error) = done {
            tracing::debug!(%error, "kernel without MADV_POPULATE_WRITE: pages come on first touch");
        }
    }
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// An address range that shows a file. Starts where a huge page can, so that all processes can map it by those.
#[derive(Debug)]
struct Mapping {
    start: *mut std::ffi::c_void,
    bytes: usize,
}

// SAFETY: a mapping is an address range of the process, not of a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; whoever reads or writes the memory answers for it.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, bytes: usize) -> rustix::io::Result<Self> {
        let (access, bytes) = (ProtFlags::READ | ProtFlags::WRITE, bytes.next_multiple_of(4096));
        let null = std::ptr::null_mut();
        if bytes < HUGE {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let start = unsafe { mmap(null, bytes, access, MapFlags::SHARED, fd, 0) }?;
            return Ok(Self { start, bytes });
        }
        let reserve = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: as above.
        let room = unsafe { mmap_anonymous(null, bytes + HUGE, ProtFlags::empty(), reserve) }?;
        let mut mapping = Self { start: room, bytes: bytes + HUGE };
        let before = room.align_offset(HUGE);
        let start = room.wrapping_byte_add(before);
        let fixed = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: replaces and gives back parts of the room just reserved, which nobody else knows; what is still ours is
        // written down after each step, for `drop`.
        unsafe {
            mmap(start, bytes, access, fixed, fd, 0)?;
            if before > 0 {
                munmap(room, before)?;
            }
            (mapping.start, mapping.bytes) = (start, bytes + HUGE - before);
            munmap(start.wrapping_byte_add(bytes), HUGE - before)?;
        }
        mapping.bytes = bytes;
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; whoever holds a view of it has let go.
        if let Err(error) = unsafe { munmap(self.start, self.bytes) } {
            tracing::error!(%error, "unmapping shared memory failed");
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
    fn large_memory_starts_where_a_huge_page_can_and_keeps_its_contents() {
        let bytes = 5 * HUGE + 12_345;
        let ours = SharedMemory::create("test", bytes).expect("memory");
        // SAFETY: nobody else touches this memory in the test.
        unsafe { ours.memory().slice(HUGE - 1..HUGE + 1).bytes_mut().fill(9) };
        ours.populate();
        let fd = ours.as_fd().try_clone_to_owned().expect("fd");
        let theirs = SharedMemory::from_fd(fd, bytes).expect("map");
        for memory in [&ours, &theirs] {
            assert_eq!(memory.as_ptr().align_offset(HUGE), 0);
            // SAFETY: as above.
            let seen = unsafe { memory.memory().bytes() };
            assert_eq!((seen[HUGE - 1], seen[HUGE], seen[HUGE + 1]), (9, 9, 0));
            assert_eq!(seen[bytes - 1], 0);
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
