//! What Slurm's programs say. Plain text, which every release writes; a hint, since a job is forgotten minutes after its
//! end and the controller may be away: the truth about a run is its directory.

use rustix::process::Pid;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Jobs of one question, so that a long list does not exceed the length of a command line.
const MAX_JOBS: usize = 500;

/// What to try when the controller does not answer.
const AWAY: &str = "the controller may be restarting: try again, or ask with `scontrol ping`";

/// Before the run directory in the comment of a job.
pub(crate) const COMMENT: &str = "lampyris:";

/// How long an answer is waited for: squeue itself tries for minutes to reach a controller that is away.
const PATIENCE: Duration = Duration::from_secs(10);

/// What Slurm answered instead of what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlurmError {
    /// No Slurm on this machine.
    #[error("{program} is not on this machine")]
    Missing {
        /// Program of Slurm.
        program: String,
    },
    /// It cannot be started.
    #[error("{program} does not start: {source}")]
    Start {
        /// Program of Slurm.
        program: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Slurm's own words.
    #[error("{program} refused: {said}")]
    Refused {
        /// Program of Slurm.
        program: String,
        /// The end of its stderr.
        said: String,
    },
    /// No answer.
    #[error("{program} did not answer in {} s", PATIENCE.as_secs())]
    Silent {
        /// Program of Slurm.
        program: String,
    },
    /// An answer in an unknown form.
    #[error("{program} said something unexpected: {said:?}")]
    Answer {
        /// Program of Slurm.
        program: &'static str,
        /// Its stdout.
        said: String,
    },
}

impl SlurmError {
    /// What to try.
    pub(crate) fn hint(&self) -> String {
        let SlurmError::Refused { said, .. } = self else {
            return match self {
                SlurmError::Missing { .. } => "submit on a login node of the cluster".into(),
                SlurmError::Silent { .. } => AWAY.into(),
                _ => String::new(),
            };
        };
        let has = |words: &str| said.to_lowercase().contains(words);
        if has("invalid account") {
            "`sacctmgr show associations user=$USER` lists yours; name one with --account or as \
             account in [cluster.slurm]"
        } else if has("invalid partition") || has("partition specified") {
            "`sinfo -s` lists the partitions; name one with --partition or as partition in \
             [cluster.slurm]"
        } else if has("time limit") {
            "`sinfo -o '%P %l'` shows the limits of the partitions; ask for less with --time"
        } else if has("not available") || has("more processors") || has("node count") {
            "`sinfo -o '%P %D %c %G'` shows nodes, cores and GPUs of the partitions; ask for less"
        } else if has("unable to contact") || has("socket timed out") || has("connect") {
            AWAY
        } else {
            ""
        }
        .into()
    }
}

/// How a job stands in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Slurm's word: PENDING, RUNNING, COMPLETING, ...
    pub(crate) state: String,
    /// Why it waits, or Slurm's word for nothing.
    pub(crate) reason: String,
    /// Slurm's list of its nodes, empty while it waits.
    pub(crate) nodes: String,
}

impl Row {
    /// Whether the job will not run again.
    pub(crate) fn has_ended(&self) -> bool {
        const ENDED: &[&str] = &[
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "DEADLINE",
            "FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "TIMEOUT",
        ];
        ENDED.contains(&self.state.as_str())
    }
}

/// Runs a program of Slurm and gives its stdout.
pub(crate) fn answer(mut command: Command) -> Result<String, SlurmError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::NotFound => SlurmError::Missing { program: program.clone() },
        _ => SlurmError::Start { program: program.clone(), source },
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(failed)?;
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::sync_channel(1);
    // Reads both pipes and reaps the child, whatever happens here.
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = match receiver.recv_timeout(PATIENCE) {
        Ok(output) => output.map_err(failed)?,
        Err(_) => {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            return Err(SlurmError::Silent { program });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // "sbatch: error: Batch job submission failed: Invalid partition name specified"
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    let words = lines.map(|line| line.rsplit_once("error: ").map_or(line, |(_, words)| words));
    let said = words.collect::<Vec<_>>().join("; ");
    Err(SlurmError::Refused { program, said })
}

/// What the queue says of `jobs`; those it has forgotten are left out.
pub(crate) fn rows(jobs: &[u64]) -> Result<BTreeMap<u64, Row>, SlurmError> {
    let mut rows = BTreeMap::new();
    for jobs in jobs.chunks(MAX_JOBS) {
        let list: Vec<String> = jobs.iter().map(u64::to_string).collect();
        let mut command = Command::new("squeue");
        command.args(["-h", "-t", "all", "-o", "%i|%T|%N|%r", "-j", &list.join(",")]);
        match answer(command) {
            Ok(text) => rows.extend(parse(&text)),
            // What squeue says of a single job that it has forgotten.
            Err(SlurmError::Refused { said, .. }) if said.contains("Invalid job id") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

pub(super) fn parse(text: &str) -> BTreeMap<u64, Row> {
    let row = |line: &str| {
        let mut fields = line.splitn(4, '|');
        let job = fields.next()?.trim().parse().ok()?;
        let mut field = || fields.next().map(str::trim).map(str::to_string);
        let (state, nodes, reason) = (field()?, field()?, field()?);
        Some((job, Row { state, reason, nodes }))
    };
    text.lines().filter_map(row).collect()
}

/// Takes a job out of the queue, or ends it: Slurm sends SIGTERM, waits its KillWait, and kills.
pub(crate) fn cancel(job: u64) -> Result<(), SlurmError> {
    let mut command = Command::new("scancel");
    command.arg(job.to_string());
    answer(command).map(drop)
}

/// The run directory that the comment of a job names, while Slurm remembers the job.
pub(crate) fn run_dir(job: u64) -> Result<Option<String>, SlurmError> {
    let mut command = Command::new("squeue");
    command.args(["-h", "-t", "all", "-o", "%k", "-j", &job.to_string()]);
    let comment = answer(command)?;
    Ok(comment.trim_end_matches('\n').strip_prefix(COMMENT).map(str::to_string))
}

/// The address that Slurm itself uses for a node, if it says one.
pub(crate) fn node_address(node: &str) -> Result<Option<String>, SlurmError> {
    let mut command = Command::new("scontrol");
    command.args(["-o", "show", "node", node]);
    let text = answer(command)?;
    let found = text.split_whitespace().find_map(|word| word.strip_prefix("NodeAddr="));
    Ok(found.map(str::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_squeue_are_read() {
        let text = "7|PENDING||BeginTime\n8|RUNNING|n[1-2]|None\nslurm_load_jobs error\n";
        let rows = parse(text);
        let row = |state: &str, nodes: &str, reason: &str| Row {
            state: state.into(),
            reason: reason.into(),
            nodes: nodes.into(),
        };
        assert_eq!(rows[&7], row("PENDING", "", "BeginTime"));
        assert_eq!(rows[&8], row("RUNNING", "n[1-2]", "None"));
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn a_refusal_is_passed_on_in_slurms_words_with_what_to_do() {
        let mut command = Command::new("sh");
        let text =
            "sbatch: error: Batch job submission failed: Invalid account or account/partition";
        command.args(["-c", &format!("echo '{text}' >&2; exit 1")]);
        let error = answer(command).unwrap_err();
        assert!(error.to_string().ends_with(
            "refused: Batch job submission failed: Invalid account or account/partition"
        ));
        assert!(error.hint().contains("sacctmgr"), "{}", error.hint());
        let error = answer(Command::new("no-such-sbatch")).unwrap_err();
        assert_eq!(error.to_string(), "no-such-sbatch is not on this machine");
        assert!(!error.hint().is_empty());
    }
}
