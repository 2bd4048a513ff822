//! `lampyris-rank`: the process that loads libtorch. People use `lampyris`, which starts this one.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's own output")]

use anyhow::Result;
use clap::{Parser, Subcommand};
use lampyris_trainer::parity;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "lampyris-rank", about = "The rank process of Lampyris; started by `lampyris`.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare logits, loss and gradients with golden values of a Hugging Face folder.
    Parity(parity::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Parity(options) => {
            let report = parity::run(&options)?;
            if options.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                print!("{}", report.text(&options.folder));
            }
            Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
