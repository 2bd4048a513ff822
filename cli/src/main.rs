//! `lampyris`: what a person types. Starts in milliseconds and links no libtorch, so it runs on a login node; what
//! computes is `lampyris-rank`, which it finds beside itself.
//!
//! One file per sub-command in [`commands`]; everything a person sees goes through [`screen`].

mod backend;
mod commands;
mod compressors;
mod error;
#[cfg(test)]
mod fuzz;
mod imported;
mod interrupt;
mod launch;
mod ledger;
mod memory;
mod prepare;
mod rank_program;
mod run_dir;
mod screen;
mod selected;
mod slurm;
mod started_run;
mod trace_summary;
mod verified;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(ended) => return screen::usage(&ended),
    };
    let environment = commands::Environment::of_process();
    match commands::run(cli, &environment) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            screen::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
