//! The daemon's one loop: the scheduler's orders in, the node's word out, and what the shims say between.

use super::attempts::{Attempts, Key};
use super::lease::Lease;
use super::link::Order as ToStop;
use super::logs::Readers;
use super::machine;
use crate::client::{Authorized, ClientError, Target};
use crate::cores::CoreList;
use crate::fail_point;
use crate::launch::Launch;
use crate::private;
use crate::processes::boot_id;
use crate::shim::boottime;
use crate::shim::status::host_name;
use lampyris_proto::v1::scheduler_message::Body as Order;
use lampyris_proto::v1::worker_message::Body as Word;
use lampyris_proto::v1::worker_service_client::WorkerServiceClient;
use lampyris_proto::v1::{self, Heartbeat, LogChunk, Register, SchedulerMessage, WorkerMessage};
use lampyris_proto::{Attempt, JobId};
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// Messages to the scheduler that may wait for the network; when it is full the connection is as good as gone.
const OUT_LIMIT: usize = 1024;

/// News of shims and parts of logs that may wait for the loop.
const NEWS_LIMIT: usize = 256;
const CHUNK_LIMIT: usize = 16;

/// How long the scheduler may take to answer a registration.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);

/// How long the scheduler may take to hear a goodbye.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// First and longest wait before the scheduler is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(3);

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node, unique in the cluster.
    pub node: String,
    /// The scheduler.
    pub scheduler: Target,
    /// Folder of this daemon alone; what is in it survives the daemon.
    pub state_dir: PathBuf,
    /// What the node offers.
    pub capacity: v1::Capacity,
    /// The cores on which its attempts compute; each has a share like that of the devices.
    pub cores: CoreList,
    /// Program and arguments that host a shim; the folder of the attempt is added.
    pub shim_command: Vec<OsString>,
    /// The rank program.
    pub rank_program: PathBuf,
    /// Address of this node that other nodes reach.
    pub host: IpAddr,
    /// Size of a rank's log beyond which its older half is given back to the file system.
    pub log_bytes: u64,
    /// How often shims are asked how far their ranks are.
    pub progress_period: Duration,
}

/// Why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Another daemon works here.
    #[error("another worker uses {}", .path.display())]
    StateDirTaken {
        /// The folder.
        path: PathBuf,
    },
    /// The state directory cannot be read or written.
    #[error("cannot use {}: {source}", .path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another worker has this node's name.
    #[error("{what}")]
    NameTaken {
        /// Both, in the scheduler's words.
        what: String,
    },
    /// The address or the token of the scheduler is wrong.
    #[error("{0}")]
    Scheduler(#[from] ClientError),
}

/// Stops a worker. Cheap to clone; when the last one is dropped the worker stops too.
#[derive(Debug, Clone)]
pub struct Handle {
    stop: mpsc::Sender<()>,
}

impl Handle {
    /// Ends the daemon, which tells the scheduler so. What runs goes on until its lease passes, or until another daemon
    /// takes it over.
    pub fn stop(&self) {
        // Full means that it is told already.
        self.stop.try_send(()).ok();
    }
}

/// What a shim has done.
#[derive(Debug)]
pub(super) enum News {
    /// A start has come to its end: what runs now, or why not.
    Began(Key, Result<Box<Launch>, v1::Failure>),
    Progress(Key, v1::Progress),
    Ended(Key, v1::Outcome),
}

/// A worker that is ready to run.
pub struct Service {
    options: Options,
    attempts: Attempts,
    lease: Lease,
    readers: Readers,
    news: mpsc::Receiver<News>,
    chunks: mpsc::Receiver<LogChunk>,
    chunk_sender: mpsc::Sender<LogChunk>,
    stop: mpsc::Receiver<()>,
    instance: String,
    _state_lock: File,
}

/// Why a conversation with the scheduler is over.
enum End {
    Stopped,
    Lost(String),
}

/// One conversation.
struct Session {
    out: mpsc::Sender<WorkerMessage>,
    orders: Streaming<SchedulerMessage>,
    heartbeat: Duration,
    sequence: u64,
}

