//! Which cores and how many threads each rank of a node gets. Where there are at least as many cores as ranks, each rank
//! has cores of its own, next to each other; else they share all, with one thread each. A single rank has everything.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What one rank gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// None where it may run anywhere.
    pub(super) cores: Option<CpuSet>,
    /// None where it may have as many as there are cores.
    pub(super) threads: Option<usize>,
}

/// The shares of `ranks` ranks, of the cores this process may run on.
pub(super) fn shares(ranks: usize) -> Vec<Share> {
    // A kernel without affinities: nothing is pinned.
    let allowed = sched_getaffinity(None).map(|set| cores_of(&set)).unwrap_or_default();
    divide(&allowed, ranks)
}

fn cores_of(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

fn divide(allowed: &[usize], ranks: usize) -> Vec<Share> {
    if ranks <= 1 {
        return vec![Share::default(); ranks];
    }
    let each = allowed.len() / ranks;
    let share = |rank: usize| {
        let own = allowed.iter().skip(rank * each).take(each);
        let mut set = CpuSet::new();
        own.for_each(|core| set.set(*core));
        Share { cores: (each > 0).then_some(set), threads: Some(each.max(1)) }
    };
    (0..ranks).map(share).collect()
}

/// While it lives, this thread and what it starts run on the given cores; then on those of before.
#[derive(Debug)]
pub(super) struct Pinned {
    before: CpuSet,
}

/// Pins this thread. None where the system does not allow it: placement is a matter of speed alone.
pub(super) fn pin(cores: CpuSet) -> Option<Pinned> {
    let before = sched_getaffinity(None).ok()?;
    sched_setaffinity(None, &cores).ok()?;
    Some(Pinned { before })
}

impl Drop for Pinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.before).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_divided_evenly_and_only_where_there_are_enough() {
        let cores = |share: &Share| share.cores.map(|set| cores_of(&set));
        let four = divide(&[0, 1, 4, 5, 8], 2);
        assert_eq!(cores(&four[0]), Some(vec![0, 1]));
        assert_eq!(cores(&four[1]), Some(vec![4, 5]));
        assert_eq!(four[1].threads, Some(2));
        let shared = divide(&[0, 1], 4);
        assert!(shared.iter().all(|share| share.cores.is_none() && share.threads == Some(1)));
        assert_eq!(divide(&[0, 1], 1), [Share::default()]);
    }

    #[test]
    fn a_pinned_thread_goes_back() {
        let before = sched_getaffinity(None).unwrap();
        let first = cores_of(&before)[0];
        let mut one = CpuSet::new();
        one.set(first);
        let pinned = pin(one).unwrap();
        assert_eq!(cores_of(&sched_getaffinity(None).unwrap()), [first]);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
