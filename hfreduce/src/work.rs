//! The working thread of a reducer: jobs run one after the other, in the order in which they were started.
//!
//! Whoever waits for a job helps: if the working thread has not taken it yet, the waiting thread does. A wait right
//! after the start thus costs no change of threads.

use crate::bucket::Inner;
use crate::error::{Error, Result};
use crate::reducer::{Machine, What};
use lampyris_comm::Streamed;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Jobs that wait. More make the caller wait: buckets are far fewer.
const QUEUE: usize = 256;

/// One reduction.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) inner: Arc<Inner>,
    pub(crate) what: What,
    pub(crate) shards: Vec<Range<usize>>,
    pub(crate) generation: u32,
    pub(crate) until: Instant,
    pub(crate) outcome: Arc<Outcome>,
}

/// When a job's local part ended, and how; what it returns still runs between the nodes.
type Ended = (Instant, Result<Option<Streamed>>);

/// What became of a job's local part.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    result: Mutex<Option<Ended>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Shared {
    machine: Arc<Machine>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Held while a job runs: keeps their order.
    turn: Mutex<()>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closing: bool,
}

/// The thread and its queue. Ends when dropped, after the jobs it has.
#[derive(Debug)]
pub(crate) struct Work {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Where a waiting thread helps.
#[derive(Debug)]
pub(crate) struct Door(Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    pub(crate) fn start(machine: Arc<Machine>) -> Result<Self> {
        let (queue, changed, turn) = (Mutex::default(), Condvar::new(), Mutex::default());
        let shared = Arc::new(Shared { machine, queue, changed, turn });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("hfreduce".into())
            .spawn(move || worker.serve())
            .map_err(|e| Error::Comm(lampyris_comm::Error::io("starting a reducer", e)))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn push(&self, job: Job) {
        let mut queue = lock(&self.shared.queue);
        while queue.jobs.len() >= QUEUE {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.changed.notify_all();
    }

    pub(crate) fn door(&self) -> Door {
        Door(Arc::clone(&self.shared))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        lock(&self.shared.queue).closing = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the reducer's thread panicked");
        }
    }
}

impl Shared {
    fn serve(&self) {
        loop {
            let mut queue = lock(&self.queue);
            while queue.jobs.is_empty() {
                if queue.closing {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            drop(queue);
            self.run_next(lock(&self.turn));
        }
    }

    /// Runs the oldest job, if it is still there.
    fn run_next(&self, turn: MutexGuard<'_, ()>) {
        let job = lock(&self.queue).jobs.pop_front();
        self.changed.notify_all();
        if let Some(job) = job {
            let run = std::panic::AssertUnwindSafe(|| self.machine.run(&job));
            let result = std::panic::catch_unwind(run)
                .unwrap_or_else(|_| Err(Error::Invalid("the reducer panicked".into())));
            *lock(&job.outcome.result) = Some((Instant::now(), result));
            job.outcome.changed.notify_all();
        }
        drop(turn);
    }
}

impl Door {
    /// Waits for a job's local part, helping. Says when it ended.
    pub(crate) fn finish(&self, outcome: &Outcome) -> Result<(Instant, Option<Streamed>)> {
        loop {
            if let Some((ended, result)) = lock(&outcome.result).take() {
                return Ok((ended, result?));
            }
            if let Ok(turn) = self.0.turn.try_lock() {
                self.0.run_next(turn);
                continue;
            }
            let result = lock(&outcome.result);
            if result.is_none() {
                // The thread that holds the turn publishes; the time-out only covers that it just took another job.
                let nap = Duration::from_millis(1);
                drop(outcome.changed.wait_timeout(result, nap));
            }
        }
    }
}
