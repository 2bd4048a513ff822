//! The attempts that a node knows: those whose shim lives, and those that have ended and that the scheduler has not yet
//! told to forget.

use super::fitness::failure;
use super::link::{Link, Order};
use super::service::{News, Options};
use super::start::Start;
use crate::launch::{Folder, Launch};
use crate::private;
use lampyris_proto::v1::failure::Class;
use lampyris_proto::v1::{self, outcome::Kind};
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A job and its attempt.
pub(super) type Key = (JobId, Attempt);

/// How an attempt stands here.
enum State {
    /// Its shim is being started; what was ordered meanwhile.
    Starting(Vec<Order>),
    Running {
        link: Link,
        progress: v1::Progress,
    },
    Ended(v1::Outcome),
}

/// All attempts of a node.
pub(super) struct Attempts {
    folder: PathBuf,
    known: BTreeMap<Key, State>,
    lease: watch::Sender<Duration>,
    news: mpsc::Sender<News>,
    period: Duration,
}

impl Attempts {
    /// Those whose folders are in `folder`, from daemons before this one.
    pub(super) fn adopt(
        folder: PathBuf,
        period: Duration,
        news: mpsc::Sender<News>,
    ) -> io::Result<Attempts> {
        private::make_folder(&folder)?;
        let (lease, _) = watch::channel(Duration::ZERO);
        let mut attempts =
            Attempts { folder: folder.clone(), known: BTreeMap::new(), lease, news, period };
        for entry in fs::read_dir(folder)? {
            let folder = Folder::new(entry?.path());
            match folder.launch() {
                Ok(launch) => attempts.take_in(folder, launch),
                // Never made whole, so nothing was started from it.
                Err(error) => {
                    tracing::warn!(%error, folder = %folder.path().display(), "not an attempt");
                    folder.remove();
                }
            }
        }
        Ok(attempts)
    }

    fn take_in(&mut self, folder: Folder, launch: Launch) {
        let key = (launch.job, launch.attempt);
        tracing::info!(job = %key.0, attempt = %key.1, "found an attempt of before");
        let state = self.running(folder, launch);
        self.known.insert(key, state);
    }

    fn running(&self, folder: Folder, launch: Launch) -> State {
        let lease = self.lease.subscribe();
        let link = Link::open(folder, launch, lease, self.period, self.news.clone());
        State::Running { link, progress: v1::Progress::default() }
    }

    fn folder_of(&self, key: Key) -> Folder {
        Folder::new(self.folder.join(format!("{}.{}", key.0, key.1)))
    }

    /// Begins to start what is asked for; [`News::Began`] says what came of it. If it is known, gives what there is to say.
    pub(super) fn start(
        &mut self,
        options: &Options,
        asked: v1::StartAttempt,
    ) -> Option<v1::worker_message::Body> {
        let key = (JobId(asked.job), Attempt(asked.attempt));
        if self.known.contains_key(&key) {
            return self.word(key);
        }
        let newest = self.known.keys().filter(|known| known.0 == key.0).max();
        if let Some(newest) = newest.filter(|newest| **newest > key) {
            let message = format!("attempt {} of the job is newer", newest.1);
            return self.refuse(key, failure(Class::Infrastructure, message));
        }
        let launch = match self.launch(options, &asked) {
            Ok(launch) => launch,
            Err(what) => return self.refuse(key, failure(Class::BadRecipe, what)),
        };
        self.known.insert(key, State::Starting(Vec::new()));
        let start = Start {
            folder: self.folder_of(key),
            launch: launch.clone(),
            run: asked.run.unwrap_or_default(),
            shim_command: options.shim_command.clone(),
        };
        let news = self.news.clone();
        tokio::spawn(async move {
            let begun = tokio::task::spawn_blocking(move || start.begin()).await;
            let lost = |error| Err(failure(Class::NodeUnfit, format!("cannot start: {error}")));
            let begun = begun.unwrap_or_else(lost).map(|()| Box::new(launch));
            // Nobody reads when the daemon ends; the next one finds the folder.
            news.send(News::Began(key, begun)).await.ok();
        });
        None
    }

    /// What cannot be started has failed.
    fn refuse(&mut self, key: Key, why: v1::Failure) -> Option<v1::worker_message::Body> {
        tracing::warn!(job = %key.0, attempt = %key.1, "not started: {}", why.message);
        let outcome = v1::Outcome { kind: Some(Kind::Failed(why)), progress: None };
        self.known.insert(key, State::Ended(outcome));
        self.word(key)
    }

    /// What is to be started, unless the scheduler's numbers are none that a start can have.
    fn launch(&self, options: &Options, asked: &v1::StartAttempt) -> Result<Launch, String> {
        let run = asked.run.clone().ok_or("the order to start does not say what to run")?;
        let launch = Launch {
            job: JobId(asked.job),
            attempt: Attempt(asked.attempt),
            run_attempt: run_attempt(&run, asked.attempt)?,
            run_dir: run.run_dir.into(),
            dataset: run.dataset.into(),
            rank_program: options.rank_program.clone(),
            build_id: run.build_id,
            node_name: options.node.clone(),
            nodes: asked.nodes.len() as u64,
            node: u64::from(asked.node_index),
            ranks_per_node: u64::from(run.ranks_per_node.max(1)),
            host: options.host,
            deadline_ns: self.lease.borrow().as_nanos().try_into().unwrap_or(u64::MAX),
            log_bytes: options.log_bytes,
            cores: options.cores.clone(),
            core_share: core_share(options, asked),
        };
        launch.check()?;
        Ok(launch)
    }

