//! Bugs that `verify` must find. They exist in test builds alone, and there only in threads that plant one: any other
//! build knows that nothing is planted when it is compiled.

/// A bug at one place of the trainer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Only the first source rank's gradients of an expert are reduced.
    DropSource,
    /// Parameters that all ranks hold count twice in the norm.
    CountTwice,
    /// Expert counts stay those of the rank.
    LocalCounts,
    /// The number of valid targets stays that of the rank.
    LocalLossScale,
    /// Updated weights are not brought together.
    StaleWeights,
    /// A token's routing weights change places on their way.
    SwapRoutingWeights,
    /// Ranks but the first leave the MTP loss out.
    MissingMtp,
    /// The second leaf goes on in the first one's accumulator.
    OffByOneLeaf,
    /// Row gradients come home to the neighbouring slot.
    ShiftedRows,
}

/// Whether this thread has planted `bug`.
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use in_tests::{current, plant, planted};

#[cfg(test)]
mod in_tests {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this thread has planted `bug`.
    pub(crate) fn planted(bug: Bug) -> bool {
        current() == Some(bug)
    }

    /// What this thread has planted.
    pub(crate) fn current() -> Option<Bug> {
        PLANTED.get()
    }

    /// From now on, in this thread.
    pub(crate) fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}
