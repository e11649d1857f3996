//! `windlass bench`: how long a model takes to compile and to run.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use windlass::session::{KernelProfile, Report};
use windlass::{Model, Session, Tensor};

use crate::arguments::{DimArg, InputArg, SessionArgs, parse_dim, parse_input};
use crate::failure::Failure;
use crate::inputs::gather;
use crate::table::{bytes, table, three_digits, time};

/// Time a model: loading and compiling it, its first run, and its runs from then on
#[derive(Args)]
pub struct Bench {
    /// The model: .onnx or .wir
    model: PathBuf,
    /// A file for an input: .npy, .pb or .png
    #[arg(long = "input", short, value_name = "NAME=FILE", value_parser = parse_input)]
    inputs: Vec<InputArg>,
    /// A size for a named dimension
    #[arg(long = "dim", short, value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<DimArg>,
    /// The seed of inputs that are not given
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How long to repeat the run
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,
    /// Show the time of each kernel
    #[arg(long)]
    profile: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
}

/// What was measured.
struct Measured {
    load: Duration,
    report: Report,
    compile: Duration,
    first: Duration,
    /// In ascending order.
    runs: Vec<Duration>,
    profile: Vec<KernelProfile>,
}

impl Measured {
    /// The time that a share of the runs stayed below.
    fn quantile(&self, share: f64) -> Duration {
        let last = self.runs.len() - 1;
        self.runs[(last as f64 * share).round() as usize]
    }

    fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// GFLOP/s at the median, where the operations are counted.
    fn rate(&self) -> Option<f64> {
        (self.report.flops > 0).then(|| self.report.flops as f64 / self.median().as_secs_f64() / 1e9)
    }
}

impl Bench {
    pub fn execute(self) -> Result<(), Failure> {
        let measured = self.measure()?;
        let mut out = io::stdout().lock();
        match self.json {
            true => writeln!(out, "{}", self.to_json(&measured))?,
            false => print(&mut out, &measured)?,
        }
        Ok(())
    }

    fn measure(&self) -> Result<Measured, Failure> {
        let mut options = self.session.options();
        options.profile = self.profile;
        let start = Instant::now();
        let model = Model::load(&self.model, &options.limits)?;
        let session = Session::new(model, options)?;
        let load = start.elapsed();
        let gathered = gather(&session, &self.inputs, &self.dims, self.seed)?;
        gathered.announce(self.seed);
        let inputs = gathered.tensors;
        let start = Instant::now();
        let report = session.prepare(&inputs.iter().map(Tensor::ty).collect::<Vec<_>>())?;
        let compile = start.elapsed();
        let timed = || -> Result<Duration, Failure> {
            let start = Instant::now();
            session.run(inputs.as_slice())?;
            Ok(start.elapsed())
        };
        let first = timed()?;
        let mut runs = Vec::new();
        let budget = Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Failure::Usage(format!("{} is not a number of seconds", self.seconds)))?;
        let begin = Instant::now();
        while runs.is_empty() || begin.elapsed() < budget {
            runs.push(timed()?);
        }
        runs.sort();
        let profile = session.profile();
        Ok(Measured { load, report, compile, first, runs, profile })
    }

    fn to_json(&self, measured: &Measured) -> Value {
        let seconds = |d: Duration| d.as_secs_f64();
        let phases: Vec<Value> = measured
            .report
            .phases
            .iter()
            .map(|phase| json!({ "name": phase.name, "seconds": seconds(phase.time) }))
            .collect();
        let mut object = json!({
            "model": self.model.display().to_string(),
            "threads": self.session.threads,
            "load_seconds": seconds(measured.load),
            "compile_seconds": seconds(measured.compile),
            "phases": phases,
            "first_run_seconds": seconds(measured.first),
            "runs": measured.runs.len(),
            "median_seconds": seconds(measured.median()),
            "p90_seconds": seconds(measured.quantile(0.9)),
            "p99_seconds": seconds(measured.quantile(0.99)),
            "flops": measured.report.flops,
            "gflops_per_second": measured.rate(),
            "arena_bytes": measured.report.arena_bytes,
            "constant_bytes": measured.report.constant_bytes,
            "code_bytes": measured.report.code_bytes,
            "kernels": measured.report.kernels,
            "steps": measured.report.steps,
            "nodes": {
                "compiled": measured.report.counts.compiled,
                "called": measured.report.counts.called,
                "interpreted": measured.report.counts.interpreted,
            },
        });
        if self.profile {
            object["profile"] = measured
                .profile
                .iter()
                .map(|kernel| {
                    json!({
                        "kernel": kernel.name,
                        "nodes": kernel.origin,
                        "seconds": seconds(kernel.time),
                        "runs": kernel.runs,
                        "flops": kernel.flops,
                        "bytes": kernel.bytes,
                    })
                })
                .collect();
        }
        object
    }
}

