//! `windlass bench`: how long a model takes to compile and to run.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use windlass::peak::fma_peak;
use windlass::session::{KernelProfile, Report};
use windlass::{Session, Tensor};

use crate::arguments::{DimArg, InputArg, SessionArgs, parse_dim, parse_input};
use crate::failure::Failure;
use crate::inputs::{gather, load_model};
use crate::table::{bytes, table, three_digits, time};

/// Time a model: loading and compiling it, its first result, and its runs from then on
#[derive(Args)]
pub struct Bench {
    /// The model: .onnx or .wir
    #[arg(required_unless_present = "peak")]
    model: Option<PathBuf>,
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
    /// Only measure the peak that rates are compared with: multiply-adds in registers, on one thread
    #[arg(long, conflicts_with_all = ["model", "profile"])]
    peak: bool,
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
    /// From the loaded model to the end of the first run, which begins before all code is made.
    first: Duration,
    /// How many runs there were after the first.
    count: usize,
    /// Their times, or those of a part of them, in ascending order.
    runs: Vec<Duration>,
    profile: Vec<KernelProfile>,
    /// GFLOP/s of all threads in nothing but multiply-adds.
    peak: f64,
}

/// The most times of runs that are kept: when there are as many, every second is dropped, and of later runs as many are.
const KEPT: usize = 1 << 15;

/// How long the peak is measured.
const PEAK_TIME: Duration = Duration::from_millis(50);

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
        let mut out = io::stdout().lock();
        let Some(model) = &self.model else {
            let peak = fma_peak(PEAK_TIME)?;
            match self.json {
                true => writeln!(out, "{}", json!({ "peak_gflops_per_second": peak }))?,
                false => writeln!(out, "{} GFLOP/s", three_digits(peak))?,
            }
            return Ok(());
        };
        let measured = self.measure(model)?;
        match self.json {
            true => writeln!(out, "{}", self.to_json(model, &measured))?,
            false => print(&mut out, &measured)?,
        }
        Ok(())
    }

    fn measure(&self, path: &Path) -> Result<Measured, Failure> {
        let mut options = self.session.options();
        options.profile = self.profile;
        let start = Instant::now();
        let (model, dims) = load_model(path, &options.limits, &self.inputs, &self.dims)?;
        let session = Session::new(model, options)?;
        let load = start.elapsed();
        let gathered = gather(&session, &self.inputs, &dims, self.seed)?;
        gathered.announce(self.seed);
        let inputs = gathered.tensors;
        let timed = || -> Result<Duration, Failure> {
            let start = Instant::now();
            session.run(inputs.as_slice())?;
            Ok(start.elapsed())
        };
        let first = timed()?;
        let report = session.prepare(&inputs.iter().map(Tensor::ty).collect::<Vec<_>>())?;
        let mut runs = Vec::new();
        let budget = Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Failure::Usage(format!("{} is not a number of seconds", self.seconds)))?;
        let begin = Instant::now();
        let (mut count, mut apart) = (0, 1);
        while runs.is_empty() || begin.elapsed() < budget {
            let run = timed()?;
            if count % apart == 0 {
                runs.push(run);
            }
            count += 1;
            if runs.len() == KEPT {
                let mut at = 0..;
                runs.retain(|_| at.next().is_some_and(|at| at % 2 == 0));
                apart *= 2;
            }
        }
        runs.sort();
        let profile = session.profile();
        let peak = fma_peak(PEAK_TIME)? * f64::from(self.session.threads);
        Ok(Measured { load, report, first, count, runs, profile, peak })
    }

    fn to_json(&self, model: &Path, measured: &Measured) -> Value {
        let seconds = |d: Duration| d.as_secs_f64();
        let phases: Vec<Value> = measured
            .report
            .phases
            .iter()
            .map(|phase| json!({ "name": phase.name, "seconds": seconds(phase.time) }))
            .collect();
        let mut object = json!({
            "model": model.display().to_string(),
            "threads": self.session.threads,
            "load_seconds": seconds(measured.load),
            "first_result_seconds": seconds(measured.load + measured.first),
            "phases": phases,
            "runs": measured.count,
            "median_seconds": seconds(measured.median()),
            "p90_seconds": seconds(measured.quantile(0.9)),
            "p99_seconds": seconds(measured.quantile(0.99)),
            "flops": measured.report.flops,
            "gflops_per_second": measured.rate(),
            "peak_gflops_per_second": measured.peak,
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
    let mut phases = vec![format!("load {}", time(measured.load))];
    phases.extend(measured.report.phases.iter().map(|p| format!("{} {}", p.name, time(p.time))));
    let counts = measured.report.counts;
    let mut rows = table(&[], &[]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_string(), value]);
    };
    row("first result", format!("{} ({})", time(measured.load + measured.first), phases.join(", ")));
    row("median", format!("{} of {} runs", time(measured.median()), measured.count));
    row("p90, p99", format!("{}, {}", time(measured.quantile(0.9)), time(measured.quantile(0.99))));
    if let Some(rate) = measured.rate() {
        let flops = measured.report.flops as f64 / 1e9;
        let [flops, shown, peak] = [flops, rate, measured.peak].map(three_digits);
        let share = 100.0 * rate / measured.peak;
        row(
            "arithmetic",
            format!("{flops} GFLOP a run, {shown} GFLOP/s, {share:.0} % of the peak of {peak}"),
        );
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
