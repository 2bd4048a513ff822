//! Every bound on what others may ask of a scheduler, with its reason; docs/operations.md lists them for people.
//!
//! Two rules: nobody makes the thread that decides work for longer than a small part of a lease, and what is kept for
//! somebody has a size that does not depend on what they say. Bounds on jobs, nodes and finished jobs are settings
//! ([`crate::core::Policy`]); the rules for names, paths and tokens are [`lampyris_proto::words`].

use std::time::Duration;

// Connections.

/// Connections in all, if the limit of open files allows; an eighth of the files is kept back for everything else. More
/// than `max_nodes` usually is, with room for people.
pub(crate) const CONNECTIONS: usize = 60_000;
/// Connections that have not shown who they are. One more pushes out the oldest: with 1,024 places a client that needs
/// 100 ms gets in against 10,000 strangers a second.
pub(crate) const STRANGERS: usize = 1_024;
/// The same of one address (a machine, a /64 of IPv6, a user of a Unix socket): one machine does not push out others.
pub(crate) const STRANGERS_PER_ADDRESS: usize = 256;
/// Connections of people, which leaves the others to workers.
pub(crate) const PEOPLE: usize = 8_192;
/// The same of one address: a login node with a thousand `lampyris top`.
pub(crate) const PEOPLE_PER_ADDRESS: usize = 2_048;
/// A connection must have shown who it is by then: TLS handshake and first request.
pub(crate) const FIRST_REQUEST: Duration = Duration::from_secs(5);
/// Wait after a connection that could not be taken in, because there are no files left.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that the kernel holds until they are accepted.
pub(crate) const BACKLOG: i32 = 1_024;
/// Addresses whose refused calls are counted one by one; others share a line of the log.
pub(crate) const REFUSED_ADDRESSES: usize = 256;
/// Refused calls of an address become a line of the log so often.
pub(crate) const REFUSED_PERIOD: Duration = Duration::from_secs(60);

// Calls and streams.

/// Largest message taken in: a registration with [`REPORTED_ATTEMPTS`] short failures fits.
pub(crate) const MESSAGE_BYTES: usize = 4 << 20;
/// Calls without a deadline of their own end after this.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// A dead connection is noticed after this and as much again.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(20);
/// Calls at once on one connection.
pub(crate) const CALLS_PER_CONNECTION: u32 = 256;
/// Streams that people watch, in all; each holds [`WAITING`] messages.
pub(crate) const STREAMS: usize = 1_024;
/// The same of one address: a quarter, so that four are needed to take all.
pub(crate) const STREAMS_PER_ADDRESS: usize = 256;
/// The same of one connection: a program that watches every job it started.
pub(crate) const STREAMS_PER_CONNECTION: usize = 64;
/// Messages of a stream that wait for its reader; a slow one gets the newest state later.
pub(crate) const WAITING: usize = 4;

// The thread that decides.

/// Messages of workers that wait; senders beyond wait. A whole cluster may register at once.
pub(crate) const WORKER_QUEUE: usize = 4_096;
/// Commands of people that wait; senders beyond wait.
pub(crate) const COMMAND_QUEUE: usize = 1_024;
/// Looks at the state that wait; those beyond wait.
pub(crate) const LOOK_QUEUE: usize = 256;
/// Messages of workers in one transaction.
pub(crate) const WORKER_BATCH: usize = 256;
/// Commands in one transaction: at 5 ms each for a full cluster, heartbeats wait 160 ms at most.
pub(crate) const COMMAND_BATCH: usize = 32;
/// Looks between two transactions; each is bounded by the limits below.
pub(crate) const LOOK_BATCH: usize = 8;

// One look.

