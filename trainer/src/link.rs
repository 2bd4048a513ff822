//! The rank's end of the socket to its shim (`rank.proto`): reports up, suspend and deadline down.

use lampyris_proto::frame;
use lampyris_proto::rank::{FromRank, ToRank, from_rank, to_rank};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;

/// Exit code when the shim is gone: another start may succeed.
const TRY_AGAIN: i32 = 75;

const RUNNING: u8 = 0;
const WANTS_TO_GO_ON: u8 = 1;
const STAY_STOPPED: u8 = 2;

/// Connection to the shim.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    orders: Arc<Orders>,
}

/// What the shim has asked for.
#[derive(Debug)]
struct Orders {
    suspend: AtomicU8,
    /// CLOCK_BOOTTIME in nanoseconds; `u64::MAX` = none.
    deadline_ns: AtomicU64,
}

impl Link {
    /// Takes over the socket that the shim put on standard input, and begins to listen.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    pub fn open() -> std::io::Result<Link> {
        let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        let orders = Arc::new(Orders {
            suspend: AtomicU8::new(RUNNING),
            deadline_ns: AtomicU64::new(u64::MAX),
        });
        let (reader, heard) = (stream.try_clone()?, Arc::clone(&orders));
        thread::spawn(move || listen(reader, &heard));
        Ok(Link { stream, orders })
    }

    /// Sends one message. A shim that is gone ends this process through the listener, so a failure to send is no news.
    pub fn send(&mut self, body: from_rank::Body) {
        frame::write(&mut self.stream, &FromRank { body: Some(body) }).ok();
    }

    /// Some(stay stopped) if a suspend was asked for.
    pub fn suspend(&self) -> Option<bool> {
        match self.orders.suspend.load(Ordering::Acquire) {
            RUNNING => None,
            order => Some(order == STAY_STOPPED),
        }
    }

    /// Whether the deadline has passed: no step and no commit may begin.
    pub fn past_deadline(&self) -> bool {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        now >= self.orders.deadline_ns.load(Ordering::Acquire)
    }
}

/// Follows the shim's orders until it is gone; then this process must not live on.
#[allow(clippy::exit, reason = "a rank without its shim has nobody to answer to")]
fn listen(mut stream: UnixStream, orders: &Orders) {
    while let Ok(Some(message)) = frame::read::<ToRank>(&mut stream) {
        match message.body {
            Some(to_rank::Body::Suspend(suspend)) => {
                let order = if suspend.stay_stopped { STAY_STOPPED } else { WANTS_TO_GO_ON };
                orders.suspend.fetch_max(order, Ordering::AcqRel);
            }
            Some(to_rank::Body::Deadline(deadline)) => {
                orders.deadline_ns.store(deadline.boottime_ns, Ordering::Release);
            }
            None => {}
        }
    }
    std::process::exit(TRY_AGAIN);
}
