//! Newtypes for the numbers of this crate that must never be mixed up.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A rank process of one job, 0-based, counted over all nodes.
    Rank(u32)
);
id!(
    /// A host, 0-based. Ranks fill nodes in order; ranks of one node share memory.
    Node(u32)
);
id!(
    /// One start of a job, 1-based. Words of another attempt are refused at the handshake.
    Attempt(u32)
);
id!(
    /// One forming of a communicator inside an attempt, 0-based.
    Generation(u32)
);

impl Rank {
    /// The rank as an index into tables that have one entry per rank.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The rank with this index.
    ///
    /// Panics when the index is not a rank; tables are never that long.
    pub fn of(index: usize) -> Self {
        Self(u32::try_from(index).expect("a job has fewer than 2^32 ranks"))
    }
}
