//! `lampyris slurm ...`: what a job's batch script calls. People use `lampyris submit --cluster slurm`.

use super::Environment;
use super::pilot;
use super::train::take_part;
use crate::error::CliError;
use crate::run_dir::RunDir;
use crate::screen;
use crate::slurm::allocation::{self, Claim, Launch};
use crate::slurm::hostlist;
use lampyris_proto::Attempt;
use std::path::PathBuf;

/// Exit code of a run that stays stopped until it is resumed.
const STAY_STOPPED: u8 = 86;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Claim the next attempt for this job; print the file that `node` needs
    Claim {
        /// Run directory
        run: PathBuf,
    },
    /// Print the names of a host list, as `scontrol show hostnames` does
    Hosts {
        /// E.g. n[01-03,7]
        list: String,
    },
    /// Run this node's ranks; started by srun, once per node
    Node {
        /// Run directory
        run: PathBuf,
        /// What `claim` printed
        launch: PathBuf,
    },
    /// Lend this node to a scheduler; started by srun, once per node of a pilot
    Worker(pilot::WorkerArgs),
}

pub(crate) fn run(command: Command, environment: &Environment) -> Result<u8, CliError> {
    match command {
        Command::Claim { run } => match allocation::claim(&RunDir::open(&run)?)? {
            Claim::Launch(path) => {
                screen::say(path.display());
                Ok(0)
            }
            Claim::StayStopped => {
                screen::note("suspend.json asks the run to stay stopped: not started");
                Ok(STAY_STOPPED)
            }
        },
        Command::Worker(args) => pilot::worker(&args, environment),
        Command::Hosts { list } => {
            hostlist::expand(&list)?.iter().for_each(screen::say);
            Ok(0)
        }
        Command::Node { run, launch } => {
            let launch = Launch::read(&launch)?;
            let (attempt, place) = (Attempt(launch.attempt), launch.place()?);
            take_part(&RunDir::open(&run)?, attempt, (launch.layout, false), place, environment)
        }
    }
}
