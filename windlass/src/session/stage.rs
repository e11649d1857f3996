//! One part of a plan: a graph of known sizes, compiled.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use windlass_codegen::jit;
use windlass_ir::loops::{Program, interpret::run_program};
use windlass_ir::{Graph, Tensor, TensorType};
use windlass_runtime::{Executable, Pool, Profile};

use crate::compile::{Counts, Report, program};
use crate::error::Error;
use crate::options::{Engine, Options};

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
    /// Bytes of its operands and results, in every round of a repeat.
    pub bytes: u64,
}

/// What all stages of a session share.
pub(super) struct Setup {
    pub(super) options: Options,
    pub(super) pool: Pool,
}

pub(super) struct Stage {
    code: Code,
    report: Report,
}

enum Code {
    /// Machine code, the types of its results, and where its time goes if that is asked for.
    Native { executable: Box<Executable>, outputs: Vec<TensorType>, profile: Option<Mutex<Profile>> },
    /// Loops for their interpreter.
    Loops(Box<Program>),
}

impl Stage {
    pub(super) fn new(graph: &Graph, options: &Options) -> Result<Stage, Error> {
        let (program, mut report) = program(graph, options)?;
        let code = match options.engine {
            Engine::Loops | Engine::Interpreter => Code::Loops(Box::new(program)),
            Engine::Jit => {
                let code_options = windlass_codegen::Options {
                    vector_bits: options.vector_bits,
                    ..windlass_codegen::Options::default()
                };
                let (executable, statistics) = report.time("codegen", || jit(&program, &code_options))?;
                report.split_last("prepare", statistics.prepare);
                report.kernels = statistics.distinct;
                report.code_bytes = statistics.code_bytes as u64;
                let outputs = program.outputs.into_iter().map(|(_, ty)| ty).collect();
                let executable = Box::new(executable);
                Code::Native { executable, outputs, profile: options.profile.then(Mutex::default) }
            }
        };
        Ok(Stage { code, report })
    }

    pub(super) fn counts(&self) -> Counts {
        self.report.counts
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// Where the time of all runs went; nothing unless the options ask for a profile.
    pub(super) fn profile(&self) -> Vec<KernelProfile> {
        let Code::Native { executable, profile: Some(profile), .. } = &self.code else {
            return Vec::new();
        };
        let profile = profile.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = executable.steps().iter().zip(&profile.steps).enumerate();
        let kernel = |(at, (step, &time)): (usize, (&windlass_runtime::Step, &Duration))| KernelProfile {
            name: step.name.clone(),
            origin: step.origin.clone(),
            time,
            runs: profile.runs,
            flops: step.flops,
            bytes: step.args.iter().map(|&(_, bytes)| bytes as u64).sum::<u64>()
                * executable.rounds(at) as u64,
        };
        steps.map(kernel).collect()
    }

    pub(super) fn run(&self, ins: &[Tensor], setup: &Setup) -> Result<Vec<Tensor>, Error> {
        match &self.code {
            Code::Loops(program) => Ok(run_program(program, ins)?),
            Code::Native { executable, outputs, profile } => {
                let ins: Vec<&[u8]> = ins.iter().map(Tensor::bytes).collect();
                let mut results: Vec<Tensor> =
                    outputs.iter().map(|ty| Tensor::zeros(ty.dtype, &ty.shape())).collect();
                let mut outs: Vec<&mut [u8]> = results.iter_mut().map(Tensor::bytes_mut).collect();
                match profile {
                    None => executable.run(&setup.pool, &ins, &mut outs)?,
                    Some(profile) => {
                        let mut profile = profile.lock().unwrap_or_else(PoisonError::into_inner);
                        executable.run_profiled(&setup.pool, &ins, &mut outs, &mut profile)?;
                    }
                }
                Ok(results)
            }
        }
    }
}
