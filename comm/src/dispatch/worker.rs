//! The threads behind a dispatcher: one packs and starts exchanges, the other waits for them, forwards and scatters, so
//! that the caller only waits, and the next exchange is under way before the one before it has arrived.
//!
//! Jobs begin in the order of the calls, which is the same on all members, and end in that order. Up to [`AHEAD`] are
//! in flight. A beginning waits for ends of older jobs only, and an end for the same job on its peers: no two members ever
//! wait for each other. A job whose end takes several rounds with its peers runs alone.

use crate::completion::Completion;
use crate::error::{Error, Result};
use std::any::Any;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Jobs that have begun and not ended, without one more that has begun and waits to be handed over.
const AHEAD: usize = 4;

/// Jobs that wait; further calls wait too.
const QUEUE: usize = 64;

/// Staging buffers kept for the next job.
const SPARE: usize = 2 * AHEAD;

/// The second half of a job: waits for what the first has started.
pub(super) type Finish = Box<dyn FnOnce(&Staging) + Send>;

/// A call on its way to the threads.
pub(super) struct Job {
    /// What must be known before it begins.
    pub(super) after: After,
    pub(super) begin: Box<dyn FnOnce(&Staging) -> Finish + Send>,
}

/// What a job's beginning needs of older ones.
#[derive(Debug)]
pub(super) enum After {
    /// Nothing.
    Nothing,
    /// The end of this one.
    End(Arc<Completion>),
    /// The end of all, and its own before anything later begins.
    All,
}

/// Buffers that go round, so that their pages are not faulted in again for every job.
#[derive(Debug, Default)]
pub(super) struct Staging(Mutex<Vec<Vec<u8>>>);

impl Staging {
    /// A buffer of this length, with any contents.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.spare().pop().unwrap_or_default();
        if buffer.len() < bytes {
            // Not `resize` alone: it would copy the old contents to the new place.
            buffer.clear();
            buffer.resize(bytes, 0);
        }
        buffer
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.spare();
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the caller: an error unless something better is given.
pub(super) struct Ending(pub(super) Arc<Completion>);

impl Ending {
    pub(super) fn give<T: Any + Send>(self, result: Result<T>) {
        match result {
            Ok(buffer) => self.0.give(Box::new(buffer)),
            Err(error) => self.0.set(Err(error)),
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // The first result counts: nothing happens when there is one.
        self.0.set(Err(Error::Invalid("the dispatch thread has ended".into())));
    }
}

/// The threads. They end, after their last job, when dropped.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("after", &self.after).finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn start(name: &str) -> Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        let (begun, ends) = sync_channel(AHEAD - 1);
        let staging = Arc::new(Staging::default());
        let mut worker = Self { jobs: Some(jobs), threads: Vec::new() };
        let also = Arc::clone(&staging);
        worker.spawn(format!("{name}-end"), move || end(&ends, &staging))?;
        worker.spawn(format!("{name}-begin"), move || begin(&queue, &begun, &also))?;
        Ok(worker)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name).spawn(run);
        let failed = |source| Error::io("starting a dispatch thread", source);
        self.threads.push(thread.map_err(failed)?);
        Ok(())
    }

    /// Hands a job over. When the threads are gone, the job's [`Ending`] tells its caller.
    pub(super) fn push(&self, job: Job) {
        let sender = self.jobs.as_ref().expect("there until dropped");
        drop(sender.send(job));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a dispatch thread panicked");
            }
        }
    }
}

fn begin(queue: &Receiver<Job>, begun: &SyncSender<Finish>, staging: &Staging) {
    // Whoever cannot hand a job over drops it, and its `Ending` tells the caller.
    let hand_over = |finish: Finish| drop(begun.send(finish));
    let all_ended = || {
        let (tell, told) = sync_channel::<()>(1);
        hand_over(Box::new(move |_: &Staging| drop(tell)));
        // Disconnected once the sender is dropped.
        let _ended = told.recv();
    };
    for job in queue {
        match job.after {
            After::Nothing => hand_over((job.begin)(staging)),
            After::End(older) => {
                // Its error is also the job's: beginning tells the caller.
                drop(older.wait());
                hand_over((job.begin)(staging));
            }
            After::All => {
                all_ended();
                hand_over((job.begin)(staging));
                all_ended();
            }
        }
    }
}

fn end(ends: &Receiver<Finish>, staging: &Staging) {
    for finish in ends {
        finish(staging);
    }
}
