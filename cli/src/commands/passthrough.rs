//! `generate`, `parity`, `verify` and `bench step` compute, so `lampyris-rank` does them: same sub-command, same
//! arguments, same terminal, same exit code.

use crate::error::CliError;
use crate::rank_program;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Arguments of a sub-command of `lampyris-rank`, which also answers `--help`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Handed on as they are; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Becomes `lampyris-rank SUB_COMMAND ARGUMENTS`; returns only if that fails.
pub(crate) fn run(
    sub_command: &str,
    args: Args,
    rank_program: Option<PathBuf>,
) -> Result<u8, CliError> {
    become_rank(sub_command, args.arguments, rank_program)
}

/// The same for arguments that a sub-command has kept.
pub(crate) fn become_rank(
    sub_command: &str,
    arguments: Vec<OsString>,
    rank_program: Option<PathBuf>,
) -> Result<u8, CliError> {
    let path = rank_program::find(rank_program)?;
    let error = Command::new(&path).arg(sub_command).args(arguments).exec();
    Err(CliError::RankProgram { path, what: error.to_string() })
}
