//! The `windlass` command: one subcommand a file, and what they share.
//!
//! Results go to stdout, progress and notes to stderr. Exit codes: 0 success, 1 failure, 2 wrong use
//! (given by clap), 3 a result that differs from the expected one, 4 a limit was exceeded, 130 interrupted
//! from the keyboard.

#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod compile;
mod completions;
mod dump;
mod failure;
mod inputs;
mod list;
mod opt;
mod picture;
mod run;
mod table;
mod test;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Compiles neural networks to native CPU code, and runs, tests and times them.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Run),
    Test(test::Test),
    Bench(bench::Bench),
    Compile(Box<compile::Compile>),
    Train(Box<train::Train>),
    Opt(opt::Opt),
    Dump(dump::Dump),
    List(list::List),
    Completions(completions::Completions),
    #[command(hide = true)]
    TestWorker(test::TestWorker),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(command) => command.execute(),
        Command::Test(command) => command.execute(),
        Command::Bench(command) => command.execute(),
        Command::Compile(command) => command.execute(),
        Command::Train(command) => command.execute(),
        Command::Opt(command) => command.execute(),
        Command::Dump(command) => command.execute(),
        Command::List(command) => command.execute(),
        Command::Completions(command) => command.execute(),
        Command::TestWorker(command) => command.execute(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
