//! Memory whose address and length suit transfers that bypass the page cache.

use crate::disk::ALIGN_BYTES;
use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN_BYTES]);

/// A zeroed buffer of whole pages.
pub(crate) struct Aligned(Vec<Page>);

impl Aligned {
    /// At least `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Aligned {
        Aligned(vec![Page::zeroed(); bytes.div_ceil(ALIGN_BYTES)])
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
