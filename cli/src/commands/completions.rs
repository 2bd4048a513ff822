//! `completions` and `man`: made from the same definitions as the parser, so they never differ from it.

use super::Cli;
use crate::error::CliError;
use crate::screen;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Folder for lampyris.1 and a page for each sub-command
    folder: PathBuf,
}

/// Prints a completion script.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<u8, CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lampyris", &mut text);
    screen::say_source(String::from_utf8_lossy(&text).trim_end());
    Ok(0)
}

/// Writes the manual pages.
pub(crate) fn man(args: &ManArgs) -> Result<u8, CliError> {
    std::fs::create_dir_all(&args.folder)
        .map_err(|source| CliError::write(&args.folder, source))?;
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .map_err(|source| CliError::write(&args.folder, source))?;
    screen::note(format_args!("manual pages in {}", args.folder.display()));
    Ok(0)
}
