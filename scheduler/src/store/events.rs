//! The history: one line per decision or happening, numbered without gaps.

use crate::core::{NodeName, Reason, Record, Subject};
use crate::error::Error;
use lampyris_proto::JobId;
use rusqlite::{Connection, Row, Transaction, params};
use std::path::Path;

/// Which lines.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// About this job.
    pub job: Option<JobId>,
    /// About this node.
    pub node: Option<NodeName>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its number.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
    /// What it says.
    pub record: Record,
}

pub(super) fn append(
    transaction: &Transaction<'_>,
    first: u64,
    records: &[(i64, Record)],
) -> rusqlite::Result<()> {
    let mut insert =
        transaction.prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (sequence, (wall_ms, record)) in (first..).zip(records) {
        let (job, node) = match &record.subject {
            Subject::Job(job) => (Some(job.0 as i64), None),
            Subject::Node(node) => (None, Some(node.0.as_str())),
        };
        let reason = serde_json::to_string(&record.reason).expect("a reason is plain data");
        insert.execute(params![sequence as i64, wall_ms, job, node, reason])?;
    }
    Ok(())
}

type Raw = (i64, i64, Option<i64>, Option<String>, String);

const COLUMNS: &str = "SELECT sequence, wall, job, node, reason FROM events";

/// A condition that lets SQLite use the index of what is asked for: without it, a job's few lines would take a look at all.
fn matches(filter: &EventFilter) -> &'static str {
    match (&filter.job, &filter.node) {
        (Some(_), _) => "job = ?1 AND (?2 IS NULL OR node = ?2)",
        (None, Some(_)) => "?1 IS NULL AND node = ?2",
        (None, None) => "?1 IS NULL AND ?2 IS NULL",
    }
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

pub(super) fn read(
    connection: &Connection,
    path: &Path,
    filter: &EventFilter,
    after: u64,
    limit: u32,
) -> Result<Vec<EventRow>, Error> {
    let matches = matches(filter);
    let sql = format!("{COLUMNS} WHERE {matches} AND sequence > ?3 ORDER BY sequence LIMIT ?4");
    rows(connection, path, filter, (&sql, after, limit))
}

pub(super) fn read_newest(
    connection: &Connection,
    path: &Path,
    filter: &EventFilter,
    limit: u32,
) -> Result<Vec<EventRow>, Error> {
    let matches = matches(filter);
    let sql =
        format!("{COLUMNS} WHERE {matches} AND sequence > ?3 ORDER BY sequence DESC LIMIT ?4");
    let mut newest = rows(connection, path, filter, (&sql, 0, limit))?;
    newest.reverse();
    Ok(newest)
}

fn rows(
    connection: &Connection,
    path: &Path,
    filter: &EventFilter,
    (sql, after, limit): (&str, u64, u32),
) -> Result<Vec<EventRow>, Error> {
    let job = filter.job.map(|job| job.0 as i64);
    let node = filter.node.as_ref().map(|node| node.0.as_str());
    let query = || -> rusqlite::Result<Vec<Raw>> {
        let mut statement = connection.prepare_cached(sql)?;
        statement
            .query_map(params![job, node, i64::try_from(after).unwrap_or(i64::MAX), limit], raw)?
            .collect()
    };
    let raw = query().map_err(|e| super::database(path, e))?;
    raw.into_iter().map(|raw| parse(path, raw)).collect()
}

fn parse(path: &Path, (sequence, wall_ms, job, node, reason): Raw) -> Result<EventRow, Error> {
    let reason: Reason = serde_json::from_str(&reason).map_err(|source| Error::Row {
        path: path.to_owned(),
        table: "events",
        source,
    })?;
    let subject = match (job, node) {
        (Some(job), _) => Subject::Job(JobId(job as u64)),
        (None, node) => Subject::Node(NodeName(node.unwrap_or_default())),
    };
    Ok(EventRow { sequence: sequence as u64, wall_ms, record: Record { subject, reason } })
}
