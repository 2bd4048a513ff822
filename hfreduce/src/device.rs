//! Copies between a tensor and the host's memory: what a device offers to a private bucket.

#![allow(unsafe_code, reason = "copies between a tensor and memory that other processes see")]

use crate::error::Result;
use lampyris_comm::Memory;
use std::ops::Range;

/// One asynchronous copy. Its number means something to the [`DeviceCopy`] that gave it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CopyId(pub u64);

/// Copies between a tensor and host memory, asynchronously: plain memory ([`HostTensor`]), or the copy engine of a GPU.
///
/// The host memory of a copy stays mapped until [`Self::ready`] has answered true, or until the copier is dropped: an
/// implementation that leaves copies to a device waits for them when it is dropped.
pub trait DeviceCopy: Send {
    /// Starts copying `elements` of the tensor into `to`, which holds exactly as many.
    ///
    /// # Errors
    /// When the device refuses.
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId>;

    /// Starts copying `from`, which holds exactly as many elements, over `elements` of the tensor.
    ///
    /// # Errors
    /// When the device refuses.
    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId>;

    /// Whether a copy is done: its host memory may be used again. Asked until it answers true.
    ///
    /// # Errors
    /// When the copy failed.
    fn ready(&mut self, copy: CopyId) -> Result<bool>;

    /// `elements` where they lie, if the processor can read and write them there: the pieces that this rank works on
    /// itself then need no copies. `None` on a device.
    fn in_host_memory(&mut self, _elements: Range<usize>) -> Option<Memory> {
        None
    }
}

/// A tensor in this process's private memory. Its copies are done when the call returns.
#[derive(Debug, Clone, Default)]
pub struct HostTensor<T> {
    /// Its elements.
    pub data: Vec<T>,
}

impl<T: bytemuck::Pod + Send> DeviceCopy for HostTensor<T> {
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId> {
        let from: &[u8] = bytemuck::cast_slice(&self.data[elements]);
        // SAFETY: the caller's memory is this copy's until the copy is done.
        unsafe { to.bytes_mut() }.copy_from_slice(from);
        Ok(CopyId(0))
    }

    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId> {
        let to: &mut [u8] = bytemuck::cast_slice_mut(&mut self.data[elements]);
        // SAFETY: the caller's memory holds the elements, and nobody writes it until the copy is done.
        to.copy_from_slice(unsafe { from.bytes() });
        Ok(CopyId(0))
    }

    fn ready(&mut self, _copy: CopyId) -> Result<bool> {
        Ok(true)
    }

    fn in_host_memory(&mut self, elements: Range<usize>) -> Option<Memory> {
        Some(Memory::of(&mut self.data[elements]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_tensor_copies_the_elements_asked_for() {
        let mut tensor = HostTensor { data: vec![1u16, 2, 3, 4] };
        let mut host = [0u16; 2];
        let copy = tensor.copy_to_host(1..3, Memory::of(&mut host)).expect("it never refuses");
        assert!(tensor.ready(copy).expect("it never fails"));
        assert_eq!(host, [2, 3]);
        tensor.copy_to_device(Memory::of_const(&host), 2..4).expect("it never refuses");
        assert_eq!(tensor.data, [1, 2, 2, 3]);
        let seen = tensor.in_host_memory(3..4).expect("host memory");
        // SAFETY: the tensor is alive and nobody writes it.
        assert_eq!(unsafe { seen.bytes() }, 3u16.to_ne_bytes());
    }
}