impl Options {
    /// Takes the state directory and finds what runs in it. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn build(self) -> Result<(Service, Handle), WorkerError> {
        let path = self.state_dir.clone();
        let failed = |source| WorkerError::StateDir { path: path.clone(), source };
        private::make_folder(&path).map_err(failed)?;
        let lock = private::create_file(&path.join("worker.lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(WorkerError::StateDirTaken { path }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let instance = private::instance(&path).map_err(failed)?;
        let (news_sender, news) = mpsc::channel(NEWS_LIMIT);
        let folder = path.join("attempts");
        let attempts =
            Attempts::adopt(folder, self.progress_period, news_sender).map_err(failed)?;
        let (chunk_sender, chunks) = mpsc::channel(CHUNK_LIMIT);
        let (stop_sender, stop) = mpsc::channel(1);
        let service = Service {
            options: self,
            attempts,
            lease: Lease::default(),
            readers: Readers::default(),
            news,
            chunks,
            chunk_sender,
            stop,
            instance,
            _state_lock: lock,
        };
        Ok((service, Handle { stop: stop_sender }))
    }
}

impl Service {
    /// Works until it is told to stop. A scheduler that is not there is waited for.
    ///
    /// # Errors
    /// When trying again does not help: a malformed address, an unreadable token, another worker of this name.
    pub async fn run(mut self) -> Result<(), WorkerError> {
        let mut wait = RETRY_FIRST;
        loop {
            let began = Instant::now();
            let why = match self.session().await? {
                Ok(session) => match self.converse(session).await {
                    End::Stopped => return Ok(()),
                    End::Lost(why) => why,
                },
                Err(why) => why,
            };
            if began.elapsed() > RETRY_LONGEST {
                wait = RETRY_FIRST;
            }
            tracing::warn!(node = %self.options.node, "no scheduler: {why}; trying again");
            let again = Instant::now() + wait;
            wait = (wait * 2).min(RETRY_LONGEST);
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(again) => break,
                    _ = self.stop.recv() => return Ok(()),
                    Some(news) = self.news.recv() => drop(self.heed(news)),
                }
            }
        }
    }

    /// Connects and registers; the inner error is worth another try.
    async fn session(&mut self) -> Result<Result<Session, String>, WorkerError> {
        let client = match self.options.scheduler.worker().await {
            Ok(client) => client,
            Err(error @ ClientError::Connect { .. }) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let registered = timeout(REGISTER_LIMIT, self.register(client)).await;
        Ok(match registered {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(status)) if status.code() == Code::AlreadyExists => {
                return Err(WorkerError::NameTaken { what: status.message().to_string() });
            }
            Ok(Err(status)) => Err(status.message().to_string()),
            Err(_) => Err("it does not answer".into()),
        })
    }

    async fn register(
        &mut self,
        mut client: WorkerServiceClient<Authorized>,
    ) -> Result<Session, Status> {
        let state_dir = self.options.state_dir.clone();
        let found = tokio::task::spawn_blocking(move || machine::hardware(&state_dir)).await.ok();
        let cores = self.options.cores.len() as u32;
        let found = found.map(|found| v1::Hardware { cores: cores.min(found.cores), ..found });
        let register = Register {
            node: self.options.node.clone(),
            boot_id: boot_id(),
            version: env!("CARGO_PKG_VERSION").into(),
            capacity: Some(self.options.capacity.clone()),
            hardware: found,
            attempts: self.attempts.report(),
            instance: self.instance.clone(),
            place: place(&self.options.state_dir),
        };
        let (out, messages) = mpsc::channel(OUT_LIMIT);
        self.lease.reconnected();
        self.readers.stop_all();
        self.lease.sent(0, boottime());
        send(&out, Word::Register(register)).map_err(Status::unavailable)?;
        let mut orders = client.join(ReceiverStream::new(messages)).await?.into_inner();
        let first = orders.message().await?.and_then(|message| message.body);
        let Some(Order::Registered(registered)) = first else {
            return Err(Status::unavailable("it does not answer a registration"));
        };
        tracing::info!(node = %self.options.node, session = registered.session, "registered");
        self.answered(0, registered.lease_ms);
        let heartbeat = Duration::from_millis(registered.heartbeat_ms.max(1));
        Ok(Session { out, orders, heartbeat, sequence: 0 })
    }

    async fn converse(&mut self, mut session: Session) -> End {
        let mut beat = interval(session.heartbeat);
        // A daemon that was stopped for a while owes one heartbeat, not many.
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What ended while nobody listened is in the registration.
        loop {
            let said = tokio::select! {
                _ = self.stop.recv() => {
                    leave(session).await;
                    return End::Stopped;
                }
                _ = beat.tick() => self.heartbeat(&mut session),
                Some(news) = self.news.recv() => match self.heed(news) {
                    Some(word) => send(&session.out, word),
                    None => Ok(()),
                },
                Some(chunk) = self.chunks.recv() => send(&session.out, Word::LogChunk(chunk)),
                order = session.orders.message() => match order {
                    Ok(Some(message)) => self.obey(message, &session.out),
                    Ok(None) => Err("it closed the connection".into()),
                    Err(status) => Err(status.message().to_string()),
                },
            };
            if let Err(why) = said {
                return End::Lost(why);
            }
        }
    }

    fn heartbeat(&mut self, session: &mut Session) -> Result<(), String> {
        session.sequence += 1;
        let sequence = session.sequence;
        self.lease.sent(sequence, boottime());
        let attempts = self.attempts.progress();
        send(&session.out, Word::Heartbeat(Heartbeat { sequence, attempts }))
    }

    fn answered(&mut self, sequence: u64, lease_ms: u64) {
        if let Some(until) = self.lease.answered(sequence, Duration::from_millis(lease_ms)) {
            self.attempts.extend_leases(until);
        }
    }

    /// Takes in what a shim has done; gives what the scheduler must hear at once.
    fn heed(&mut self, news: News) -> Option<Word> {
        match news {
            News::Progress(key, progress) => {
                self.attempts.progressed(key, progress);
                None
            }
            News::Began(key, begun) => {
                fail_point::reached("worker_start");
                self.attempts.began(key, begun)
            }
            News::Ended(key, outcome) => {
                tracing::info!(job = %key.0, attempt = %key.1, ?outcome, "an attempt has ended");
                fail_point::reached("worker_finish");
                self.readers.attempt_ended();
                self.attempts.ended(key, outcome)
            }
        }
    }

    pub(super) fn obey(
        &mut self,
        message: SchedulerMessage,
        out: &mpsc::Sender<WorkerMessage>,
    ) -> Result<(), String> {
        let key = |job, attempt| (JobId(job), Attempt(attempt));
        let word = match message.body {
            Some(Order::HeartbeatAck(ack)) => {
                self.answered(ack.sequence, ack.lease_ms);
                None
            }
            Some(Order::StartAttempt(asked)) => {
                fail_point::reached("worker_assign");
                self.attempts.start(&self.options, asked)
            }
            Some(Order::SuspendAttempt(asked)) => {
                fail_point::reached("worker_suspend");
                let reason = asked.reason.unwrap_or_default().text;
                self.attempts.order(key(asked.job, asked.attempt), ToStop::Suspend { reason })
            }
            Some(Order::KillAttempt(asked)) => {
                self.attempts.order(key(asked.job, asked.attempt), ToStop::Kill)
            }
            Some(Order::ForgetAttempt(asked)) => {
                self.attempts.forget(key(asked.job, asked.attempt));
                None
            }
            Some(Order::ReadLog(asked)) => {
                let lives = self.attempts.lives(key(asked.job, asked.attempt));
                self.readers.open(asked, lives, self.chunk_sender.clone());
                None
            }
            Some(Order::StopLog(asked)) => {
                self.readers.stop(asked.id);
                None
            }
            // Registered comes once; what a newer scheduler says besides is not for this worker.
            Some(Order::Registered(_)) | None => None,
        };
        word.map_or(Ok(()), |word| send(out, word))
    }
}

/// Where a worker works, for people.
fn place(state_dir: &Path) -> String {
    let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    format!("host {}, state directory {}", host_name(), state_dir.display())
        .replace(char::is_control, "?")
}

/// Says goodbye and waits until it has been heard: the scheduler then closes the stream.
async fn leave(mut session: Session) {
    if send(&session.out, Word::Leave(v1::Leave {})).is_err() {
        return;
    }
    drop(session.out);
    let closed = async { while let Ok(Some(_)) = session.orders.message().await {} };
    if timeout(LEAVE_LIMIT, closed).await.is_err() {
        tracing::warn!("the scheduler does not answer a goodbye; it waits for the lease to pass");
    }
}

fn send(out: &mpsc::Sender<WorkerMessage>, body: Word) -> Result<(), String> {
    out.try_send(WorkerMessage { body: Some(body) })
        .map_err(|_| "it does not take what this node says".to_string())
}
