//! Times a model with one of the Rust engines that Windlass is compared with, in a process of its own, so that its
//! memory is that engine's. `tests/peers/compare.py` runs this program and reads the JSON object that it prints.
#![forbid(unsafe_code)]

mod array;
mod memory;
mod rten;
mod tract;

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;

use crate::array::Array;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load a model, run it for so long, and print one JSON object
    Time(Time),
    /// Run a command, then print the most memory it held as one JSON object
    Memory {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Args)]
struct Time {
    engine: Engine,
    /// The model, an .onnx file
    model: PathBuf,
    /// A .npy file for an input, whose shape the model is compiled for
    #[arg(long = "input", value_name = "NAME=FILE", value_parser = parse_input)]
    inputs: Vec<(String, PathBuf)>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How long to repeat the run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Write the outputs of the first run to DIR/0.npy and so on, in the model's order
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Tract,
    Rten,
}

/// A compiled model with its inputs, which are the same in every run.
trait Session {
    /// Runs the model and keeps the outputs of this run.
    fn run(&mut self) -> Result<()>;
    /// The outputs of the last run.
    fn outputs(&self) -> Result<Vec<Array>>;
}

fn parse_input(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("not NAME=FILE")?;
    Ok((name.to_string(), file.into()))
}

impl Time {
    fn execute(&self) -> Result<()> {
        let inputs = self.inputs.iter().map(|(name, file)| Ok((name.clone(), Array::read(file)?)));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let seconds =
            Duration::try_from_secs_f64(self.seconds).context("--seconds is not a time to run for")?;

        let start = Instant::now();
        let mut session: Box<dyn Session> = match self.engine {
            Engine::Tract => Box::new(tract::load(&self.model, &inputs, self.threads)?),
            Engine::Rten => Box::new(rten::load(&self.model, inputs, self.threads)?),
        };
        let load = start.elapsed();
        let start = Instant::now();
        session.run()?;
        let first = start.elapsed();
        if let Some(folder) = &self.save {
            for (number, output) in session.outputs()?.iter().enumerate() {
                output.write(&folder.join(format!("{number}.npy")))?;
            }
        }

        let mut times = Vec::new();
        let begin = Instant::now();
        while times.is_empty() || begin.elapsed() < seconds {
            let start = Instant::now();
            session.run()?;
            times.push(start.elapsed());
        }
        times.sort();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let report = json!({
            "engine": self.engine.to_possible_value().map(|value| value.get_name().to_string()),
            "load_ms": milliseconds(load),
            "first_run_ms": milliseconds(first),
            "median_ms": milliseconds(times[times.len() / 2]),
            "runs": times.len(),
            "peak_bytes": memory::own_peak()?,
        });
        println!("{report}");
        Ok(())
    }
}

/// What an engine that panics has to say.
fn panic_message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(message), _) => message,
        (None, Some(message)) => message,
        (None, None) => "no message",
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic of an engine is an error like any other; it is told below.
    panic::set_hook(Box::new(|_| {}));
    let result = panic::catch_unwind(AssertUnwindSafe(|| match &arguments.command {
        Command::Time(time) => time.execute(),
        Command::Memory { command } => memory::of_command(command),
    }));
    match result.unwrap_or_else(|payload| Err(anyhow!("the engine panicked: {}", panic_message(&*payload)))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
