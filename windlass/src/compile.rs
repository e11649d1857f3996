//! From a graph to a program of kernels, with a report of where the time went.

use std::time::{Duration, Instant};

use windlass_codegen::Target;
use windlass_ir::attrs::Slot;
use windlass_ir::graph::NodeData;
use windlass_ir::loops::{Program, Work};
use windlass_ir::{Graph, Late, Limits, Op, TensorType};
use windlass_passes::graph::{bf16_weights, checkpoint};
use windlass_passes::lower::schedule::Machine;
use windlass_passes::lower::{LowerOptions, lower, lower_choosing};
use windlass_passes::{Stage, pipeline};

use crate::error::Error;
use crate::options::Options;
use crate::tune::Tuner;

/// How the nodes of a model are run.
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
    pub(crate) fn add(&mut self, other: Counts) {
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
    /// Bytes of machine code.
    pub code_bytes: u64,
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
    pub(crate) fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.phases.push(Phase { name, time: start.elapsed() });
        result
    }

    /// Takes a part of a phase out, as a phase of its own.
    pub(crate) fn split(&mut self, whole: &str, name: &'static str, time: Duration) {
        if let Some(whole) = self.phases.iter_mut().rfind(|phase| phase.name == whole) {
            whole.time = whole.time.saturating_sub(time);
        }
        self.phases.push(Phase { name, time });
    }

    /// Takes over a program's figures.
    fn describe(&mut self, program: &Program) {
        // What prepares constants is run once, and is no node of the model.
        for (number, step) in program.steps.iter().enumerate() {
            match step.work {
                Work::Kernel(_) => self.counts.compiled += step.origin.len().max(1),
                Work::Interpret { .. } => self.counts.interpreted += 1,
            }
            self.flops += step.flops * program.times(number) as u64;
        }
        self.kernels = program.kernels.len();
        self.steps = program.steps.len();
        self.arena_bytes = program.arena_bytes;
        self.constant_bytes =
            program.constant_types().map(|ty| (ty.as_len().unwrap_or(0) * ty.dtype.size()) as u64).sum();
    }
}

/// The graph for inputs of these types, all sizes known, if then every size in it is.
pub fn bind(graph: &Graph, types: &[TensorType]) -> Result<Graph, Error> {
    let bound = graph.specialized(types)?;
    let is_open = |data: &NodeData| {
        !late_operands(&data.op).is_empty() || data.outs.iter().any(|&v| bound.ty(v).as_shape().is_none())
    };
    let open = bound.nodes().find(|(_, data)| is_open(data)).map(|(node, _)| bound.describe(node));
    match open {
        Some(node) => Err(Error::DataDependent { node }),
        None => Ok(bound),
    }
}

/// The operands that hold late attributes.
pub(crate) fn late_operands(op: &Op) -> Vec<u32> {
    let mut found = Vec::new();
    let mut op = op.clone();
    let mut visit = |_: &'static str, slot: Slot<'_>| {
        if let Slot::Late(Late::Operand(index)) = slot {
            found.push(*index);
        }
        Ok(())
    };
    op.attrs(&mut visit).expect("reading attributes cannot fail");
    found
}

/// The graph after the passes of the options' level. Every dimension must be fixed.
pub fn optimize(graph: &Graph, options: &Options) -> Result<Graph, Error> {
    let level = options.opt_level.min(Options::MAX_OPT_LEVEL);
    let stages = pipeline(["O0", "O1", "O2"][usize::from(level)]).map_or(&[][..], |pipeline| pipeline.stages);
    let rounding = options.bf16_weights.then_some(Stage::Pass(&bf16_weights::PASS));
    let stages: Vec<Stage> = stages.iter().copied().chain(rounding).collect();
    let passes =
        windlass_passes::Options { winograd: options.winograd, ..windlass_passes::Options::default() };
    Ok(windlass_passes::run(graph, &stages, &passes)?.0)
}

/// How often a graph is made to take less memory, the first time included.
const ATTEMPTS: usize = 4;

/// A graph whose values are computed again so that the arena of its program stays within a limit, as far as that is
/// possible. What is planned from a graph is an estimate, so it is corrected by what came of it.
fn within(graph: Graph, limit: u64, lowering: &LowerOptions) -> Result<Graph, Error> {
    let (mut least, mut target) = (lower(&graph, lowering)?.arena_bytes, limit);
    let mut best: Option<Graph> = None;
    for _ in 0..ATTEMPTS {
        if least <= limit {
            break;
        }
        let passes =
            windlass_passes::Options { memory_limit: Some(target), ..windlass_passes::Options::default() };
        let (less, _) = windlass_passes::run(&graph, &[Stage::Pass(&checkpoint::PASS)], &passes)?;
        let found = lower(&less, lowering)?.arena_bytes;
        target = (target as f64 * limit as f64 / found.max(1) as f64 * 0.95) as u64;
        if found < least {
            (least, best) = (found, Some(less));
        }
    }
    Ok(best.unwrap_or(graph))
}

/// The kernels of a graph and how to run them. Every dimension must be fixed.
pub fn program(graph: &Graph, options: &Options) -> Result<(Program, Report), Error> {
    let mut report = Report::default();
    let mut graph = report.time("passes", || optimize(graph, options))?;
    let bits = match options.vector_bits {
        Some(bits) => bits,
        None => Target::host().vector_bits()?,
    };
    let byte_products = match options.byte_products {
        Some(has) => has,
        None => bits == 512 && Target::host().has_byte_products()?,
    };
    let machine =
        Machine { little_endian: options.little_endian, byte_products, ..Machine::with_vectors(bits) };
    let in_place = options.in_place.clone();
    let lowering = LowerOptions { fuse: options.opt_level > 0, machine, in_place };
    if let Some(limit) = options.memory_limit {
        graph = report.time("checkpoint", || within(graph, limit, &lowering))?;
    }
    let program = match Tuner::new(options, machine) {
        None => report.time("lower", || lower(&graph, &lowering))?,
        Some(mut tuner) => report.time("tune", || {
            let program = lower_choosing(&graph, &lowering, &mut |nest| tuner.choose(nest));
            // What cannot be remembered is found again.
            let _ = tuner.finish();
            program
        })?,
    };
    let limit = options.limits.memory_bytes;
    Limits::check(|| format!("graph `{}`", graph.name), "bytes of arena", program.arena_bytes, limit)?;
    report.describe(&program);
    Ok((program, report))
}
