//! Calls with a wrong token, counted by address: one line of the log per address and minute, however many come.

use super::door::Origin;
use crate::limits;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Since the last line of the log.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    of: HashMap<Origin, u64>,
    /// Of addresses for which there was no place.
    others: u64,
}

impl Refusals {
    /// Counts one; the first of an address is said at once.
    pub(super) fn note(&self, origin: Origin) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.of.get_mut(&origin) {
            *count = count.saturating_add(1);
        } else if counts.of.len() < limits::REFUSED_ADDRESSES {
            counts.of.insert(origin, 0);
            tracing::warn!(%origin, "refused a call: its token is missing or wrong");
        } else {
            counts.others = counts.others.saturating_add(1);
        }
    }

    /// What has come since the last time, and begins anew: addresses with their counts, and the count of all others.
    fn take(&self) -> (Vec<(Origin, u64)>, u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let others = std::mem::take(&mut counts.others);
        // Who has gone on is kept, so that the next call is counted and not said at once.
        let busy: Vec<(Origin, u64)> =
            counts.of.iter().filter(|(_, count)| **count > 0).map(|(of, n)| (*of, *n)).collect();
        counts.of = busy.iter().map(|(origin, _)| (*origin, 0)).collect();
        (busy, others)
    }
}

/// Says every minute how many calls were refused, until the door is gone.
pub(super) async fn report(refusals: Weak<Refusals>) {
    let mut minutes = tokio::time::interval(limits::REFUSED_PERIOD);
    minutes.tick().await;
    loop {
        minutes.tick().await;
        let Some(refusals): Option<Arc<Refusals>> = refusals.upgrade() else { return };
        let (busy, others) = refusals.take();
        for (origin, count) in busy {
            tracing::warn!(%origin, count, "refused calls in the last minute: token missing or wrong");
        }
        if others > 0 {
            tracing::warn!(count = others, "refused calls of other addresses in the last minute");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_counted_and_the_number_of_addresses_is_bounded() {
        let refusals = Refusals::default();
        let busy = Origin::User(1);
        for _ in 0..4 {
            refusals.note(busy);
        }
        for uid in 0..1_000 {
            refusals.note(Origin::User(uid + 2));
        }
        let (counted, others) = refusals.take();
        assert_eq!(counted, [(busy, 3)]);
        assert_eq!(others, 1_001 - limits::REFUSED_ADDRESSES as u64);
        assert_eq!(refusals.take(), (Vec::new(), 0));
    }
}
