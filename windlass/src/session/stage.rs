//! One part of a plan: a graph of known sizes, compiled.

use std::time::{Duration, Instant};

use windlass_ir::{Graph, Op, Tensor, interpret};

use crate::error::Error;
use crate::options::Options;

/// How the nodes of a model were run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// As native code.
    pub compiled: usize,
    /// By calling a library routine.
    pub called: usize,
    /// By the interpreter.
    pub interpreted: usize,
}

impl Counts {
    pub(super) fn add(&mut self, other: Counts) {
        self.compiled += other.compiled;
        self.called += other.called;
        self.interpreted += other.interpreted;
    }
}

/// How long a phase of compiling took.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub time: Duration,
}

/// What compiling a model for some input sizes came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// How its nodes are run.
    pub counts: Counts,
    /// Distinct kernels.
    pub kernels: usize,
    /// Steps of one run.
    pub steps: usize,
    /// The size of the arena.
    pub arena_bytes: u64,
    /// The size of the constants.
    pub constant_bytes: u64,
    /// Floating-point operations of one run, an fma counting as two.
    pub flops: u64,
}

impl Report {
    /// Runs one phase and notes its time.
    pub(super) fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.phases.push(Phase { name, time: start.elapsed() });
        result
    }
}

/// The time spent in one step of a compiled model.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelProfile {
    /// The kernel, or the op that is interpreted.
    pub name: String,
    /// The graph nodes it came from.
    pub origin: Vec<String>,
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
    graph: Graph,
    report: Report,
}

impl Stage {
    pub(super) fn new(graph: Graph, _options: &Options) -> Result<Stage, Error> {
        let nodes = graph.nodes().filter(|(_, data)| !matches!(data.op, Op::Constant(_))).count();
        let report =
            Report { counts: Counts { interpreted: nodes, ..Counts::default() }, ..Report::default() };
        Ok(Stage { graph, report })
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

    pub(super) fn run(&self, ins: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        Ok(interpret(&self.graph, &ins)?)
    }
}
