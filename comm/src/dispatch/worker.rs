//! The thread behind a dispatcher: packs, starts exchanges, forwards and scatters, so that its caller only waits.
//!
//! Jobs begin in the order of the calls, which is the same on all members, and end in that order. Up to [`AHEAD`] are
//! in flight: a job's beginning never waits for a peer, so a member that is still ending an older job cannot hold up
//! one that has begun a newer one. The count exchange does wait; it runs alone.

use crate::completion::Completion;
use crate::error::{Error, Result};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

/// Jobs that have begun and not ended.
const AHEAD: usize = 4;

/// Jobs that wait; further calls wait too.
const QUEUE: usize = 64;

/// Staging buffers kept for the next job.
const SPARE: usize = 2 * AHEAD;

/// The second half of a job: waits for what the first has started.
pub(super) type Finish = Box<dyn FnOnce(&mut Staging)>;

/// A call on its way to the thread.
pub(super) struct Job {
    /// Whether everything before must have ended, and this before anything later begins.
    pub(super) alone: bool,
    pub(super) begin: Box<dyn FnOnce(&mut Staging) -> Finish + Send>,
}

/// Buffers that go round, so that their pages are not faulted in again for every job.
#[derive(Debug, Default)]
pub(super) struct Staging(Vec<Vec<u8>>);

impl Staging {
    /// A buffer of this length, with any contents.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.0.pop().unwrap_or_default();
        if buffer.len() < bytes {
            // Not `resize` alone: it would copy the old contents to the new place.
            buffer.clear();
            buffer.resize(bytes, 0);
        }
        buffer
    }

    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        if self.0.len() < SPARE {
            self.0.push(buffer);
        }
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

/// The thread. Ends, after its last job, when dropped.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("alone", &self.alone).finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn start(name: String) -> Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name(name).spawn(move || run(&queue));
        let thread = thread.map_err(|source| Error::io("starting a dispatch thread", source))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Hands a job over. When the thread is gone, the job's [`Ending`] tells its caller.
    pub(super) fn push(&self, job: Job) {
        let sender = self.jobs.as_ref().expect("there until dropped");
        drop(sender.send(job));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a dispatch thread panicked");
        }
    }
}

fn run(queue: &Receiver<Job>) {
    let mut staging = Staging::default();
    let mut begun: VecDeque<Finish> = VecDeque::new();
    loop {
        let next = match begun.len() {
            0 => queue.recv().map_err(|_| TryRecvError::Disconnected),
            AHEAD.. => Err(TryRecvError::Empty),
            _ => queue.try_recv(),
        };
        match next {
            Ok(job) => {
                let alone = job.alone;
                if alone {
                    begun.drain(..).for_each(|finish| finish(&mut staging));
                }
                begun.push_back((job.begin)(&mut staging));
                if alone {
                    begun.drain(..).for_each(|finish| finish(&mut staging));
                }
            }
            Err(error) => match begun.pop_front() {
                Some(finish) => finish(&mut staging),
                None if error == TryRecvError::Disconnected => return,
                None => {}
            },
        }
    }
}
