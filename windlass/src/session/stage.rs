//! One part of a plan: a graph of known sizes, compiled.

use std::time::Duration;

use windlass_ir::loops::{Program, interpret::run_program};
use windlass_ir::{Graph, Tensor};

use crate::compile::{Counts, Report, program};
use crate::error::Error;
use crate::options::Options;

/// The time spent in one step of a compiled model.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelProfile {
    /// The kernel, or the op that is interpreted.
    pub name: String,
    /// The graph nodes it came from.
    pub origin: String,
    /// The time of all runs together.
    pub time: Duration,
    /// How many runs were counted.
    pub runs: u64,
    /// Floating-point operations of one run, 0 where unknown.
    pub flops: u64,
    /// Bytes of its operands and results.
    pub bytes: u64,
}

pub(super) struct Stage {
    program: Program,
    report: Report,
}

impl Stage {
    pub(super) fn new(graph: &Graph, options: &Options) -> Result<Stage, Error> {
        let (program, report) = program(graph, options)?;
        Ok(Stage { program, report })
    }

    pub(super) fn counts(&self) -> Counts {
        self.report.counts
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    pub(super) fn profile(&self) -> Vec<KernelProfile> {
        Vec::new()
    }

    pub(super) fn run(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        Ok(run_program(&self.program, ins)?)
    }
}
