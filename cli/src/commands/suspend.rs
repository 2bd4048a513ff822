//! `lampyris suspend RUN`: asks a run to checkpoint and stay stopped, by a file in its directory. Works from any node
//! that can write there; the run answers at its next step boundary. `lampyris suspend JOB` asks the scheduler.

use super::Environment;
use super::cluster::ClusterArgs;
use super::jobs::backend_of;
use crate::error::CliError;
use crate::screen;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of a job, slurm:N, or a run directory
    run: String,
    /// Why, for whoever reads control/suspend.json
    #[arg(long, default_value = "asked with `lampyris suspend`")]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    let backend = backend_of(&args.run, &args.cluster, environment)?;
    let said = backend.suspend(&args.run, &args.reason)?;
    screen::done(args.json, &args.run, &said);
    Ok(0)
}
