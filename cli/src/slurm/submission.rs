//! Handing a job to Slurm, and the record of that in the run directory: `job.sbatch` is the script, `slurm.jsonl` has a
//! line for every submission and every start.

use super::queue::{self, SlurmError};
use crate::error::CliError;
use crate::run_dir::RunDir;
use lampyris_worker::run_file::{self, For};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the script in the run directory.
const SCRIPT: &str = "job.sbatch";
const RECORDS: &str = "slurm.jsonl";

/// Largest script, and largest `slurm.jsonl`, whose lines have a few hundred bytes.
const MOST_BYTES: u64 = 64 << 20;

/// Before Slurm's number in the name of a job.
pub(crate) const PREFIX: &str = "slurm:";

/// Variables of the submitting shell that a job must not inherit: inside an allocation they would pin its ranks to the
/// cores of another job. SLURM_CONF only says where the cluster is.
const FOREIGN: &[&str] = &["SLURM_", "SBATCH_", "SRUN_", "PMI", "SALLOC_"];
const KEPT: &[&str] = &["SLURM_CONF"];

/// A line of `slurm.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// The script was handed to Slurm.
    Submitted {
        /// Slurm's number of the job.
        job: u64,
        /// How many nodes it asks for.
        nodes: usize,
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// The job started an attempt.
    Started {
        /// Slurm's number of the job.
        job: u64,
        /// How often Slurm had requeued it.
        restart: u64,
        /// The attempt it claimed.
        attempt: u64,
        /// Slurm's list of its nodes.
        nodes: String,
        /// Milliseconds since 1970.
        at_ms: u64,
    },
}

/// Where the script of a run lies.
pub(crate) fn script_path(run: &RunDir) -> PathBuf {
    run.path().join(SCRIPT)
}

/// The script of a run, as it was written.
pub(crate) fn script(run: &RunDir) -> Result<String, CliError> {
    let failed = |error| CliError::read(&script_path(run), error);
    let bytes = run_file::read(run.path(), SCRIPT, MOST_BYTES).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| failed(io::Error::other(error)))
}

/// Writes `script` into the run directory and hands it to Slurm. Gives Slurm's number of the job.
pub(crate) fn submit(run: &RunDir, script: &str, nodes: usize) -> Result<u64, CliError> {
    let path = script_path(run);
    run_file::write(run.path(), SCRIPT, 0o666, script.as_bytes())
        .map_err(|error| CliError::write(&path, error))?;
    let mut command = Command::new("sbatch");
    // Absolute, so that no name of a folder is taken for an option.
    let path = std::path::absolute(&path).map_err(|error| CliError::read(&path, error))?;
    command.arg("--parsable").arg(&path);
    clear_foreign(&mut command);
    let job = number(queue::answer(command)?)?;
    record(run, &Record::Submitted { job, nodes, at_ms: now_ms() })?;
    Ok(job)
}

/// Takes out of the environment of a command what belongs to the allocation around it.
pub(super) fn clear_foreign(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_foreign) {
            command.env_remove(name);
        }
    }
}

/// The number in the answer of `sbatch --parsable`: `job` or `job;cluster`.
pub(super) fn number(said: String) -> Result<u64, SlurmError> {
    let number = said.trim().split(';').next().unwrap_or_default();
    number.parse().map_err(|_| SlurmError::Answer { program: "sbatch", said })
}

fn is_foreign(name: &str) -> bool {
    FOREIGN.iter().any(|prefix| name.starts_with(prefix)) && !KEPT.contains(&name)
}

/// Adds a line to the record of the run.
pub(crate) fn record(run: &RunDir, record: &Record) -> Result<(), CliError> {
    let path = run.path().join(RECORDS);
    let failed = |error| CliError::write(&path, error);
    let text = serde_json::to_string(record).expect("plain data becomes JSON") + "\n";
    let mut file = run_file::open(run.path(), RECORDS, For::Appending).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// The last job of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handed {
    /// Slurm's number.
    pub(crate) job: u64,
    /// How many nodes it asks for.
    pub(crate) nodes: usize,
    /// The last attempt that it started; 0 before the first.
    pub(crate) attempt: u64,
}

/// Whether a run was ever handed to Slurm.
pub(crate) fn is_handed(run_dir: &Path) -> bool {
    run_dir.join(RECORDS).exists()
}

/// The last job of the run; none if it never was Slurm's.
pub(crate) fn handed(run: &RunDir) -> Result<Option<Handed>, CliError> {
    let path = run.path().join(RECORDS);
    let text = match run_file::read(run.path(), RECORDS, MOST_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| CliError::read(&path, error))?,
    };
    // A torn last line, from a full disk, is passed over.
    let lines = text.split(|&byte| byte == b'\n');
    let records = lines.filter_map(|line| serde_json::from_slice::<Record>(line).ok());
    Ok(records.fold(None, |before: Option<Handed>, record| match record {
        Record::Submitted { job, nodes, .. } => Some(Handed { job, nodes, attempt: 0 }),
        Record::Started { attempt, .. } => before.map(|handed| Handed { attempt, ..handed }),
    }))
}

pub(super) use lampyris_worker::shim::status::unix_ms as now_ms;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_another_job_are_foreign_and_the_cluster_is_not() {
        for name in ["SLURM_CPU_BIND", "SBATCH_PARTITION", "PMI_RANK", "PMIX_ID", "SRUN_DEBUG"] {
            assert!(is_foreign(name), "{name}");
        }
        for name in ["SLURM_CONF", "PATH", "LAMPYRIS_CACHE"] {
            assert!(!is_foreign(name), "{name}");
        }
    }
}
