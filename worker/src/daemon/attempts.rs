//! The attempts that a node knows: those whose shim lives, and those that have ended and that the scheduler has not yet
//! told to forget.

use super::fitness::failure;
use super::link::{Link, Order};
use super::service::{News, Options};
use crate::launch::{Folder, Launch};
use crate::shim::control;
use lampyris_proto::v1::failure::Class;
use lampyris_proto::v1::{self, outcome::Kind};
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A job and its attempt.
pub(super) type Key = (JobId, Attempt);

/// What is known of one attempt.
pub(super) struct Known {
    pub(super) run_dir: PathBuf,
    pub(super) state: State,
}

pub(super) enum State {
    Running { link: Link, progress: v1::Progress },
    Ended(v1::Outcome),
}

/// All attempts of a node.
pub(super) struct Attempts {
    folder: PathBuf,
    known: BTreeMap<Key, Known>,
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
        fs::create_dir_all(&folder)?;
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
        let run_dir = launch.run_dir.clone();
        let state = self.running(folder, launch);
        self.known.insert(key, Known { run_dir, state });
    }

    fn running(&self, folder: Folder, launch: Launch) -> State {
        let lease = self.lease.subscribe();
        let link = Link::open(folder, launch, lease, self.period, self.news.clone());
        State::Running { link, progress: v1::Progress::default() }
    }

    fn folder_of(&self, key: Key) -> Folder {
        Folder::new(self.folder.join(format!("{}.{}", key.0, key.1)))
    }

    /// Starts what is asked for, unless it is known, and gives what there is to say.
    pub(super) fn start(
        &mut self,
        options: &Options,
        asked: &v1::StartAttempt,
        unfit: Option<v1::Failure>,
    ) -> v1::worker_message::Body {
        let key = (JobId(asked.job), Attempt(asked.attempt));
        if self.known.contains_key(&key) {
            return self.word(key);
        }
        let newest = self.known.keys().filter(|known| known.0 == key.0).max();
        let stale = newest.filter(|newest| **newest > key).map(|newest| {
            failure(Class::Infrastructure, format!("attempt {} of the job is newer", newest.1))
        });
        let run = asked.run.clone().unwrap_or_default();
        let outcome = match stale.or(unfit) {
            Some(failure) => Err(failure),
            None => self.spawn(options, key, asked, &run),
        };
        let state = match outcome {
            Ok(state) => state,
            Err(failure) => {
                tracing::warn!(job = %key.0, attempt = %key.1, "not started: {}", failure.message);
                State::Ended(v1::Outcome { kind: Some(Kind::Failed(failure)) })
            }
        };
        self.known.insert(key, Known { run_dir: run.run_dir.into(), state });
        self.word(key)
    }

    fn spawn(
        &self,
        options: &Options,
        key: Key,
        asked: &v1::StartAttempt,
        run: &v1::RunSpec,
    ) -> Result<State, v1::Failure> {
        let launch = Launch {
            job: key.0,
            attempt: key.1,
            run_attempt: Attempt(run.attempt_base + key.1.0),
            run_dir: run.run_dir.clone().into(),
            dataset: run.dataset.clone().into(),
            rank_program: options.rank_program.clone(),
            build_id: run.build_id.clone(),
            node_name: options.node.clone(),
            nodes: asked.nodes.len().max(1) as u64,
            node: u64::from(asked.node_index),
            ranks_per_node: u64::from(run.ranks_per_node.max(1)),
            host: options.host,
            deadline_ns: self.lease.borrow().as_nanos().try_into().unwrap_or(u64::MAX),
            log_bytes: options.log_bytes,
        };
        let folder = self.folder_of(key);
        let begin = || {
            if launch.node == 0 {
                // What made the attempt before stop is done with. Here and not in the shim, whose start a new request
                // may overtake.
                control::clear_suspend(&launch.run_dir)?;
            }
            folder.create(&launch)?;
            let lock = folder.try_lock()?.ok_or(io::ErrorKind::WouldBlock)?;
            let log = fs::File::create(folder.path().join("shim.log"))?;
            let mut command = Command::new(&options.shim_command[0]);
            let child = command
                .args(&options.shim_command[1..])
                .arg(folder.path())
                .stdin(Stdio::from(lock))
                .stdout(Stdio::null())
                .stderr(Stdio::from(log))
                .spawn()?;
            tracing::info!(job = %key.0, attempt = %key.1, pid = child.id(), "started a shim");
            reap(child);
            io::Result::Ok(())
        };
        begin().map_err(|error| {
            folder.remove();
            failure(Class::NodeUnfit, format!("cannot start a shim: {error}"))
        })?;
        Ok(self.running(folder, launch))
    }

    /// What the scheduler should hear of a known attempt.
    fn word(&self, key: Key) -> v1::worker_message::Body {
        let (job, attempt) = (key.0.0, key.1.0);
        match self.known.get(&key).map(|known| &known.state) {
            Some(State::Running { .. }) => {
                v1::worker_message::Body::AttemptStarted(v1::AttemptStarted { job, attempt })
            }
            Some(State::Ended(outcome)) => {
                let outcome = Some(outcome.clone());
                v1::worker_message::Body::AttemptEnded(v1::AttemptEnded { job, attempt, outcome })
            }
            // Whatever it was, nothing of it lives here.
            None => {
                let kind = Some(Kind::Killed(v1::outcome::Killed {}));
                let outcome = Some(v1::Outcome { kind });
                v1::worker_message::Body::AttemptEnded(v1::AttemptEnded { job, attempt, outcome })
            }
        }
    }

    /// Asks an attempt to checkpoint and stay stopped; says something only if it does not run.
    pub(super) fn suspend(&self, key: Key, reason: &str) -> Option<v1::worker_message::Body> {
        let Some(Known { run_dir, state: State::Running { link, .. } }) = self.known.get(&key)
        else {
            return Some(self.word(key));
        };
        if let Err(error) = control::request_suspend(run_dir, reason) {
            tracing::warn!(%error, job = %key.0, "cannot write control/suspend.json");
            link.order(Order::Suspend);
        }
        None
    }

    /// Kills an attempt; says something only if it does not run.
    pub(super) fn kill(&self, key: Key) -> Option<v1::worker_message::Body> {
        match self.known.get(&key).map(|known| &known.state) {
            Some(State::Running { link, .. }) => {
                link.order(Order::Kill);
                None
            }
            _ => Some(self.word(key)),
        }
    }

    /// Removes all trace of an attempt that has ended.
    pub(super) fn forget(&mut self, key: Key) {
        if self.known.get(&key).is_some_and(|known| matches!(known.state, State::Ended(_))) {
            self.known.remove(&key);
            self.folder_of(key).remove();
        }
    }

    /// Notes how far an attempt is.
    pub(super) fn progressed(&mut self, key: Key, now: v1::Progress) {
        if let Some(Known { state: State::Running { progress, .. }, .. }) = self.known.get_mut(&key)
        {
            *progress = now;
        }
    }

    /// Notes how an attempt ended, and gives the word of it.
    pub(super) fn ended(&mut self, key: Key, outcome: v1::Outcome) -> v1::worker_message::Body {
        if let Some(known) = self.known.get_mut(&key) {
            known.state = State::Ended(outcome);
        }
        self.word(key)
    }

    /// The right of all shims to go on, until `until` on CLOCK_BOOTTIME.
    pub(super) fn extend_leases(&self, until: Duration) {
        self.lease.send_replace(until);
    }

    /// For a registration.
    pub(super) fn report(&self) -> Vec<v1::ReportedAttempt> {
        let report = |(key, known): (&Key, &Known)| v1::ReportedAttempt {
            job: key.0.0,
            attempt: key.1.0,
            outcome: match &known.state {
                State::Running { .. } => None,
                State::Ended(outcome) => Some(outcome.clone()),
            },
        };
        self.known.iter().map(report).collect()
    }

    /// For a heartbeat.
    pub(super) fn progress(&self) -> Vec<v1::AttemptProgress> {
        let progress = |(key, known): (&Key, &Known)| match &known.state {
            State::Running { progress, .. } => Some(v1::AttemptProgress {
                job: key.0.0,
                attempt: key.1.0,
                progress: Some(progress.clone()),
            }),
            State::Ended(_) => None,
        };
        self.known.iter().filter_map(progress).collect()
    }

    /// Whether the shim of an attempt lives.
    pub(super) fn is_running(&self, key: Key) -> bool {
        self.known.get(&key).is_some_and(|known| matches!(known.state, State::Running { .. }))
    }
}

/// Waits for a shim in a thread of its own, so that no zombie stays.
fn reap(mut child: std::process::Child) {
    std::thread::spawn(move || child.wait().ok());
}
