//! Pilot mode: an allocation of Slurm whose nodes become workers of a Lampyris scheduler, and leave before the time limit.
//! Slurm signals the workers, whose `lampyris slurm worker` then moves what runs there to other nodes.

use super::lines::{Script, text_of};
use super::queue;
use super::script::{Head, cpus, setup, write_head};
use super::settings::Settings;
use super::submission::{clear_foreign, number};
use crate::error::CliError;
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
///
/// # Errors
/// A value that cannot stand in a script.
pub(crate) fn render(pilot: &Pilot<'_>, settings: &Settings) -> Result<String, CliError> {
    let mut script = Script::default();
    let head = Head {
        name: "lampyris-pilot",
        about: concat!("Written by lampyris ", env!("CARGO_PKG_VERSION"), ": `lampyris pilot`."),
        comment: "lampyris-pilot",
        nodes: pilot.nodes,
        logs: &text_of("cache", pilot.folder)?,
        requeue: false,
    };
    write_head(&mut script, &head, settings)?;
    script.template(&setup(settings));
    script.template("set -u\n");
    script.variable("lampyris", &text_of("lampyris", pilot.program)?)?;
    script.array("worker", pilot.worker)?;
    script.template(&body(settings));
    Ok(script.into_text())
}

fn body(settings: &Settings) -> String {
    let cpus = cpus(settings);
    format!(
        "
# The workers hear of these from Slurm and leave; this shell only must not die of them.
trap : TERM USR2

srun --ntasks-per-node=1 --cpus-per-task={cpus} --wait=0 --mpi=none --export=ALL --unbuffered --label \\
    \"$lampyris\" slurm worker \"${{worker[@]}}\"
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
