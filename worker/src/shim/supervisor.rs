//! The decisions of a shim, pure: `step(now, input) -> actions`, until [`Supervisor::outcome`] is known. Time is
//! CLOCK_BOOTTIME, given by the caller with every input.

use super::outcome::{Event, Exit, Failure, FailureCause, Outcome, SuspendReason};
use lampyris_proto::rank::{Deadline, Failed, Ready, Suspend, ToRank};
use lampyris_proto::rank::{failed::Cause, from_rank::Body, to_rank};
use lampyris_proto::{Attempt, Rank, Step};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use std::path::PathBuf;
use std::time::Duration;

/// How long the other ranks may take to end by themselves, and to log whom they lost, once one has failed. Half of the
/// second in which a dead rank must end the job.
const FAIL_GRACE: Duration = Duration::from_millis(500);

/// A rank closes its socket when it exits, so its end follows at once; one that lives on is broken.
const CLOSED_GRACE: Duration = Duration::from_secs(2);

/// What has happened. `usize` is the local index of a rank.
#[derive(Debug)]
pub(super) enum Input {
    Message(usize, Option<Body>),
    /// The socket brought something that is not a message.
    Garbage(usize, String),
    /// End of the socket.
    Closed(usize),
    Exited(usize, Exit),
    Suspend {
        stay_stopped: bool,
        reason: SuspendReason,
    },
    /// SIGINT.
    Interrupt,
    /// The host wants the ranks dead.
    Kill,
    Deadline(Duration),
    /// Time has passed; comes at least every [`super::service::TICK`].
    Tick,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Send(usize, ToRank),
    /// Kill the process group of a rank.
    Kill(usize),
    Emit(Event),
}

/// What does not change while the ranks run.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) build_id: String,
    pub(super) attempt: Attempt,
    pub(super) first_rank: Rank,
    pub(super) local_ranks: usize,
    pub(super) report_after: Duration,
}

#[derive(Debug, Default)]
struct RankState {
    ready: bool,
    step: u64,
    operation: String,
    finished: bool,
    suspended: Option<bool>,
    failed: Option<Failed>,
    broken: Option<String>,
    closed_at: Option<Duration>,
    exit: Option<Exit>,
    killed: bool,
    /// Position in the order of failures.
    failed_nth: Option<usize>,
}

#[derive(Debug)]
struct SuspendState {
    stay_stopped: bool,
    since: Duration,
    next_report: Duration,
}

pub(super) struct Supervisor {
    setup: Setup,
    ranks: Vec<RankState>,
    suspend: Option<SuspendState>,
    interrupted: bool,
    deadline: Option<Duration>,
    failing_since: Option<Duration>,
    /// Set when this shim killed ranks on its own account.
    killed_for: Option<FailureCause>,
    actions: Vec<Action>,
}

impl RankState {
    /// Whether it was ended by a request to checkpoint before it could hear the shim: Slurm sends its signals to every
    /// process of a node, and a rank catches them from its first moments on. Nothing is lost.
    fn never_began(&self) -> bool {
        !self.ready && matches!(self.exit, Some(Exit::Signal(SIGTERM | SIGUSR2 | SIGHUP)))
    }
}

impl Supervisor {
    pub(super) fn new(setup: Setup) -> Supervisor {
        let ranks = (0..setup.local_ranks).map(|_| RankState::default()).collect();
        Supervisor {
            setup,
            ranks,
            suspend: None,
            interrupted: false,
            deadline: None,
            failing_since: None,
            killed_for: None,
            actions: Vec::new(),
        }
    }

