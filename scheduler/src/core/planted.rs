//! Defects on demand: tests switch one on and expect the simulation to find it. Outside tests there are none.

/// A defect that the simulation must find.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A silent node's attempts count as stopped without waiting for the lease.
    NoLease,
    /// A gang is started on one node too few.
    PartialGang,
    /// Quotas are not looked at.
    NoQuota,
    /// Jobs are suspended before they have run for the quantum.
    NoQuantum,
    /// A job whose node was lost is forgotten.
    ForgetsLostJobs,
    /// Backfill never stops for the first job in line.
    NoPatience,
    /// Several jobs run across zones.
    ManyCrossZone,
    /// A job that was suspended for another does not stand in line again.
    LosesPreemptedJobs,
    /// A device counts as free before its worker has said so.
    EarlyRelease,
    /// A suspended job of a person is started again by itself.
    ResumesByItself,
    /// Where attempts run is not durable: a scheduler that restarts starts its jobs a second time.
    SecondStart,
    /// Every heartbeat counts as progress.
    NeverHung,
    /// What a worker says of an older attempt counts for the newest.
    NoFence,
}

#[cfg(test)]
pub(super) type Planted = Option<Bug>;
#[cfg(not(test))]
pub(super) type Planted = ();

/// Whether a defect is switched on; `false` outside tests.
macro_rules! planted {
    ($scheduler:expr, $bug:ident) => {{
        #[cfg(test)]
        let on = $scheduler.planted == Some($crate::core::planted::Bug::$bug);
        #[cfg(not(test))]
        let on = false;
        on
    }};
}
pub(super) use planted;

#[cfg(test)]
impl super::Scheduler {
    pub(crate) fn plant(&mut self, bug: Option<Bug>) {
        self.planted = bug;
    }
}

#[cfg(test)]
impl super::Snapshot {
    /// What is left of it under [`Bug::SecondStart`].
    pub(crate) fn without_attempts(mut self) -> super::Snapshot {
        use super::JobState as State;
        for job in self.jobs.iter_mut().filter(|job| !job.members.is_empty()) {
            job.members.clear();
            (job.state, job.stop, job.running_since) = (State::Queued, None, None);
        }
        self
    }
}
