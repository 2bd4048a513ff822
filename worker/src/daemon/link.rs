//! The daemon's end of one shim: passes lease and orders on, asks how far the ranks are, and finds out how it ended,
//! whoever killed what.

use super::fitness::failure;
use super::service::News;
use crate::launch::{Folder, Launch};
use crate::shim::control;
use lampyris_proto::frame::{self, Decoder};
use lampyris_proto::v1::failure::Class;
use lampyris_proto::v1::{self, FromShim, ToShim};
use std::io::{self, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// Orders that may wait for a shim; a full queue means that it hangs, and then the lease ends it.
const ORDER_LIMIT: usize = 8;

/// How long a shim that was told to kill its ranks may take before it is killed with them.
const KILL_GRACE: Duration = Duration::from_secs(3);

/// How long the shim's process may take to be there: programs come from cold network disks.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long an answer may take; a shim that is stopped is asked again later.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long processes may take to vanish after SIGKILL before it is said aloud.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at a socket or a lock that is not there yet.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// How an attempt is told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// By `control/suspend.json`, which all nodes see.
    Suspend {
        reason: String,
    },
    Kill,
}

/// Speaks to one shim.
#[derive(Debug)]
pub(super) struct Link {
    orders: mpsc::Sender<Order>,
}

impl Link {
    /// Begins to watch the shim of `folder`, which has just been started or was found.
    pub(super) fn open(
        folder: Folder,
        launch: Launch,
        lease: watch::Receiver<Duration>,
        period: Duration,
        news: mpsc::Sender<News>,
    ) -> Link {
        let (orders, receiver) = mpsc::channel(ORDER_LIMIT);
        let (kill_at, requests) = (None, JoinSet::new());
        let watch =
            Watch { folder, launch, lease, period, orders: receiver, news, kill_at, requests };
        tokio::spawn(watch.run());
        Link { orders }
    }

    /// Passes an order on. One that finds no room is as good as one that is not heard.
    pub(super) fn order(&self, order: Order) {
        if let Err(error) = self.orders.try_send(order) {
            tracing::warn!(%error, "the shim takes no more orders");
        }
    }
}

struct Watch {
    folder: Folder,
    launch: Launch,
    lease: watch::Receiver<Duration>,
    period: Duration,
    orders: mpsc::Receiver<Order>,
    news: mpsc::Sender<News>,
    /// Set once it was told to kill its ranks: when it is killed itself.
    kill_at: Option<Instant>,
    /// Requests to suspend that are being written: the run directory's disk may be slow.
    requests: JoinSet<io::Result<()>>,
}

impl Watch {
    async fn run(mut self) {
        if let Err(error) = self.speak().await {
            tracing::debug!(job = %self.launch.job, %error, "the shim's socket is closed");
        }
        let outcome = self.outcome().await;
        // A request that is written after the end is known would stop the next attempt.
        while self.requests.join_next().await.is_some() {}
        let key = (self.launch.job, self.launch.attempt);
        // Nobody reads when the daemon ends; the next one finds the folder.
        self.news.send(News::Ended(key, outcome)).await.ok();
    }