/// Entries of a page.
pub(crate) const PAGE: usize = 1_000;
/// Bytes of a page: half of what clients accept ([`MESSAGE_BYTES`]), so that the last entry may be a large one.
pub(crate) const PAGE_BYTES: usize = 2 << 20;
/// Jobs that a stream looks at before others have their turn.
pub(crate) const JOBS_PER_LOOK: usize = 2_000;
/// Bytes of jobs that a stream takes along in one look; what a stream holds is at most this and its waiting messages.
pub(crate) const LOOK_BYTES: usize = 64 << 10;
/// Lines of history that a stream reads at once: at most 3.2 KiB each.
pub(crate) const EVENTS_PER_LOOK: u32 = 100;
/// Jobs that a stream with a filter of states remembers to have shown; with more it shows every change of a job that
/// matches otherwise.
pub(crate) const SHOWN_JOBS: usize = 10_000;
/// A stream of a job's progress reads it no more often: a heartbeat comes from every node of the job.
pub(crate) const PROGRESS_PERIOD: Duration = Duration::from_millis(200);
/// Job numbers in a filter.
pub(crate) const FILTER_JOBS: usize = 1_000;
/// Changes that a watcher may be behind before it reads everything again.
pub(crate) const CHANGES: usize = 4_096;
/// Logs that are read at once, in all.
pub(crate) const LOG_READERS: usize = 512;
/// Chunks of a log that wait for a reader.
pub(crate) const LOG_CHUNKS: usize = 32;
/// Largest chunk of a log.
pub(crate) const LOG_CHUNK_BYTES: usize = 64 << 10;
/// A reader that does not read holds up its worker's stream, heartbeats included, for no longer than this...
pub(crate) const SLOW_READER: Duration = Duration::from_millis(200);
/// ... and all readers together for no longer than this between two heartbeats.
pub(crate) const SLOW_READERS: Duration = Duration::from_millis(500);

// What workers say.

/// A worker that has connected says who it is in this time.
pub(crate) const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// Attempts in one registration: those that run and those whose end the scheduler has not confirmed.
pub(crate) const REPORTED_ATTEMPTS: usize = 4_096;
/// Messages that wait for a worker to read: an answer to every attempt it may report, and as many orders.
pub(crate) const OUTBOX: usize = 2 * REPORTED_ATTEMPTS;
/// Attempts in one heartbeat.
pub(crate) const HEARTBEAT_ATTEMPTS: usize = 4_096;
/// Attempts of the past that a node is remembered to run; more are killed without being remembered.
pub(crate) const FOREIGN_ATTEMPTS: usize = REPORTED_ATTEMPTS;
/// Description of a node's hardware.
pub(crate) const HARDWARE_BYTES: usize = 64 << 10;
/// What a rank does between steps, in words.
pub(crate) const OPERATION_BYTES: usize = 200;
/// Message of a failure; a shim sends at most 800 characters.
pub(crate) const FAILURE_BYTES: usize = 3_200;
/// The same where the failures of all nodes are shown: with [`RANKS`] nodes and ranks a job stays below
/// [`MESSAGE_BYTES`].
pub(crate) const MEMBER_FAILURE_BYTES: usize = 200;
/// Why a log cannot be read, in words.
pub(crate) const LOG_ERROR_BYTES: usize = 1_000;
/// A worker's boot id, instance and place.
pub(crate) const IDENTITY_BYTES: usize = 4_096;

// Numbers of a submission or registration.

/// Most alternatives of a job's size.
pub(crate) const SIZES: usize = 16;
/// Most retries that can be asked for.
pub(crate) const RETRIES: u32 = 100;
/// Ranks of a job on its largest size: as many as can meet (`MAX_RANKS` of comm).
pub(crate) const RANKS: u64 = 4_096;
/// Attempts of a run directory before it became a job: attempts are 32-bit numbers among ranks, and half are kept for
/// those to come.
pub(crate) const ATTEMPT_BASE: u64 = 1 << 31;
/// Devices of a node.
pub(crate) const DEVICES: u32 = 65_536;
/// Bytes of memory or disk: 1 EiB.
pub(crate) const BYTES: u64 = 1 << 60;
/// Longest time of a job: ten years.
pub(crate) const SPAN_MS: u64 = 10 * 366 * 86_400_000;
/// Quotas in all.
pub(crate) const QUOTAS: usize = 10_000;
/// Groups that are known; a submission for another one is refused.
pub(crate) const GROUPS: usize = 10_000;
/// Longest build id.
pub(crate) const BUILD_ID_BYTES: usize = 64;

// When the daemon stops.

/// What open streams may take to end.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
