//! Jobs, nodes, quotas and what jobs run, as rows.

use super::{Loaded, quota_key, quota_value};
use crate::core::{Changes, Quota, Scheduler, Snapshot, Time};
use crate::error::Error;
use lampyris_proto::JobId;
use lampyris_proto::v1::RunSpec;
use prost::Message;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

pub(super) fn write_meta(
    transaction: &Transaction<'_>,
    key: &str,
    value: u64,
) -> rusqlite::Result<()> {
    let mut statement =
        transaction.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?;
    statement.execute(params![key, value as i64]).map(|_| ())
}

pub(super) fn write_changes(
    transaction: &Transaction<'_>,
    core: &Scheduler,
    changes: &Changes,
) -> rusqlite::Result<()> {
    let mut write_job =
        transaction.prepare_cached("INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3)")?;
    for id in &changes.jobs {
        let Some(job) = core.job(*id) else { continue };
        let text = serde_json::to_string(job).expect("a job is plain data");
        write_job.execute(params![id.0 as i64, job.state.as_str(), text])?;
    }
    for id in &changes.removed_jobs {
        transaction.execute("DELETE FROM jobs WHERE id = ?1", params![id.0 as i64])?;
        transaction.execute("DELETE FROM runs WHERE job = ?1", params![id.0 as i64])?;
    }
    let mut write_node =
        transaction.prepare_cached("INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3)")?;
    for id in &changes.nodes {
        let node = core.node_at(*id);
        let text = serde_json::to_string(node).expect("a node is plain data");
        write_node.execute(params![id.0, node.name.0, text])?;
    }
    for key in &changes.quotas {
        match core.quota(key) {
            Some(limit) => transaction.execute(
                "INSERT OR REPLACE INTO quotas VALUES (?1, ?2)",
                params![quota_key(key), quota_value(&limit)],
            )?,
            None => {
                transaction.execute("DELETE FROM quotas WHERE key = ?1", params![quota_key(key)])?
            }
        };
    }
    Ok(())
}

pub(super) fn write_runs(
    transaction: &Transaction<'_>,
    runs: &[(JobId, RunSpec)],
) -> rusqlite::Result<()> {
    let mut write = transaction.prepare_cached("INSERT OR REPLACE INTO runs VALUES (?1, ?2)")?;
    for (job, run) in runs {
        write.execute(params![job.0 as i64, run.encode_to_vec()])?;
    }
    Ok(())
}

pub(super) fn load(connection: &Connection, path: &Path) -> Result<Loaded, Error> {
    let failed = |source| super::database(path, source);
    let meta = |key: &str| -> Result<u64, Error> {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        let value: Option<i64> =
            connection.query_row(sql, [key], |row| row.get(0)).optional().map_err(failed)?;
        Ok(value.unwrap_or(0) as u64)
    };
    let quotas = pairs(connection, "SELECT key, quota FROM quotas").map_err(failed)?;
    let quotas = quotas.iter().map(|(key, limit)| {
        Ok(Quota { key: parse(path, "quotas", key)?, limit: parse(path, "quotas", limit)? })
    });
    let snapshot = Snapshot {
        next_job: meta("next_job")?.max(1),
        jobs: parsed(connection, path, ("jobs", "SELECT job FROM jobs ORDER BY id"))?,
        nodes: parsed(connection, path, ("nodes", "SELECT node FROM nodes ORDER BY id"))?,
        quotas: quotas.collect::<Result<_, Error>>()?,
    };
    snapshot.check().map_err(|(table, what)| Error::Rows { path: path.to_owned(), table, what })?;
    Ok(Loaded {
        snapshot,
        runs: runs(connection).map_err(failed)?,
        clock: Time(meta("clock")?),
        segments: segments(connection).map_err(failed)?,
    })
}

fn parsed<T: DeserializeOwned>(
    connection: &Connection,
    path: &Path,
    (table, sql): (&'static str, &str),
) -> Result<Vec<T>, Error> {
    let texts = || -> rusqlite::Result<Vec<String>> {
        connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
    };
    let texts = texts().map_err(|e| super::database(path, e))?;
    texts.iter().map(|text| parse(path, table, text)).collect()
}

fn parse<T: DeserializeOwned>(path: &Path, table: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|source| Error::Row { path: path.to_owned(), table, source })
}

fn pairs(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<(String, String)>> {
    connection.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn runs(connection: &Connection) -> rusqlite::Result<BTreeMap<JobId, RunSpec>> {
    let mut statement = connection.prepare("SELECT job, run FROM runs")?;
    let rows = statement.query_map([], |row| {
        let (job, run): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let run = RunSpec::decode(run.as_slice()).unwrap_or_default();
        Ok((JobId(job as u64), run))
    })?;
    rows.collect()
}

fn segments(connection: &Connection) -> rusqlite::Result<Vec<(Time, i64)>> {
    let mut statement = connection.prepare("SELECT started, wall FROM clock ORDER BY started")?;
    let rows = statement.query_map([], |row| {
        let (started, wall): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok((Time(started as u64), wall))
    })?;
    rows.collect()
}
