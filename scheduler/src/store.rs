//! The scheduler's memory on disk: one SQLite file in WAL mode with `synchronous = FULL`.
//!
//! A [`Commit`] holds everything that a group of steps has changed, and becomes durable as a whole before any action of
//! these steps is carried out. Heartbeats change nothing here. Rows hold JSON, so the file can be looked at with any
//! SQLite shell; `layout` 1 is the first.

mod events;
mod rows;
#[cfg(test)]
mod tests;

pub use events::{EventFilter, EventRow};

use crate::core::{Amount, Changes, QuotaKey, Record, Scheduler, Snapshot, Time};
use crate::error::Error;
use lampyris_proto::JobId;
use lampyris_proto::v1::RunSpec;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Layout of the tables that this release writes (`PRAGMA user_version`).
const LAYOUT: i64 = 1;
/// Lines of history that are kept; about 300 bytes each.
const MAX_EVENTS: u64 = 200_000;
/// Clock segments that are kept: one per start of the daemon.
const MAX_SEGMENTS: u64 = 1_000;
/// Magic number of NFS in `statfs`.
const NFS_MAGIC: i64 = 0x6969;

const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE clock (started INTEGER PRIMARY KEY, wall INTEGER NOT NULL);
    CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT NOT NULL, job TEXT NOT NULL);
    CREATE TABLE runs (job INTEGER PRIMARY KEY, run BLOB NOT NULL);
    CREATE TABLE nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, node TEXT NOT NULL);
    CREATE TABLE quotas (key TEXT PRIMARY KEY, quota TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE events (sequence INTEGER PRIMARY KEY, wall INTEGER NOT NULL, job INTEGER, node TEXT, reason TEXT NOT NULL);
    CREATE INDEX events_of_jobs ON events (job, sequence) WHERE job IS NOT NULL;
    CREATE INDEX events_of_nodes ON events (node, sequence) WHERE node IS NOT NULL;
";

/// An open database, locked against a second scheduler.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
    last_event: u64,
    _lock: File,
}

/// What was durable when the daemon started.
#[derive(Debug)]
pub struct Loaded {
    /// State of the core.
    pub snapshot: Snapshot,
    /// What each job runs.
    pub runs: BTreeMap<JobId, RunSpec>,
    /// Time of the last commit: the scheduler's clock goes on from here.
    pub clock: Time,
    /// Starts of the daemon: scheduler's time and wall clock in milliseconds since 1970.
    pub segments: Vec<(Time, i64)>,
}

/// What one group of steps has changed.
#[derive(Debug, Default)]
pub struct Commit {
    /// What the core has changed.
    pub changes: Changes,
    /// What new jobs run.
    pub runs: Vec<(JobId, RunSpec)>,
    /// History, with wall time in milliseconds since 1970.
    pub records: Vec<(i64, Record)>,
}

impl Commit {
    /// Nothing to be written.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.runs.is_empty() && self.records.is_empty()
    }
}

impl Store {
    /// Opens (or makes) `scheduler.db` in a directory.
    pub fn open(directory: &Path) -> Result<Store, Error> {
        let io = |source| Error::Io { path: directory.to_owned(), source };
        make_private_folder(directory).map_err(io)?;
        let lock = lock(directory)?;
        let path = directory.join("scheduler.db");
        // SQLite gives its other files the mode of this one.
        make_private_file(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let connection = Connection::open(&path).map_err(|e| database(&path, e))?;
        let mut store = Store { path, connection, last_event: 0, _lock: lock };
        store.prepare().map_err(|e| store.failed(e))?;
        let found: i64 = store.pragma("user_version")?;
        if found > LAYOUT {
            return Err(Error::Newer { path: store.path, found, known: LAYOUT });
        }
        if found == 0 {
            store.create().map_err(|e| store.failed(e))?;
        }
        let last = "SELECT coalesce(max(sequence), 0) FROM events";
        let last: i64 =
            store.connection.query_row(last, [], |row| row.get(0)).map_err(|e| store.failed(e))?;
        store.last_event = last as u64;
        Ok(store)
    }

    fn prepare(&self) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.set_prepared_statement_cache_capacity(32);
        self.connection.busy_timeout(std::time::Duration::from_secs(5))
    }

    fn pragma(&self, name: &str) -> Result<i64, Error> {
        self.connection.pragma_query_value(None, name, |row| row.get(0)).map_err(|e| self.failed(e))
    }

