//! Newtypes for the numbers on the wire that must never be mixed up.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A rank process of one job, 0-based over all nodes.
    Rank
);
id!(
    /// One start of a job, 1-based.
    Attempt
);
id!(
    /// Optimizer steps completed.
    Step
);
