//! Pilot mode: an allocation of Slurm whose nodes become workers of a Lampyris scheduler, and leave before the time limit.
//! Slurm signals the workers, whose `lampyris slurm worker` then moves what runs there to other nodes.

use super::queue;
use super::script::{Head, quoted, write_head};
use super::settings::Settings;
use super::submission::{clear_foreign, number};
use crate::error::CliError;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Name of the script in the folder of a pilot.
const SCRIPT: &str = "pilot.sbatch";

/// What the workers of a pilot are started with.
#[derive(Debug)]
pub(crate) struct Pilot<'a> {
    /// Absolute path of the folder of script and log.
    pub(crate) folder: &'a Path,
    /// Absolute path of `lampyris`.
    pub(crate) program: &'a Path,
    pub(crate) nodes: usize,
    /// Arguments of `lampyris slurm worker`.
    pub(crate) worker: &'a [String],
}

/// The batch script that lends an allocation to a scheduler. A pilot that has left is not started again.
pub(crate) fn render(pilot: &Pilot<'_>, settings: &Settings) -> String {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    let head = Head {
        name: "lampyris-pilot",
        about: format!("Written by lampyris {version}: `lampyris pilot`."),
        comment: "lampyris-pilot".into(),
        nodes: pilot.nodes,
        logs: pilot.folder,
        requeue: false,
    };
    // Writing to a string cannot fail.
    write_head(&mut text, &head, settings).ok();
    write_body(&mut text, pilot, settings).ok();
    text
}

fn write_body(out: &mut String, pilot: &Pilot<'_>, settings: &Settings) -> std::fmt::Result {
    let program = quoted(&pilot.program.display());
    let cpus = settings.cpus_per_node.map_or("\"$SLURM_CPUS_ON_NODE\"".into(), |n| n.to_string());
    let worker: String = pilot.worker.iter().map(|word| format!(" {}", quoted(word))).collect();
    for line in &settings.setup {
        writeln!(out, "{line}")?;
    }
    write!(
        out,
        "set -u

# The workers hear of these from Slurm and leave; this shell only must not die of them.
trap : TERM USR2

srun --ntasks-per-node=1 --cpus-per-task={cpus} --wait=0 --mpi=none --export=ALL --unbuffered --label \\
    {program} slurm worker{worker}
"
    )
}

/// Writes the script into the folder and hands it to Slurm. Gives Slurm's number of the job.
pub(crate) fn submit(folder: &Path, script: &str) -> Result<u64, CliError> {
    fs::create_dir_all(folder).map_err(|error| CliError::write(folder, error))?;
    let path = folder.join(SCRIPT);
    fs::write(&path, script).map_err(|error| CliError::write(&path, error))?;
    let mut command = Command::new("sbatch");
    command.arg("--parsable").arg(&path);
    clear_foreign(&mut command);
    Ok(number(queue::answer(command)?)?)
}
