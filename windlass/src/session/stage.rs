//! One part of a plan: a graph of known sizes, compiled.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use windlass_codegen::{Statistics, jit, jit_and_run};
use windlass_ir::loops::{Program, interpret::run_program};
use windlass_ir::{DType, Graph, Recycler, Shape, Tensor};
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
    made: OnceLock<Made>,
    /// What code is made of, until it is.
    program: Mutex<Option<(Box<Program>, Report)>>,
    counts: Counts,
}

/// A stage with its code.
struct Made {
    code: Code,
    report: Report,
}

enum Code {
    /// Machine code, what its results are, and where its time goes if that is asked for.
    Native { executable: Box<Executable>, results: Results, profile: Option<Mutex<Profile>> },
    /// Loops for their interpreter.
    Loops(Box<Program>),
}

impl Stage {
    /// Plans the kernels of a graph. Their code is made when it is first needed, and a run begins meanwhile.
    pub(super) fn new(graph: &Graph, options: &Options) -> Result<Stage, Error> {
        let (program, report) = program(graph, options)?;
        let counts = report.counts;
        let program = Mutex::new(Some((Box::new(program), report)));
        Ok(Stage { made: OnceLock::new(), program, counts })
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// What making its code came to. It is made if it has not been.
    pub(super) fn report(&self, setup: &Setup) -> Result<&Report, Error> {
        Ok(&self.make(setup, jit)?.report)
    }

    /// The code, made by `make` unless it is there. Threads that ask at once wait for the first.
    fn make(
        &self,
        setup: &Setup,
        make: impl FnOnce(
            &Program,
            &windlass_codegen::Options,
        ) -> Result<(Executable, Statistics), windlass_codegen::Error>,
    ) -> Result<&Made, Error> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((plan, report)) = program.as_mut() else {
            return Ok(self.made.get().expect("the program is there until the code is"));
        };
        let options = &setup.options;
        let code = match options.engine {
            Engine::Loops | Engine::Interpreter => Code::Loops(std::mem::take(plan)),
            Engine::Jit => {
                let code_options = windlass_codegen::Options {
                    vector_bits: options.vector_bits,
                    ..windlass_codegen::Options::default()
                };
                let phases = report.phases.len();
                let made = report.time("codegen", || make(plan, &code_options));
                let (executable, statistics) = match made {
                    Ok(made) => made,
                    Err(error) => {
                        report.phases.truncate(phases);
                        return Err(error.into());
                    }
                };
                report.split("codegen", "prepare", statistics.prepare);
                report.split("codegen", "run", statistics.run);
                report.kernels = statistics.distinct;
                report.code_bytes = statistics.code_bytes as u64;
                let results = Results::of(plan);
                let executable = Box::new(executable);
                Code::Native { executable, results, profile: options.profile.then(Mutex::default) }
            }
        };
        let report = std::mem::take(report);
        let made = self.made.get_or_init(|| Made { code, report });
        *program = None;
        Ok(made)
    }

    /// Where the time of all runs went; nothing unless the options ask for a profile.
    pub(super) fn profile(&self) -> Vec<KernelProfile> {
        let Some(Code::Native { executable, profile: Some(profile), .. }) =
            self.made.get().map(|made| &made.code)
        else {
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

    /// Runs the code. Tensors in whose memory results are made are taken from the operands, unless there is an error.
    pub(super) fn run(&self, ins: &mut [Tensor], setup: &Setup) -> Result<Vec<Tensor>, Error> {
        let mut first = None;
        let made = self.make(setup, |program, options| {
            // A profile is of steps that nothing is done beside.
            if setup.options.profile {
                return jit(program, options);
            }
            let results = Results::of(program);
            let (code, tensors) =
                results.call(ins, |ins, outs| jit_and_run(program, options, &setup.pool, ins, outs))?;
            first = Some(tensors);
            Ok(code)
        })?;
        if let Some(tensors) = first {
            return Ok(tensors);
        }
        match &made.code {
            Code::Loops(program) => Ok(run_program(program, ins)?),
            Code::Native { executable, results, profile } => {
                let ((), tensors) = results.call(ins, |ins, outs| match profile {
                    None => executable.run(&setup.pool, ins, outs),
                    Some(profile) => {
                        let mut profile = profile.lock().unwrap_or_else(PoisonError::into_inner);
                        executable.run_profiled(&setup.pool, ins, outs, &mut profile)
                    }
                })?;
                Ok(tensors)
            }
        }
    }
}

/// As many operands and results as most models have.
const FEW: usize = 4;

/// What the results of code are.
struct Results {
    shapes: Vec<(DType, Shape)>,
    /// Which operand's memory each is made in, if any's.
    replaces: Vec<Option<usize>>,
    /// Every run writes all of its results, whatever their memory held.
    recycler: Recycler,
}

impl Results {
    fn of(program: &Program) -> Results {
        let mut replaces = vec![None; program.outputs.len()];
        for &(input, output) in &program.in_place {
            replaces[output as usize] = Some(input as usize);
        }
        let shapes = program.outputs.iter().map(|(_, ty)| (ty.dtype, ty.shape())).collect();
        Results { shapes, replaces, recycler: Recycler::new(program.outputs.len()) }
    }

    /// Calls what takes bytes and writes bytes. What it gives, and the results.
    fn call<T, E>(
        &self,
        ins: &mut [Tensor],
        run: impl FnOnce(&[&[u8]], &mut [&mut [u8]]) -> Result<T, E>,
    ) -> Result<(T, Vec<Tensor>), E> {
        let mut tensors: Vec<Tensor> = (self.shapes.iter().zip(&self.replaces))
            .map(|((dtype, shape), replaces)| match replaces {
                Some(input) => ins[*input].take(),
                None => self.recycler.tensor(*dtype, shape),
            })
            .collect();
        let done = {
            let bytes: SmallVec<[&[u8]; FEW]> = ins.iter().map(Tensor::bytes).collect();
            let mut outs: SmallVec<[&mut [u8]; FEW]> = tensors.iter_mut().map(Tensor::bytes_mut).collect();
            run(&bytes, &mut outs)
        };
        match done {
            Ok(value) => Ok((value, tensors)),
            Err(error) => {
                for (tensor, replaces) in tensors.into_iter().zip(&self.replaces) {
                    if let Some(input) = *replaces {
                        ins[input] = tensor;
                    }
                }
                Err(error)
            }
        }
    }
}