    /// Takes in what happened at `now` and says what to do, in order.
    pub(super) fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        match input {
            Input::Message(index, body) => self.message(now, index, body),
            Input::Garbage(index, error) => {
                self.broken(now, index, format!("sent what is no message of this build: {error}"));
            }
            Input::Closed(index) => self.ranks[index].closed_at = Some(now),
            Input::Exited(index, exit) => self.exited(now, index, exit),
            Input::Suspend { stay_stopped, reason } => self.suspend(now, stay_stopped, reason),
            Input::Interrupt if self.interrupted => self.kill_all(FailureCause::Killed),
            Input::Interrupt => {
                self.interrupted = true;
                self.suspend(now, true, SuspendReason::Signal(SIGINT));
            }
            Input::Kill => self.kill_all(FailureCause::Killed),
            Input::Deadline(at) => {
                self.deadline = Some(at);
                let boottime_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
                self.tell_all(to_rank::Body::Deadline(Deadline { boottime_ns }));
            }
            Input::Tick => self.tick(now),
        }
        std::mem::take(&mut self.actions)
    }

    /// How the start ended; known once every rank has exited. `log` and its tail are for the caller to fill in.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        if self.ranks.iter().any(|rank| rank.exit.is_none()) {
            return None;
        }
        if let Some((index, cause)) = self.root_cause() {
            return Some(self.failure(index, cause));
        }
        let step = Step(self.ranks.iter().map(|rank| rank.step).max().unwrap_or(0));
        let exits: Vec<Exit> = self.ranks.iter().filter_map(|rank| rank.exit).collect();
        if self.ranks.iter().any(RankState::never_began) {
            let stay_stopped = self.suspend.as_ref().is_some_and(|suspend| suspend.stay_stopped);
            return Some(Outcome::Suspended { step, stay_stopped });
        }
        let suspended = |exit: &Exit| matches!(exit, Exit::Code(85 | 86));
        Some(if exits.iter().all(|exit| *exit == Exit::Code(0)) {
            Outcome::Finished
        } else if exits.iter().all(suspended) && exits.windows(2).all(|pair| pair[0] == pair[1]) {
            Outcome::Suspended { step, stay_stopped: exits[0] == Exit::Code(86) }
        } else {
            let what = format!("their exits are {exits:?}, which should all be 0, 85 or 86");
            self.failure(0, FailureCause::Disagreement(what))
        })
    }

    /// The first rank that failed by itself; one that only lost a peer comes after all others.
    fn root_cause(&self) -> Option<(usize, FailureCause)> {
        let own = (0..self.ranks.len())
            .filter_map(|index| Some((index, self.own_failure(&self.ranks[index])?)))
            .min_by_key(|(index, _)| {
                let rank = &self.ranks[*index];
                let lost_peer =
                    rank.failed.as_ref().is_some_and(|failed| failed.cause() == Cause::PeerLost);
                (lost_peer, rank.failed_nth)
            });
        let by_us = || {
            let killed =
                |rank: &RankState| rank.killed && matches!(rank.exit, Some(Exit::Signal(_)));
            let index = self.ranks.iter().position(killed)?;
            Some((index, self.killed_for.clone()?))
        };
        match &self.killed_for {
            // A kill on our account wins over what it caused, unless a rank had failed before. A rank that ended by itself
            // in the same moment, at a deadline that it holds too, is the cause where none was left to kill.
            Some(_) if self.failing_since.is_none() => by_us().or(own),
            _ => own.or_else(by_us),
        }
    }

    fn own_failure(&self, rank: &RankState) -> Option<FailureCause> {
        if let Some(what) = &rank.broken {
            return Some(FailureCause::Protocol(what.clone()));
        }
        match rank.exit? {
            Exit::Signal(_) if rank.killed || rank.never_began() => None,
            Exit::Signal(signal) => Some(FailureCause::Signalled(signal)),
            Exit::Code(0) if rank.finished => None,
            Exit::Code(85) if rank.suspended == Some(false) => None,
            Exit::Code(86) if rank.suspended == Some(true) => None,
            Exit::Code(code @ (0 | 85 | 86)) => Some(FailureCause::Unannounced(code)),
            Exit::Code(code) => Some(FailureCause::Exited { code, reported: rank.failed.clone() }),
        }
    }

    fn failure(&self, index: usize, cause: FailureCause) -> Outcome {
        let rank = &self.ranks[index];
        Outcome::Failed(Box::new(Failure {
            rank: self.global(index),
            cause,
            step: Step(rank.step),
            operation: rank.operation.clone(),
            log: PathBuf::new(),
            log_tail: Vec::new(),
        }))
    }

    fn message(&mut self, now: Duration, index: usize, body: Option<Body>) {
        let Some(body) = body else {
            return self.broken(now, index, "sent a message without content".into());
        };
        if let Body::Ready(ready) = &body {
            if let Some(what) = self.mismatch(index, ready) {
                return self.broken(now, index, what);
            }
        } else if !self.ranks[index].ready && !matches!(body, Body::Failed(_)) {
            return self.broken(now, index, "spoke before it said that it is ready".into());
        }
        let rank = &mut self.ranks[index];
        match &body {
            Body::Ready(_) => rank.ready = true,
            Body::StepDone(done) => {
                rank.step = done.step;
                rank.operation.clear();
            }
            Body::Operation(operation) => rank.operation.clone_from(&operation.what),
            Body::Suspended(suspended) => {
                rank.step = suspended.step;
                rank.suspended = Some(suspended.stay_stopped);
            }
            Body::Finished(finished) => {
                rank.step = finished.step;
                rank.finished = true;
            }
            Body::Failed(failed) => rank.failed = Some(failed.clone()),
            Body::Evaluated(_) | Body::Saved(_) | Body::Sample(_) | Body::Note(_) => {}
        }
        let rank = self.global(index);
        self.actions.push(Action::Emit(Event::Said { rank, body }));
    }

    fn mismatch(&self, index: usize, ready: &Ready) -> Option<String> {
        let (rank, attempt) = (self.global(index), self.setup.attempt);
        if ready.build_id != self.setup.build_id {
            Some(format!("is of build {}, this program of {}", ready.build_id, self.setup.build_id))
        } else if (ready.rank, ready.attempt) != (rank.0, attempt.0) {
            Some(format!(
                "says that it is rank {} of attempt {}; it was started for attempt {attempt}",
                ready.rank, ready.attempt
            ))
        } else {
            None
        }
    }

    fn broken(&mut self, now: Duration, index: usize, what: String) {
        self.ranks[index].broken.get_or_insert(what);
        self.kill(index);
        self.failed(now, index);
    }

    fn exited(&mut self, now: Duration, index: usize, exit: Exit) {
        self.ranks[index].exit = Some(exit);
        if self.ranks[index].never_began() {
            (0..self.ranks.len()).for_each(|index| self.kill(index));
        }
        if self.own_failure(&self.ranks[index]).is_some() {
            self.failed(now, index);
        }
    }

    /// Notes that a rank failed; the others follow after [`FAIL_GRACE`].
    fn failed(&mut self, now: Duration, index: usize) {
        if self.killed_for.is_none() {
            self.failing_since.get_or_insert(now);
        }
        let before = self.ranks.iter().filter(|rank| rank.failed_nth.is_some()).count();
        self.ranks[index].failed_nth.get_or_insert(before);
    }

    fn suspend(&mut self, now: Duration, stay_stopped: bool, reason: SuspendReason) {
        match &mut self.suspend {
            Some(suspend) if suspend.stay_stopped || !stay_stopped => return,
            Some(suspend) => suspend.stay_stopped = true,
            None => {
                let next_report = now + self.setup.report_after;
                self.suspend = Some(SuspendState { stay_stopped, since: now, next_report });
            }
        }
        self.actions.push(Action::Emit(Event::Suspending { stay_stopped, reason }));
        self.tell_all(to_rank::Body::Suspend(Suspend { stay_stopped }));
    }

    fn tick(&mut self, now: Duration) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.kill_all(FailureCause::DeadlinePassed);
        }
        for index in 0..self.ranks.len() {
            let rank = &self.ranks[index];
            let closed = rank.closed_at.is_some_and(|at| now >= at + CLOSED_GRACE);
            if closed && rank.exit.is_none() && !rank.killed {
                self.broken(now, index, "closed its socket and lives on".into());
            }
        }
        if self.failing_since.is_some_and(|since| now >= since + FAIL_GRACE) {
            (0..self.ranks.len()).for_each(|index| self.kill(index));
        }
        self.report_who_is_late(now);
    }

    fn report_who_is_late(&mut self, now: Duration) {
        let Some(suspend) = &mut self.suspend else { return };
        if now < suspend.next_report {
            return;
        }
        suspend.next_report = now + self.setup.report_after;
        let waited = now - suspend.since;
        let late = |rank: &&RankState| rank.suspended.is_none() && rank.exit.is_none();
        let ranks: Vec<_> = (0..)
            .zip(&self.ranks)
            .filter(|(_, rank)| late(rank))
            .map(|(index, rank)| (self.global(index), Step(rank.step), rank.operation.clone()))
            .collect();
        if !ranks.is_empty() {
            self.actions.push(Action::Emit(Event::NotAtBoundary { ranks, waited }));
        }
    }

    fn kill_all(&mut self, cause: FailureCause) {
        self.killed_for.get_or_insert(cause);
        (0..self.ranks.len()).for_each(|index| self.kill(index));
    }

    fn kill(&mut self, index: usize) {
        let rank = &mut self.ranks[index];
        if rank.exit.is_none() && !rank.killed {
            rank.killed = true;
            self.actions.push(Action::Kill(index));
        }
    }

    fn tell_all(&mut self, body: to_rank::Body) {
        for index in 0..self.ranks.len() {
            if self.ranks[index].exit.is_none() {
                self.actions.push(Action::Send(index, ToRank { body: Some(body) }));
            }
        }
    }

    fn global(&self, index: usize) -> Rank {
        Rank(self.setup.first_rank.0 + index as u64)
    }
}

#[cfg(test)]
mod tests;
