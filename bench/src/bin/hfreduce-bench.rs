//! The bench on its own, without the rest of `lampyris`: what the comparison with other libraries runs.

use clap::{Parser, Subcommand};
use lampyris_bench::{Arguments, Operation, RankProgram, on_hosts, rank_main, run};
use std::ffi::OsString;

/// Measures all-reduce or all-to-all between processes of this machine.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The sum of all buffers in all of them
    Allreduce(Arguments),
    /// An equal part of every buffer to everybody
    Alltoall(Arguments),
    /// Runs a program on every one of some emulated hosts, as torchrun would (needs root)
    Hosts {
        /// Hosts
        #[arg(long)]
        nodes: usize,
        /// Rate of every link in Gbit/s
        #[arg(long)]
        gbit: f64,
        /// Program and arguments; RANK, WORLD_SIZE and MASTER_ADDR are set
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// One rank: for the bench itself
    #[command(hide = true)]
    Rank,
}

#[expect(clippy::print_stdout, reason = "the report is what a person asked for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (operation, arguments) = match Cli::parse().command {
        Command::Rank => return Ok(rank_main()?),
        Command::Hosts { nodes, gbit, command } => {
            return Ok(on_hosts(nodes, (gbit * 1e9) as u64, &command)?);
        }
        Command::Allreduce(arguments) => (Operation::AllReduce, arguments),
        Command::Alltoall(arguments) => (Operation::AllToAll, arguments),
    };
    let program = RankProgram { program: std::env::current_exe()?, arguments: vec!["rank".into()] };
    let report = run(&arguments.options(operation), &program)?;
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(())
}
