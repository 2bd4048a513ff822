//! The slots of one operation, at most four, without an allocation: operations are asked for theirs all the time.

use super::Slot;
use std::ops::Deref;

/// Slots in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    len: usize,
    slots: [Slot; 4],
}

impl<const N: usize> From<[Slot; N]> for Slots {
    fn from(from: [Slot; N]) -> Slots {
        let mut slots = [Slot::Trunk; 4];
        slots[..N].copy_from_slice(&from);
        Slots { len: N, slots }
    }
}

impl Deref for Slots {
    type Target = [Slot];

    fn deref(&self) -> &[Slot] {
        &self.slots[..self.len]
    }
}

impl IntoIterator for Slots {
    type Item = Slot;
    type IntoIter = std::iter::Take<std::array::IntoIter<Slot, 4>>;

    fn into_iter(self) -> Self::IntoIter {
        self.slots.into_iter().take(self.len)
    }
}
