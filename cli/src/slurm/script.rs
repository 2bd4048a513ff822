//! The batch script of a job, rendered: everything that Slurm is asked for and everything that happens on the first node
//! before, around and after `srun`. It stands in the run directory, readable, and passes shellcheck.
//!
//! Why it is as it is (each measured on a real Slurm, docs/slurm.md "Traps"):
//! - `srun` runs in the foreground: a `wait` loop loses its exit code when a signal arrives as it ends;
//! - the requeue is ours, since a job that ends with 0 inside the grace time is COMPLETED and never comes back;
//! - and only while Slurm says RUNNING: after scancel it says COMPLETING, and a requeue would resurrect the job;
//! - `srun` no longer inherits `--cpus-per-task`, and `SLURM_EXPORT_ENV` of `--export` would empty its environment.

use super::queue::COMMENT;
use super::settings::Settings;
use crate::launch::Layout;
use std::fmt::Write;
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
    /// What wrote it and what submits it again, after `# `.
    pub(super) about: String,
    pub(super) comment: String,
    pub(super) nodes: usize,
    /// Folder of the log.
    pub(super) logs: &'a Path,
    /// Whether Slurm may start the job again.
    pub(super) requeue: bool,
}

/// The batch script that trains a run.
pub(crate) fn render(job: &Job<'_>, settings: &Settings) -> String {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    let head = Head {
        name: job.name,
        about: format!(
            "Written by lampyris {version}; `lampyris resume --cluster slurm` submits it again."
        ),
        comment: format!("{COMMENT}{}", job.run_dir.display()),
        nodes: job.layout.nodes,
        logs: &job.run_dir.join("logs"),
        requeue: true,
    };
    // Writing to a string cannot fail.
    write_head(&mut text, &head, settings).ok();
    write_body(&mut text, job, settings).ok();
    text
}

pub(super) fn write_head(
    out: &mut String,
    head: &Head<'_>,
    settings: &Settings,
) -> std::fmt::Result {
    writeln!(out, "#!/bin/bash\n# {}", head.about)?;
    let mut option = |text: String| writeln!(out, "#SBATCH {text}");
    option(format!("--job-name={}", head.name))?;
    option(format!("--comment={}", quoted_option(&head.comment)))?;
    let named = [
        ("partition", &settings.partition),
        ("account", &settings.account),
        ("qos", &settings.qos),
        ("time", &settings.time),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            option(format!("--{name}={value}"))?;
        }
    }
    option(format!("--nodes={}", head.nodes))?;
    option("--ntasks-per-node=1".into())?;
    match settings.cpus_per_node {
        Some(cpus) => option(format!("--cpus-per-task={cpus}"))?,
        None => option("--exclusive".into())?,
    }
    if let Some(gpus) = settings.gpus_per_node {
        option(format!("--gpus-per-node={gpus}"))?;
    }
    option(if head.requeue { "--requeue" } else { "--no-requeue" }.into())?;
    option("--open-mode=append".into())?;
    option(format!("--signal=USR2@{}", settings.grace_s))?;
    let logs = head.logs.display().to_string().replace('%', "%%");
    option(format!("--output={}", quoted_option(&format!("{logs}/slurm-%j.log"))))?;
    let names = EXPORT.iter().copied().chain(settings.export.iter().map(String::as_str));
    option(format!("--export={}", names.collect::<Vec<_>>().join(",")))?;
    for line in &settings.sbatch {
        option(line.clone())?;
    }
    Ok(())
}

fn write_body(out: &mut String, job: &Job<'_>, settings: &Settings) -> std::fmt::Result {
    let (program, run) = (quoted(&job.program.display()), quoted(&job.run_dir.display()));
    let cpus = settings.cpus_per_node.map_or("\"$SLURM_CPUS_ON_NODE\"".into(), |n| n.to_string());
    let (requeues, retries) = (settings.max_requeues, settings.max_retries);
    for line in &settings.setup {
        writeln!(out, "{line}")?;
    }
    // After the site's lines, which may use variables that are not set.
    writeln!(out, "set -u\nlampyris={program}\nrun={run}")?;
    write!(
        out,
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

/// In single quotes for the shell.
pub(super) fn quoted(text: &impl std::fmt::Display) -> String {
    format!("'{}'", text.to_string().replace('\'', "'\\''"))
}

/// For an #SBATCH line, which sbatch splits at blanks outside double quotes.
fn quoted_option(text: &str) -> String {
    if text.chars().any(|c| c.is_whitespace() || "\"'\\#".contains(c)) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{SlurmArgs, SlurmConfig};
    use super::*;

    fn job(run_dir: &str) -> String {
        let layout = Layout { nodes: 2, ranks_per_node: 2 };
        let (run_dir, program) = (Path::new(run_dir), Path::new("/opt/lampyris/lampyris"));
        let job = Job { run_dir, program, name: "quickstart", layout };
        let settings = Settings::new(&SlurmArgs::default(), &SlurmConfig::default()).unwrap();
        render(&job, &settings)
    }

    #[test]
    fn paths_are_quoted_for_slurm_and_for_the_shell() {
        let text = job("/home/me/it's 100% mine");
        assert!(text.contains("\nrun='/home/me/it'\\''s 100% mine'\n"), "{text}");
        let output = "#SBATCH --output=\"/home/me/it's 100%% mine/logs/slurm-%j.log\"\n";
        assert!(text.contains(output), "{text}");
    }
}