    /// Speaks to the shim until it is gone.
    async fn speak(&mut self) -> io::Result<()> {
        let Some(mut socket) = self.connect().await? else { return Ok(()) };
        let mut decoder = Decoder::default();
        let mut beat = interval(self.period);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let kill_at = self.kill_at;
            let mut message = ToShim::default();
            let kill_due = async {
                match kill_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = beat.tick() => {}
                changed = self.lease.changed() => {
                    changed.map_err(|_| ErrorKind::BrokenPipe)?;
                }
                Some(written) = self.requests.join_next() => match written {
                    Ok(Ok(())) => continue,
                    failed => {
                        tracing::warn!(job = %self.launch.job, ?failed, "no control/suspend.json");
                        message.suspend = true;
                    }
                },
                Some(order) = self.orders.recv() => match order {
                    Order::Suspend { reason } => {
                        let run_dir = self.launch.run_dir.clone();
                        let write = move || control::request_suspend(&run_dir, &reason);
                        self.requests.spawn_blocking(write);
                        continue;
                    }
                    Order::Kill => {
                        message.kill = true;
                        self.kill_at.get_or_insert_with(|| Instant::now() + KILL_GRACE);
                    }
                },
                () = kill_due => return Ok(()),
            }
            let until = *self.lease.borrow_and_update();
            message.deadline_boottime_ns = until.as_nanos().try_into().unwrap_or(u64::MAX);
            let killed = self.kill_at.is_some();
            let limit = if killed { KILL_GRACE } else { ANSWER_LIMIT };
            match timeout(limit, exchange(&mut socket, &mut decoder, &message)).await {
                Ok(answer) => self.tell(answer?),
                Err(_) if killed => return Ok(()),
                // Its answers would be late ever after: begin anew.
                Err(_) => {
                    tracing::warn!(job = %self.launch.job, "the shim does not answer");
                    decoder = Decoder::default();
                    match self.connect().await? {
                        Some(again) => socket = again,
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    fn tell(&self, answer: FromShim) {
        let key = (self.launch.job, self.launch.attempt);
        if let Some(progress) = answer.progress {
            // A daemon that is busy gets the next one.
            self.news.try_send(News::Progress(key, progress)).ok();
        }
    }

    /// The socket of the shim, `None` if its process is gone.
    async fn connect(&self) -> io::Result<Option<UnixStream>> {
        let until = Instant::now() + START_LIMIT;
        loop {
            // Before the socket: a shim that ends between the two is still seen.
            let gone = self.folder.try_lock()?.is_some();
            let (_folder, path) = self.folder.socket()?;
            match UnixStream::connect(&path).await {
                _ if gone => return Ok(None),
                Ok(socket) => return Ok(Some(socket)),
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => sleep(LOOK_PERIOD).await,
            }
        }
    }

    /// How it ended. No process of it lives when this returns, save one that even the kernel cannot end.
    async fn outcome(&mut self) -> v1::Outcome {
        let folder = self.folder.clone();
        let job = self.launch.job;
        let end = move || {
            let until = std::time::Instant::now() + KILL_GRACE;
            // A shim that has closed its socket by itself needs a moment to be gone.
            while !is_gone(&folder) && std::time::Instant::now() < until {
                std::thread::sleep(LOOK_PERIOD);
            }
            loop {
                let ended = folder.processes().is_none_or(|processes| processes.end(END_LIMIT));
                if ended && is_gone(&folder) {
                    return folder.outcome();
                }
                tracing::error!(%job, "processes do not end after SIGKILL; waiting");
                std::thread::sleep(LOOK_PERIOD);
            }
        };
        let outcome = tokio::task::spawn_blocking(end).await.ok().flatten();
        outcome.unwrap_or_else(|| {
            let kind = match self.kill_at.is_some() {
                true => v1::outcome::Kind::Killed(v1::outcome::Killed {}),
                false => v1::outcome::Kind::Failed(failure(
                    Class::Infrastructure,
                    "its shim died without a word".into(),
                )),
            };
            v1::Outcome { kind: Some(kind), progress: None }
        })
    }
}

/// Whether the shim's process is gone.
fn is_gone(folder: &Folder) -> bool {
    matches!(folder.try_lock(), Ok(Some(_)))
}

async fn exchange(
    socket: &mut UnixStream,
    decoder: &mut Decoder,
    message: &ToShim,
) -> io::Result<FromShim> {
    let broken = |error: frame::FrameError| io::Error::new(ErrorKind::InvalidData, error);
    socket.write_all(&frame::encode(message).map_err(broken)?).await?;
    let mut bytes = vec![0; 16 << 10];
    loop {
        if let Some(answer) = decoder.next_message().map_err(broken)? {
            return Ok(answer);
        }
        match socket.read(&mut bytes).await? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => decoder.push(&bytes[..count]),
        }
    }
}
