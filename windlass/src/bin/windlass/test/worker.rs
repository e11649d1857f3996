//! The worker side of `windlass test`: reads jobs from stdin, writes reports to stdout.

use std::io::{self, BufRead, Write};
use std::time::Instant;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::case;
use super::protocol::{CaseReport, Job};
use crate::arguments::SessionArgs;
use crate::failure::Failure;

/// Run test cases given on stdin (used by `windlass test`)
#[derive(Args)]
pub struct TestWorker {
    /// Bytes of address space this process may use
    #[arg(long)]
    memory_bytes: u64,
    #[command(flatten)]
    session: SessionArgs,
}

impl TestWorker {
    pub fn execute(self) -> Result<(), Failure> {
        let maximum = getrlimit(Resource::As).maximum;
        let bytes = maximum.map_or(self.memory_bytes, |maximum| maximum.min(self.memory_bytes));
        setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum }).map_err(io::Error::from)?;
        // A crash is expected here: it should leave no core file behind.
        let no_core = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Core, no_core).map_err(io::Error::from)?;
        let options = self.session.options();
        for line in io::stdin().lock().lines() {
            let job: Job = serde_json::from_str(&line?)
                .map_err(|error| Failure::Message(format!("not a job: {error}")))?;
            let start = Instant::now();
            let report = case::run(&job, &options);
            let report = CaseReport { seconds: start.elapsed().as_secs_f64(), ..report };
            let mut out = io::stdout().lock();
            serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
            writeln!(out)?;
            out.flush()?;
        }
        Ok(())
    }
}
