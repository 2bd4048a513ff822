//! The batch script of a job, rendered: everything that Slurm is asked for and everything that happens on the first node
//! before, around and after `srun`. It stands in the run directory, readable, and passes shellcheck.
//!
//! Why it is as it is (each measured on a real Slurm, docs/slurm.md "Traps"):
//! - `srun` runs in the foreground: a `wait` loop loses its exit code when a signal arrives as it ends;
//! - the requeue is ours, since a job that ends with 0 inside the grace time is COMPLETED and never comes back;
//! - and only while Slurm says RUNNING: after scancel it says COMPLETING, and a requeue would resurrect the job;
//! - `srun` no longer inherits `--cpus-per-task`, and `SLURM_EXPORT_ENV` of `--export` would empty its environment.

use super::lines::{Script, text_of};
use super::options;
use super::queue::COMMENT;
use super::settings::Settings;
use crate::error::CliError;
use crate::launch::Layout;
use std::path::Path;

/// Environment variables that a job takes over besides those that the configuration names.
const EXPORT: &[&str] = &[
    "HOME",
    "LAMPYRIS_CACHE",
    "LAMPYRIS_RANK",
    "LANG",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "USER",
];

/// What a script is made for.
pub(crate) struct Job<'a> {
    /// Absolute path of the run directory.
    pub(crate) run_dir: &'a Path,
    /// Absolute path of `lampyris`.
    pub(crate) program: &'a Path,
    /// Name in the queue.
    pub(crate) name: &'a str,
    pub(crate) layout: Layout,
}

/// What the first lines of a script say besides the settings.
pub(super) struct Head<'a> {
    /// Name in the queue.
    pub(super) name: &'a str,
    /// What wrote it and what submits it again, after `# `; words of ours.
    pub(super) about: &'static str,
    pub(super) comment: &'a str,
    pub(super) nodes: usize,
    /// Folder of the log.
    pub(super) logs: &'a str,
    /// Whether Slurm may start the job again.
    pub(super) requeue: bool,
}

/// The batch script that trains a run.
///
/// # Errors
/// A value that cannot stand in a script: a path with a line break, say.
pub(crate) fn render(job: &Job<'_>, settings: &Settings) -> Result<String, CliError> {
    let mut script = Script::default();
    let run = text_of("run", job.run_dir)?;
    let head = Head {
        name: job.name,
        about: concat!(
            "Written by lampyris ",
            env!("CARGO_PKG_VERSION"),
            "; `lampyris resume --cluster slurm` submits it again."
        ),
        comment: &format!("{COMMENT}{run}"),
        nodes: job.layout.nodes,
        logs: &format!("{run}/logs"),
        requeue: true,
    };
    write_head(&mut script, &head, settings)?;
    script.template(&setup(settings));
    // After the site's lines, which may use variables that are not set.
    script.template("set -u\n");
    script.variable("lampyris", &text_of("lampyris", job.program)?)?;
    script.variable("run", &run)?;
    script.template(&body(settings));
    Ok(script.into_text())
}

pub(super) fn write_head(
    script: &mut Script,
    head: &Head<'_>,
    settings: &Settings,
) -> Result<(), CliError> {
    script.template(&format!("#!/bin/bash\n# {}\n", head.about));
    script.option("job-name", head.name)?;
    script.option("comment", head.comment)?;
    let named = [
        ("partition", &settings.partition),
        ("account", &settings.account),
        ("qos", &settings.qos),
        ("time", &settings.time),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            script.option(name, value)?;
        }
    }
    script.option("nodes", &head.nodes.to_string())?;
    script.option("ntasks-per-node", "1")?;
    match settings.cpus_per_node {
        Some(cpus) => script.option("cpus-per-task", &cpus.to_string())?,
        None => script.flag("exclusive"),
    }
    if let Some(gpus) = settings.gpus_per_node {
        script.option("gpus-per-node", &gpus.to_string())?;
    }
    script.flag(if head.requeue { "requeue" } else { "no-requeue" });
    script.option("open-mode", "append")?;
    script.option("signal", &format!("USR2@{}", settings.grace_s))?;
    script.option("output", &format!("{}/slurm-%j.log", head.logs.replace('%', "%%")))?;
    let names = EXPORT.iter().copied().chain(settings.export.iter().map(String::as_str));
    script.option("export", &names.collect::<Vec<_>>().join(","))?;
    for line in &settings.sbatch {
        script.words("sbatch", &options::parse(line)?)?;
    }
    Ok(())
}

/// The site's own shell lines, as its configuration has them.
pub(super) fn setup(settings: &Settings) -> String {
    settings.setup.iter().map(|line| format!("{line}\n")).collect()
}

/// Cores of each node, in the words of the shell.
pub(super) fn cpus(settings: &Settings) -> String {
    settings.cpus_per_node.map_or("\"$SLURM_CPUS_ON_NODE\"".into(), |cpus| cpus.to_string())
}

/// What the shell does, made from numbers alone.
fn body(settings: &Settings) -> String {
    let cpus = cpus(settings);
    let (requeues, retries) = (settings.max_requeues, settings.max_retries);
    format!(
        "
# The ranks hear of these from Slurm; this shell only must not die of them.
trap : TERM USR2

# Whether Slurm still wants this job to run: after scancel it is COMPLETING. A controller that restarts is waited for.
still_running() {{
    local info
    for _ in {{1..60}}; do
        if info=$(scontrol -o show job \"$SLURM_JOB_ID\"); then
            [[ $info == *' JobState=RUNNING '* ]]
            return
        fi
        sleep 5
    done
    return 1
}}

# One attempt: its number, secret and address first, then one shim per node. The nodes' shims agree on the exit code.
attempt() {{
    local launch code
    launch=$(\"$lampyris\" slurm claim \"$run\") || return
    srun -K1 --ntasks-per-node=1 --cpus-per-task={cpus} --wait=0 --mpi=none --export=ALL --unbuffered --label \\
        \"$lampyris\" slurm node \"$run\" \"$launch\"
    code=$?
    rm -f \"$launch\"
    return \"$code\"
}}

failures=0
while true; do
    attempt
    code=$?
    case $code in
        0 | 78 | 86 | 130) exit \"$code\" ;; # finished; a bad plan; stay stopped; killed by a person
        85) # checkpointed, wants to go on
            if ((${{SLURM_RESTART_COUNT:-0}} < {requeues})) && still_running; then
                scontrol requeue \"$SLURM_JOB_ID\" && sleep 120 # the requeue ends this script
            fi
            exit 85
            ;;
    esac
    failures=$((failures + 1))
    if ((failures > {retries})) || ! still_running; then exit \"$code\"; fi
    echo \"exit code $code: starting again from the last checkpoint\" >&2
done
"
    )
}

#[cfg(test)]
mod tests;