fn print(out: &mut impl Write, measured: &Measured) -> io::Result<()> {
    let ready = measured.load + measured.compile;
    let mut phases = vec![format!("load {}", time(measured.load))];
    phases.extend(measured.report.phases.iter().map(|p| format!("{} {}", p.name, time(p.time))));
    let counts = measured.report.counts;
    let mut rows = table(&[], &[]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_string(), value]);
    };
    row("ready in", format!("{} ({})", time(ready), phases.join(", ")));
    row("first run", time(measured.first));
    row("median", format!("{} of {} runs", time(measured.median()), measured.runs.len()));
    row("p90, p99", format!("{}, {}", time(measured.quantile(0.9)), time(measured.quantile(0.99))));
    if let Some(rate) = measured.rate() {
        let flops = measured.report.flops as f64 / 1e9;
        row("arithmetic", format!("{} GFLOP a run, {} GFLOP/s", three_digits(flops), three_digits(rate)));
    }
    row("arena", bytes(measured.report.arena_bytes));
    row("constants", bytes(measured.report.constant_bytes));
    row("code", {
        let report = &measured.report;
        format!("{} in {} kernels, {} steps", bytes(report.code_bytes), report.kernels, report.steps)
    });
    row("nodes", format!("{} compiled, {} interpreted", counts.compiled, counts.interpreted));
    writeln!(out, "{}", rows.trim_fmt())?;
    if !measured.profile.is_empty() {
        writeln!(out, "\n{}", profile_table(&measured.profile).trim_fmt())?;
    }
    Ok(())
}

/// One row a kernel, the costliest first.
fn profile_table(profile: &[KernelProfile]) -> comfy_table::Table {
    let total: Duration = profile.iter().map(|kernel| kernel.time).sum();
    let mut sorted: Vec<&KernelProfile> = profile.iter().collect();
    sorted.sort_by_key(|kernel| std::cmp::Reverse(kernel.time));
    let mut rows = table(&["kernel", "time a run", "share", "rate", "nodes"], &[1, 2, 3]);
    for kernel in sorted {
        let runs = kernel.runs.max(1) as f64;
        let seconds = kernel.time.as_secs_f64() / runs;
        // What does little arithmetic a byte is judged by the bytes it moves.
        let rate = match (kernel.flops, kernel.bytes) {
            _ if seconds == 0.0 => String::new(),
            (flops, bytes) if flops > bytes => {
                format!("{} GFLOP/s", three_digits(flops as f64 / seconds / 1e9))
            }
            (_, bytes) => format!("{} GB/s", three_digits(bytes as f64 / seconds / 1e9)),
        };
        let share = kernel.time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE) * 100.0;
        rows.add_row([
            kernel.name.clone(),
            time(Duration::from_secs_f64(seconds)),
            format!("{share:.1} %"),
            rate,
            kernel.origin.clone(),
        ]);
    }
    rows
}
