//! `lampyris bench`: the collectives are measured by the crate `bench`, without libtorch; everything that computes is handed to
//! `lampyris-rank`.

use super::Environment;
use super::passthrough;
use crate::error::CliError;
use crate::screen;
use lampyris_bench::{Arguments, Operation, RankProgram, rank_main, run as measure};
use lampyris_comm::Table;
use lampyris_comm::table::Row;
use std::ffi::OsString;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// All-reduce between processes of this machine: time, bandwidth, bytes, floor
    Allreduce(Arguments),
    /// All-to-all between processes of this machine
    Alltoall(Arguments),
    /// Print which algorithm is taken for which operation, size and number of ranks
    Table(TableArgs),
    /// One rank of a bench, started by the bench itself
    #[command(hide = true)]
    Rank,
    /// `step` and others that compute: see `lampyris bench step --help`
    #[command(external_subcommand)]
    Computing(Vec<OsString>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct TableArgs {
    /// A row in front of all others, e.g. all-reduce,<=65536,>=4=ring; may be repeated
    #[arg(long, value_name = "ROW")]
    prefer: Vec<Row>,
}

pub(crate) fn run(command: Command, environment: &Environment) -> Result<u8, CliError> {
    match command {
        Command::Allreduce(arguments) => collective(Operation::AllReduce, &arguments),
        Command::Alltoall(arguments) => collective(Operation::AllToAll, &arguments),
        Command::Table(args) => {
            let mut table = Table::default();
            args.prefer.into_iter().rev().for_each(|row| table.prefer(row));
            screen::say(format!("{table}\n{TABLE_HELP}"));
            Ok(0)
        }
        Command::Rank => {
            rank_main()?;
            Ok(0)
        }
        Command::Computing(arguments) => {
            passthrough::become_rank("bench", arguments, environment.rank_program.clone())
        }
    }
}

const TABLE_HELP: &str = "\
The first row that fits is taken; canonical sums skip rows that add in another order.
--prefer OPERATION[,<=BYTES][,>=RANKS]=ALGORITHM puts a row in front, here and in `bench allreduce`:
  lampyris bench table --prefer 'all-reduce,<=65536=ring'
Algorithms: direct, ring, halving (powers of two), doubling, double-tree, tree, chain.";

fn collective(operation: Operation, arguments: &Arguments) -> Result<u8, CliError> {
    let program = std::env::current_exe().map_err(|source| CliError::OwnPath { source })?;
    let program = RankProgram { program, arguments: vec!["bench".into(), "rank".into()] };
    let report = measure(&arguments.options(operation), &program)?;
    match arguments.json {
        true => screen::say_json(&report.to_json()),
        false => screen::say(report.to_string().trim_end()),
    }
    Ok(0)
}