    /// Notes what came of a start, passes on what was ordered meanwhile, and gives the word of it.
    pub(super) fn began(
        &mut self,
        key: Key,
        begun: Result<Box<Launch>, v1::Failure>,
    ) -> Option<v1::worker_message::Body> {
        let Some(State::Starting(orders)) = self.known.get_mut(&key) else {
            return None;
        };
        let orders = std::mem::take(orders);
        let state = match begun {
            Ok(launch) => self.running(self.folder_of(key), *launch),
            Err(failure) => {
                tracing::warn!(job = %key.0, attempt = %key.1, "not started: {}", failure.message);
                State::Ended(v1::Outcome { kind: Some(Kind::Failed(failure)), progress: None })
            }
        };
        self.known.insert(key, state);
        for order in orders {
            self.order(key, order);
        }
        self.word(key)
    }

    /// What the scheduler should hear of an attempt; nothing while it is being started.
    fn word(&self, key: Key) -> Option<v1::worker_message::Body> {
        let (job, attempt) = (key.0.0, key.1.0);
        let outcome = match self.known.get(&key) {
            Some(State::Starting(_)) => return None,
            Some(State::Running { .. }) => {
                let started = v1::AttemptStarted { job, attempt };
                return Some(v1::worker_message::Body::AttemptStarted(started));
            }
            Some(State::Ended(outcome)) => outcome.clone(),
            // Whatever it was, nothing of it lives here.
            None => {
                let kind = Some(Kind::Killed(v1::outcome::Killed {}));
                v1::Outcome { kind, progress: None }
            }
        };
        let ended = v1::AttemptEnded { job, attempt, outcome: Some(outcome) };
        Some(v1::worker_message::Body::AttemptEnded(ended))
    }

    /// Tells an attempt to stop; says something only if it does not run.
    pub(super) fn order(&mut self, key: Key, order: Order) -> Option<v1::worker_message::Body> {
        match self.known.get_mut(&key) {
            Some(State::Running { link, .. }) => {
                link.order(order);
                None
            }
            Some(State::Starting(orders)) => {
                // Twice is the same as once: there are two kinds of them.
                orders.retain(|other| {
                    std::mem::discriminant(other) != std::mem::discriminant(&order)
                });
                orders.push(order);
                None
            }
            Some(State::Ended(_)) | None => self.word(key),
        }
    }

    /// Removes all trace of an attempt that has ended.
    pub(super) fn forget(&mut self, key: Key) {
        if self.known.get(&key).is_some_and(|state| matches!(state, State::Ended(_))) {
            self.known.remove(&key);
            self.folder_of(key).remove();
        }
    }

    /// Notes how far an attempt is.
    pub(super) fn progressed(&mut self, key: Key, now: v1::Progress) {
        if let Some(State::Running { progress, .. }) = self.known.get_mut(&key) {
            *progress = now;
        }
    }

    /// Notes how an attempt ended, and gives the word of it.
    pub(super) fn ended(
        &mut self,
        key: Key,
        mut outcome: v1::Outcome,
    ) -> Option<v1::worker_message::Body> {
        if let Some(State::Running { progress, .. }) = self.known.get(&key) {
            // A shim that was killed has left none.
            outcome.progress.get_or_insert_with(|| without_ranks(progress));
        }
        self.known.insert(key, State::Ended(outcome));
        self.word(key)
    }

    /// The right of all shims to go on, until `until` on CLOCK_BOOTTIME.
    pub(super) fn extend_leases(&self, until: Duration) {
        self.lease.send_replace(until);
    }

    /// For a registration.
    pub(super) fn report(&self) -> Vec<v1::ReportedAttempt> {
        let report = |(key, state): (&Key, &State)| v1::ReportedAttempt {
            job: key.0.0,
            attempt: key.1.0,
            outcome: match state {
                State::Starting(_) | State::Running { .. } => None,
                State::Ended(outcome) => Some(outcome.clone()),
            },
        };
        self.known.iter().map(report).collect()
    }

    /// For a heartbeat.
    pub(super) fn progress(&self) -> Vec<v1::AttemptProgress> {
        let progress = |(key, state): (&Key, &State)| match state {
            State::Running { progress, .. } => Some(v1::AttemptProgress {
                job: key.0.0,
                attempt: key.1.0,
                progress: Some(progress.clone()),
            }),
            State::Starting(_) | State::Ended(_) => None,
        };
        self.known.iter().filter_map(progress).collect()
    }

    /// Whether an attempt is not over.
    pub(super) fn lives(&self, key: Key) -> bool {
        self.known.get(&key).is_some_and(|state| !matches!(state, State::Ended(_)))
    }
}

/// Attempt of the run directory: with those from before it was a job.
pub(super) fn run_attempt(run: &v1::RunSpec, attempt: u64) -> Result<Attempt, String> {
    let base = run.attempt_base;
    let sum = base.checked_add(attempt).map(Attempt);
    sum.ok_or_else(|| format!("attempt {attempt} after {base} others is more than can be counted"))
}

/// How many of the node's cores an attempt has: the part that its devices are of all devices.
fn core_share(options: &Options, asked: &v1::StartAttempt) -> usize {
    let devices = options.capacity.devices.max(1) as usize;
    let taken = asked.spec.as_ref().and_then(|spec| spec.devices_per_node);
    let taken = taken.map_or(devices, |taken| devices.min(taken as usize));
    (options.cores.len() * taken / devices).max(1)
}

/// What ranks that have ended were at is of no interest.
fn without_ranks(progress: &v1::Progress) -> v1::Progress {
    v1::Progress { ranks: Vec::new(), ..progress.clone() }
}
