//! `lampyris-rank`: the process that loads libtorch. People use `lampyris`, which starts this one.

use anyhow::Result;
use clap::{Parser, Subcommand};
use lampyris_trainer::link::Link;
use lampyris_trainer::train::{self, End};
use lampyris_trainer::{bench, failure, generate, logits, parity, screen, validate, verify};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "lampyris-rank", about = "The rank process of Lampyris; started by `lampyris`.")]
struct Arguments {
    /// Print the build id, which must equal that of `lampyris`, and exit.
    #[arg(long)]
    build_id: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train one rank of a run; started by the shim.
    Train(train::Options),
    /// Compare logits, loss and gradients with golden values of a Hugging Face folder.
    Parity(parity::Options),
    /// Logits of a Hugging Face folder on random tokens, as JSON.
    Logits(logits::Options),
    /// Check what this machine computes, and how fast.
    Validate(validate::Options),
    /// Compare a layout over ranks with one rank.
    Verify(verify::Options),
    /// Write text with a model.
    Generate(generate::Options),
    /// Benchmarks that need libtorch.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Time whole optimizer steps of a recipe.
    Step(bench::Options),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(ended) => return screen::usage(&ended),
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            screen::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.build_id {
        screen::say(&lampyris_trainer::build_id());
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.command {
        None => anyhow::bail!("a sub-command is missing; see lampyris-rank --help"),
        Some(Command::Train(options)) => run_train(&options),
        Some(Command::Logits(options)) => {
            screen::json(&logits::run(&options)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Validate(options)) => {
            let reports = validate::run()?;
            if options.json {
                screen::json(&reports)?;
            } else {
                reports.iter().for_each(|report| screen::say(&report.text()));
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Parity(options)) => {
            let report = parity::run(&options)?;
            if options.json {
                screen::json(&report)?;
            } else {
                screen::say(&report.text(&options.folder));
            }
            Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::Verify(options)) => {
            let report = verify::run(&options)?;
            if options.json {
                screen::json(&report)?;
            } else {
                screen::say(&report.text());
            }
            Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::Generate(options)) => {
            generate::run(&options, &mut screen::ModelText::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Bench { what: Bench::Step(options) }) => {
            let report = bench::run(&options, &bench::plan_of(&options)?)?;
            if options.json {
                screen::json(&report)?;
            } else {
                screen::say(&report.text());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Exit codes of the suspend contract: 0 done, 85 and 86 suspended, else what the failure says.
fn run_train(options: &train::Options) -> Result<ExitCode> {
    failure::die_with_parent();
    let mut link = Link::open()?;
    let ended =
        train::read_plan(&options.plan).and_then(|plan| train::run(options, &plan, &mut link));
    let code = match ended {
        Ok(End::Finished) => 0,
        Ok(End::Suspended { stay_stopped: false }) => 85,
        Ok(End::Suspended { stay_stopped: true }) => 86,
        Ok(End::Deadline) => failure::deadline(&mut link),
        Err(error) => {
            screen::error(&error);
            failure::report(&mut link, &error)
        }
    };
    Ok(ExitCode::from(code))
}
