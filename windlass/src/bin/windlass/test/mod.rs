//! `windlass test`: runs model folders in ONNX's test-case layout and compares with what they expect.
//!
//! Cases run in worker processes (this program again, under a hidden subcommand), so that one which
//! crashes, or takes too much time or memory, is one `error` and the others go on.

mod case;
mod pool;
mod protocol;
mod worker;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use windlass_frontend::onnx::testcase;

use self::pool::{Pool, Worker};
use self::protocol::{CaseReport, Job, Status};
pub use self::worker::TestWorker;
use crate::arguments::SessionArgs;
use crate::failure::Failure;

/// Run model folders in ONNX's test-case layout and compare the results with the expected ones
///
/// A case is a folder with model.onnx and test_data_set_N/input_M.pb and output_M.pb. The folders
/// given are searched for cases. Floats may differ by rtol 1e-3 relative and atol 1e-7 absolute, the
/// tolerances of ONNX's own suite, or by what a case's case.json says; everything else must be equal.
///
/// The exit code is 0 if every case passed (or ran, with --out), 3 if a result was wrong, 1 otherwise.
#[derive(Args)]
pub struct Test {
    /// Folders to search for cases
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Print one JSON object a case
    #[arg(long)]
    json: bool,
    /// Write the k-th case's results to OUT/k/test_data_set_N/output_M.pb
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// Only cases whose path contains this text
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Cases that run at once
    #[arg(long, value_name = "N", default_value_t = default_jobs(), value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Seconds after which a case is stopped
    #[arg(long, value_name = "S", default_value_t = 120)]
    case_seconds: u64,
    /// Bytes of address space that a worker may use
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 30)]
    case_memory_bytes: u64,
    #[command(flatten)]
    session: SessionArgs,
}

fn default_jobs() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(256) as u16)
}

impl Test {
    pub fn execute(self) -> Result<(), Failure> {
        let mut cases = Vec::new();
        for dir in &self.dirs {
            let found = testcase::discover(dir).map_err(windlass::Error::from)?;
            cases.extend(found.into_iter().map(|case| case.folder));
        }
        if let Some(text) = &self.only {
            cases.retain(|case| case.to_string_lossy().contains(text.as_str()));
        }
        if cases.is_empty() {
            let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            return Err(Failure::Message(format!(
                "no test case (a folder with model.onnx) in {}",
                dirs.join(", ")
            )));
        }
        let jobs: Vec<Job> = cases
            .into_iter()
            .enumerate()
            .map(|(index, dir)| Job {
                index,
                case: self.case_name(&dir),
                out: self.out.as_ref().map(|out| out.join(index.to_string())),
                dir,
            })
            .collect();
        let pool = Pool {
            workers: usize::from(self.jobs).min(jobs.len()),
            timeout: Duration::from_secs(self.case_seconds),
            worker: Worker { session: self.session.clone(), memory_bytes: self.case_memory_bytes },
        };
        let progress = progress_bar(jobs.len());
        let mut totals = BTreeMap::new();
        let mut printed = Ok(());
        pool.run(jobs, |report| {
            *totals.entry(report.status).or_insert(0usize) += 1;
            progress.suspend(|| printed = self.print(&report));
            progress.inc(1);
            printed.is_ok()
        })?;
        progress.finish_and_clear();
        printed?;
        self.finish(&totals)
    }

    /// A case is called by its path below the folder given.
    fn case_name(&self, dir: &std::path::Path) -> String {
        let below = self.dirs.iter().find_map(|root| dir.strip_prefix(root).ok());
        match below {
            Some(below) if !below.as_os_str().is_empty() => below.display().to_string(),
            _ => dir.display().to_string(),
        }
    }

    fn print(&self, report: &CaseReport) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, report)?;
            writeln!(out)?;
        } else {
            write!(out, "{:<11} {}", report.status.word(), report.case)?;
            match (&report.reason, report.difference) {
                (Some(reason), _) => writeln!(out, ": {reason}")?,
                (None, Some(difference)) if difference > 0.0 => {
                    writeln!(out, " (largest difference {difference:.2e})")?;
                }
                (None, _) => writeln!(out)?,
            }
        }
        out.flush()
    }

    fn finish(&self, totals: &BTreeMap<Status, usize>) -> Result<(), Failure> {
        let count = |status| totals.get(&status).copied().unwrap_or(0);
        let parts: Vec<String> = Status::ALL
            .iter()
            .filter(|&&status| count(status) > 0)
            .map(|&status| format!("{} {}", count(status), status.word()))
            .collect();
        let summary = format!("{} cases: {}", totals.values().sum::<usize>(), parts.join(", "));
        match self.json {
            true => eprintln!("{summary}"),
            false => println!("{summary}"),
        }
        match (count(Status::Wrong), count(Status::Error) + count(Status::Unsupported)) {
            (0, 0) => Ok(()),
            (0, _) => Err(Failure::Reported),
            (_, _) => Err(Failure::Mismatch),
        }
    }
}

fn progress_bar(cases: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {elapsed}");
    ProgressBar::new(cases as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
