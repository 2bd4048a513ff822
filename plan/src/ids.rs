//! Newtypes for the numbers that must never be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
        )]
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
    /// A rank process of one job, 0-based.
    Rank
);
id!(
    /// Optimizer steps completed: step 0 is the state before the first update.
    Step
);
id!(
    /// One start of a job, 1-based; every start of a run gets the next number.
    Attempt
);
