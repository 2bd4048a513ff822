//! Which cores and how many threads each rank of a node gets. Where there are at least as many cores as ranks, each rank
//! has cores of its own, next to each other; else they share all, with one thread each. A single rank has everything that
//! the start was given.

use crate::cores::{CoreList, Given};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What one rank gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// None where it may run anywhere.
    pub(super) cores: Option<CpuSet>,
    /// None where it may have as many as there are cores.
    pub(super) threads: Option<usize>,
}

/// The shares of `ranks` ranks of what was given, as far as this process may use it.
pub(super) fn shares(given: &Given, ranks: usize) -> Vec<Share> {
    // A kernel without affinities: nothing is pinned.
    let allowed = CoreList::allowed();
    // A quota of processor time allows fewer threads than cores.
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let mut shares = divide(given, &allowed, ranks);
    for share in &mut shares {
        share.threads = share.threads.map(|threads| threads.min(most));
    }
    shares
}

fn divide(given: &Given, allowed: &CoreList, ranks: usize) -> Vec<Share> {
    let within = given.cores.intersection(allowed);
    let cores = if within.is_empty() { allowed } else { &within };
    let all = cores == allowed;
    if ranks <= 1 && all && !given.shared {
        return vec![Share::default(); ranks];
    }
    let each = if given.shared { 0 } else { cores.len() / ranks.max(1) };
    let share = |rank: usize| match each {
        // Everybody on all of them.
        0 => Share { cores: (!all).then(|| set_of(cores.iter())), threads: Some(1) },
        _ => {
            let own = set_of(cores.iter().skip(rank * each).take(each));
            Share { cores: Some(own), threads: Some(each) }
        }
    };
    (0..ranks).map(share).collect()
}

fn set_of(cores: impl Iterator<Item = usize>) -> CpuSet {
    let mut set = CpuSet::new();
    cores.for_each(|core| set.set(core));
    set
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

    fn list(text: &str) -> CoreList {
        text.parse().unwrap()
    }

    /// Cores (`*` for anywhere) and threads of each rank.
    fn divided(given: &Given, allowed: &str, ranks: usize) -> Vec<(String, Option<usize>)> {
        let cores = |set: CpuSet| (0..CpuSet::MAX_CPU).filter(move |core| set.is_set(*core));
        let text = |share: &Share| {
            let own = share.cores.map(|set| cores(set).collect::<CoreList>().to_string());
            (own.unwrap_or_else(|| "*".into()), share.threads)
        };
        divide(given, &list(allowed), ranks).iter().map(text).collect()
    }

    fn share(cores: &str, threads: usize) -> (String, Option<usize>) {
        (cores.into(), Some(threads))
    }

    #[test]
    fn cores_are_divided_evenly_and_only_where_there_are_enough() {
        let all = Given::default();
        assert_eq!(divided(&all, "0-1,4-5,8", 2), [share("0-1", 2), share("4-5", 2)]);
        assert_eq!(divided(&all, "0-1", 4), vec![share("*", 1); 4]);
        assert_eq!(divided(&all, "0-1", 1), [("*".to_string(), None)]);
    }

    #[test]
    fn what_was_given_is_the_bound() {
        let some = Given { cores: list("4-7"), shared: false };
        assert_eq!(divided(&some, "0-7", 1), [share("4-7", 4)]);
        assert_eq!(divided(&some, "0-7", 2), [share("4-5", 2), share("6-7", 2)]);
        assert_eq!(divided(&some, "0-7", 5), vec![share("4-7", 1); 5]);
        let shared = Given { cores: list("0"), shared: true };
        assert_eq!(divided(&shared, "0-1", 1), [share("0", 1)]);
        assert_eq!(divided(&shared, "0-1", 2), vec![share("0", 1); 2]);
        let everywhere = Given { cores: list("0-1"), shared: true };
        assert_eq!(divided(&everywhere, "0-1", 1), [share("*", 1)]);
        // What this process may not use any more is not given.
        assert_eq!(divided(&some, "0-1,4", 1), [share("4", 1)]);
        assert_eq!(divided(&some, "0-1", 1), [("*".to_string(), None)]);
    }

    #[test]
    fn a_pinned_thread_goes_back() {
        let before = sched_getaffinity(None).unwrap();
        let first = CoreList::allowed().iter().next().unwrap();
        let pinned = pin(set_of([first].into_iter())).unwrap();
        assert_eq!(CoreList::allowed().iter().collect::<Vec<_>>(), [first]);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
