//! The scheduler's clock as a number.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// Milliseconds on a clock that the caller keeps: it never goes back, not even over a restart of the daemon, and has
/// nothing to do with the time of day.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Add<u64> for Time {
    type Output = Time;

    /// `ms` later.
    fn add(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms))
    }
}

impl Sub for Time {
    type Output = u64;

    /// Milliseconds since `earlier`, 0 if it is later.
    fn sub(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
