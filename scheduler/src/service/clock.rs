//! The scheduler's clock: CLOCK_BOOTTIME, going on from the last commit of the run before; and the wall clock, for display.

#![allow(clippy::arithmetic_side_effects, reason = "scheduler's time saturates")]

use crate::core::Time;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Scheduler's time of a daemon's life, and of those before.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    base: Time,
    boot_at_base: Duration,
    /// Starts of the daemon: scheduler's time and wall clock (milliseconds since 1970), oldest first.
    segments: Vec<(Time, i64)>,
}

impl Clock {
    /// Goes on after `last`; this life becomes the newest segment.
    pub(super) fn resume(last: Time, mut segments: Vec<(Time, i64)>) -> Clock {
        let base = last + 1;
        segments.push((base, wall_ms()));
        Clock { base, boot_at_base: boot(), segments }
    }

    pub(super) fn base(&self) -> Time {
        self.base
    }

    pub(super) fn now(&self) -> Time {
        let passed = boot().saturating_sub(self.boot_at_base);
        self.base + u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long from now until `at`.
    pub(super) fn until(&self, at: Time) -> Duration {
        Duration::from_millis(at - self.now())
    }

    /// Wall clock of a moment, for people: right within a segment as long as nobody has set the clock.
    pub(super) fn wall_ms(&self, at: Time) -> i64 {
        let after = self.segments.partition_point(|(started, _)| *started <= at);
        let Some((started, wall)) = self.segments.get(after.saturating_sub(1)) else { return 0 };
        wall.saturating_add_unsigned(at - *started)
    }

    pub(super) fn timestamp(&self, at: Time) -> prost_types::Timestamp {
        timestamp(self.wall_ms(at))
    }
}

/// Milliseconds since 1970.
pub(super) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn timestamp(wall_ms: i64) -> prost_types::Timestamp {
    let nanos = (wall_ms.rem_euclid(1000) * 1_000_000) as i32;
    prost_types::Timestamp { seconds: wall_ms.div_euclid(1000), nanos }
}

fn boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}
