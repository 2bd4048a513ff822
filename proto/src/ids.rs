//! Newtypes for the numbers on the wire that must never be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
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
id!(
    /// A job of a scheduler, 1-based in order of submission; never used again.
    JobId
);