    fn create(&mut self) -> rusqlite::Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "user_version", LAYOUT)?;
        transaction.commit()
    }

    /// Everything that is durable.
    pub fn load(&self) -> Result<Loaded, Error> {
        rows::load(&self.connection, &self.path)
    }

    /// Notes that the daemon has started: scheduler's time and wall clock.
    pub fn begin_segment(&mut self, started: Time, wall_ms: i64) -> Result<(), Error> {
        let write = |connection: &Connection| {
            connection.execute(
                "INSERT OR REPLACE INTO clock VALUES (?1, ?2)",
                params![started.0 as i64, wall_ms],
            )?;
            connection.execute(
                "DELETE FROM clock WHERE started NOT IN \
                 (SELECT started FROM clock ORDER BY started DESC LIMIT ?1)",
                params![MAX_SEGMENTS as i64],
            )
        };
        write(&self.connection).map(|_| ()).map_err(|e| self.failed(e))
    }

    /// Makes a commit durable, all of it or nothing. `core` is the state after its steps, at `now`.
    pub fn commit(&mut self, core: &Scheduler, now: Time, commit: &Commit) -> Result<(), Error> {
        let first = self.last_event + 1;
        let written = self.write(core, now, commit, first);
        match written {
            Ok(()) => {
                self.last_event += commit.records.len() as u64;
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn write(
        &mut self,
        core: &Scheduler,
        now: Time,
        commit: &Commit,
        first_event: u64,
    ) -> rusqlite::Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        rows::write_meta(&transaction, "next_job", core.next_job())?;
        rows::write_meta(&transaction, "clock", now.0)?;
        rows::write_changes(&transaction, core, &commit.changes)?;
        rows::write_runs(&transaction, &commit.runs)?;
        events::append(&transaction, first_event, &commit.records)?;
        prune_events(&transaction, first_event + commit.records.len() as u64)?;
        transaction.commit()
    }

    /// Number of the newest line of history.
    pub fn last_event(&self) -> u64 {
        self.last_event
    }

    /// Lines of history: at most `limit` after `after`, oldest first.
    pub fn events(
        &self,
        filter: &EventFilter,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRow>, Error> {
        events::read(&self.connection, &self.path, filter, after, limit)
    }

    /// The newest `limit` lines of history, oldest first.
    pub fn newest_events(&self, filter: &EventFilter, limit: u32) -> Result<Vec<EventRow>, Error> {
        events::read_newest(&self.connection, &self.path, filter, limit)
    }

    fn failed(&self, error: rusqlite::Error) -> Error {
        database(&self.path, error)
    }

    /// Makes the disk look full once the file has so many pages of 4 KiB; 0 ends that.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: u32) {
        let pages = if pages == 0 { u32::MAX - 1 } else { pages };
        self.connection.pragma_update(None, "max_page_count", pages).expect("a test database");
    }
}

/// Old history goes, in larger pieces now and then.
fn prune_events(transaction: &Transaction<'_>, last: u64) -> rusqlite::Result<()> {
    const PIECE: u64 = 1_000;
    if last > MAX_EVENTS && last % PIECE < 16 {
        let oldest = (last - MAX_EVENTS) as i64;
        transaction.execute("DELETE FROM events WHERE sequence <= ?1", params![oldest])?;
    }
    Ok(())
}

/// Makes a folder that only its owner can enter; one that is there stays as it is.
fn make_private_folder(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Opens a file for its owner alone, whatever the umask and whoever could read it before.
fn make_private_file(path: &Path) -> std::io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn lock(directory: &Path) -> Result<File, Error> {
    let io = |source| Error::Io { path: directory.to_owned(), source };
    let file = make_private_file(&directory.join("scheduler.lock")).map_err(io)?;
    let kind = rustix::fs::fstatfs(&file).map_err(|e| io(e.into()))?.f_type;
    if kind == NFS_MAGIC {
        return Err(Error::NetworkFileSystem { path: directory.to_owned() });
    }
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| Error::Locked { path: directory.to_owned() })?;
    Ok(file)
}

fn database(path: &Path, source: rusqlite::Error) -> Error {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::DiskFull { path },
        _ => Error::Database { path, source },
    }
}

/// Key of a quota's row.
fn quota_key(key: &QuotaKey) -> String {
    serde_json::to_string(key).expect("strings and a word")
}

/// A quota's row.
fn quota_value(limit: &Amount) -> String {
    serde_json::to_string(limit).expect("two numbers")
}
