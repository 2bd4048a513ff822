//! The lease of a node, pure: which moment each answered heartbeat gives.

use std::collections::VecDeque;
use std::time::Duration;

/// Heartbeats that may wait for an answer; older ones are given up. At a heartbeat per second, four minutes.
const WAITING_LIMIT: usize = 256;

/// Heartbeats that were sent, and the lease that the answered ones gave. Times are on CLOCK_BOOTTIME.
#[derive(Debug, Default)]
pub(super) struct Lease {
    sent: VecDeque<(u64, Duration)>,
    until: Duration,
}

impl Lease {
    /// A heartbeat (0: the registration) leaves now.
    pub(super) fn sent(&mut self, sequence: u64, now: Duration) {
        if self.sent.len() == WAITING_LIMIT {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now));
    }

    /// It was answered with a lease of `lease`. Gives the moment until which the node may work, if it moved.
    pub(super) fn answered(&mut self, sequence: u64, lease: Duration) -> Option<Duration> {
        let &(_, at) = self.sent.iter().find(|(sent, _)| *sent == sequence)?;
        self.sent.retain(|(sent, _)| *sent > sequence);
        let until = at + lease;
        (until > self.until).then(|| {
            self.until = until;
            until
        })
    }

    /// A new stream counts anew; the lease stays what it is.
    pub(super) fn reconnected(&mut self) {
        self.sent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_sending_and_never_moves_back() {
        let s = Duration::from_secs;
        let mut lease = Lease::default();
        lease.sent(1, s(10));
        lease.sent(2, s(11));
        lease.sent(3, s(12));
        assert_eq!(lease.answered(2, s(5)), Some(s(16)));
        // Older than what was answered: forgotten, and it would not move the lease anyway.
        assert_eq!(lease.answered(1, s(5)), None);
        assert_eq!(lease.answered(3, s(2)), None);
        // An answer to something that this stream never sent gives nothing.
        lease.reconnected();
        assert_eq!(lease.answered(3, s(100)), None);
        for sequence in 0..1000 {
            lease.sent(sequence, s(20));
        }
        assert!(lease.sent.len() <= WAITING_LIMIT);
    }
}
