//! The working thread of a reducer: jobs run one after the other, in the order in which they were started.
//!
//! A job is any closure; what it does is its owner's business. Whoever waits for a job helps: if the working thread has
//! not taken it yet, the waiting thread does. A wait right after the start thus costs no change of threads.

use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most jobs that wait for their turn. One more makes the caller wait: buckets are far fewer.
const QUEUE: usize = 256;

/// Sleep of a waiting thread that could not help: another job may hold the turn, and then nobody wakes the sleeper.
const NAP: Duration = Duration::from_millis(1);

/// The thread and its queue. Dropping it runs the jobs that still wait, then ends the thread.
pub(crate) struct Worker<T> {
    shared: Arc<Shared<T>>,
    thread: Option<JoinHandle<()>>,
}

/// The right to wait for one job.
pub(crate) struct Ticket<T> {
    shared: Arc<Shared<T>>,
    outcome: Arc<Outcome<T>>,
}

/// The end of a job.
#[derive(Debug)]
pub(crate) struct Ended<T> {
    /// When it ended.
    pub(crate) at: Instant,
    /// What the job returned.
    pub(crate) value: T,
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
    /// Held while a job runs: this keeps the jobs in order.
    turn: Mutex<()>,
}

struct Queue<T> {
    jobs: VecDeque<Job<T>>,
    closing: bool,
}

struct Job<T> {
    run: Box<dyn FnOnce() -> T + Send>,
    outcome: Arc<Outcome<T>>,
}

/// Where a job leaves its end for the holder of its ticket.
struct Outcome<T> {
    ended: Mutex<Option<Result<Ended<T>>>>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + 'static> Worker<T> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system starts no further thread.
    pub(crate) fn start(name: &str) -> Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), closing: false });
        let shared = Arc::new(Shared { queue, changed: Condvar::new(), turn: Mutex::default() });
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || served.serve())
            .map_err(|error| lampyris_comm::Error::io("starting the thread of a reducer", error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Puts a job behind all others. Waits while [`QUEUE`] jobs are before it.
    pub(crate) fn push(&self, run: impl FnOnce() -> T + Send + 'static) -> Ticket<T> {
        let outcome = Arc::new(Outcome { ended: Mutex::new(None), changed: Condvar::new() });
        let job = Job { run: Box::new(run), outcome: Arc::clone(&outcome) };
        let mut queue = lock(&self.shared.queue);
        while queue.jobs.len() >= QUEUE {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.changed.notify_all();
        Ticket { shared: Arc::clone(&self.shared), outcome }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        lock(&self.shared.queue).closing = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of a reducer panicked");
        }
    }
}

impl<T> Shared<T> {
    /// The life of the thread.
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

    /// Runs the oldest job, if nobody has taken it meanwhile.
    fn run_next(&self, turn: MutexGuard<'_, ()>) {
        let job = lock(&self.queue).jobs.pop_front();
        self.changed.notify_all();
        if let Some(Job { run, outcome }) = job {
            let ended = match std::panic::catch_unwind(AssertUnwindSafe(run)) {
                Ok(value) => Ok(Ended { at: Instant::now(), value }),
                Err(_) => Err(Error::Panicked),
            };
            *lock(&outcome.ended) = Some(ended);
            outcome.changed.notify_all();
        }
        drop(turn);
    }
}

impl<T> Ticket<T> {
    /// Waits for the end of the job, and helps: runs jobs on the calling thread while nobody else does.
    ///
    /// # Errors
    /// When the job panicked.
    pub(crate) fn wait(self) -> Result<Ended<T>> {
        loop {
            if let Some(ended) = lock(&self.outcome.ended).take() {
                return ended;
            }
            if let Ok(turn) = self.shared.turn.try_lock() {
                self.shared.run_next(turn);
                continue;
            }
            let ended = lock(&self.outcome.ended);
            if ended.is_none() {
                drop(self.outcome.changed.wait_timeout(ended, NAP));
            }
        }
    }
}

impl<T> std::fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = lock(&self.shared.queue).jobs.len();
        f.debug_struct("Worker").field("waiting", &waiting).finish_non_exhaustive()
    }
}

impl<T> std::fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ended = lock(&self.outcome.ended).is_some();
        f.debug_struct("Ticket").field("ended", &ended).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_in_order_whoever_waits_for_which() {
        let worker = Worker::start("test").expect("a thread");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let push = |number: usize| {
            let seen = Arc::clone(&seen);
            worker.push(move || lock(&seen).push(number))
        };
        let mut tickets: Vec<_> = (0..100).map(push).collect();
        tickets.pop().expect("a hundred").wait().expect("the last job ran");
        assert_eq!(*lock(&seen), (0..100).collect::<Vec<_>>());
        for ticket in tickets {
            ticket.wait().expect("the others ran before it");
        }
    }

    #[test]
    fn a_panic_is_the_error_of_its_job_alone() {
        let worker = Worker::start("test").expect("a thread");
        let bad = worker.push(|| if true { panic!("on purpose") } else { 0 });
        let good = worker.push(|| 7);
        assert!(matches!(bad.wait(), Err(Error::Panicked)));
        assert_eq!(good.wait().expect("the thread goes on").value, 7);
    }

    #[test]
    fn dropping_it_runs_what_still_waits() {
        let worker = Worker::start("test").expect("a thread");
        let gate = Arc::new(std::sync::Barrier::new(2));
        let behind = Arc::clone(&gate);
        let first = worker.push(move || {
            behind.wait();
            1
        });
        let second = worker.push(|| 2);
        gate.wait();
        drop(worker);
        assert_eq!(first.wait().expect("ran").value, 1);
        assert_eq!(second.wait().expect("ran").value, 2);
    }
}
