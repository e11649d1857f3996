//! Programs to executables in memory. The files of this folder have unsafe code: they turn addresses of code into
//! functions, free the code, and hand out the places of constants before these are prepared.
//!
//! Code is made, constants are prepared and, if that is asked for, a first run is done [at the same time](making). Code
//! goes to [memory](memory) that is written at one address and run at another, where the system has such. What has been
//! prepared from a mapped file [leaves memory](unload).

mod lending;
mod making;
mod memory;
mod outputs;
mod side;
mod unload;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use windlass_ir::loops::{Kernel, Move, Place, Program, Step, Work};
use windlass_ir::{Tensor, TensorType, eval_op};
use windlass_runtime::{Constant, Executable, HostFn, Parts, Pool, Port};

use self::making::{Preparation, make};
use self::outputs::Outputs;
use self::side::{JitCode, Side};
use self::unload::Preparing;
use crate::compile::{Options, Statistics};
use crate::error::Error;
use crate::isa;

/// A constant, shared with the program.
struct Shared(Tensor);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.raw_bytes()
    }
}

/// Compiles a program for this machine, and prepares its constants meanwhile.
pub fn jit(program: &Program, options: &Options) -> Result<(Executable, Statistics), Error> {
    build(program, options, None)
}

/// Compiles a program for this machine and runs it once, each step as soon as there are its code and its constants.
///
/// That is sooner done than one after the other: code is made on all threads, and a run may use one. The results are
/// those of [`jit`] and a run.
pub fn jit_and_run(
    program: &Program,
    options: &Options,
    pool: &Pool,
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
) -> Result<(Executable, Statistics), Error> {
    build(program, options, Some(First { pool, inputs, outputs }))
}

/// A run while code is made.
struct First<'f, 'i, 'o> {
    pool: &'f Pool,
    inputs: &'f [&'i [u8]],
    outputs: &'f mut [&'o mut [u8]],
}

fn build(
    program: &Program,
    options: &Options,
    first: Option<First<'_, '_, '_>>,
) -> Result<(Executable, Statistics), Error> {
    let start = Instant::now();
    let mut statistics = Statistics::default();
    check(program)?;
    let isa = isa::host(options.verify)?;
    let mut constants = constants(program);
    let (mut prepared, mut prepare) = (None, None);
    if let Some(program) = program.prepare.as_deref() {
        check(program)?;
        let mut own = self::constants(program);
        if let Some(before) = program.prepare.as_deref() {
            let (tensors, took) = outputs_of(before, options)?;
            own.extend(tensors.into_iter().map(|tensor| Constant::new(Shared(tensor))));
            statistics.add(&took);
        }
        let outputs = Outputs::new(program)?;
        // SAFETY: a step runs when the steps that write its constants are done: `make` sees to it for the first run,
        // and ends when all are.
        constants.extend(unsafe { outputs.constants() });
        prepare = Some(Side::new(program, own, &isa)?);
        prepared = Some(outputs);
    }
    let main = Side::new(program, constants, &isa)?;
    let bytes = prepared.as_ref().map_or(0, Outputs::bytes);
    let mut slices = prepared.as_mut().map(Outputs::slices).unwrap_or_default();
    let preparation = match &prepare {
        Some(side) => {
            let run = side.executable.start(&[], &mut slices)?;
            Some(Preparation { side, run, bytes })
        }
        None => None,
    };
    make(&main, preparation, &isa, options, first, &mut statistics)?;
    main.write_perf_map();
    statistics.wall = start.elapsed();
    Ok((main.into_executable(), statistics))
}

fn constants(program: &Program) -> Vec<Constant> {
    program.constants.iter().map(|tensor| Constant::new(Shared(tensor.clone()))).collect()
}

/// An executable of a program that has no code yet.
fn executable(program: &Program, constants: Vec<Constant>, code: Arc<JitCode>) -> Result<Executable, Error> {
    let steps = program.steps.iter().enumerate().map(|(number, step)| {
        let work = match &step.work {
            Work::Kernel(kernel) => {
                let kernel = &program.kernels[*kernel as usize];
                let extent = kernel.as_parallel().map_or(1, |(_, extent, _)| extent as i64);
                let worth = if program.repeat_of(number).is_some() { WORTH_A_TURN } else { WORTH_A_THREAD };
                let grain = grain(kernel, step, extent, worth);
                windlass_runtime::Work::Kernel { function: OnceLock::new(), extent, grain }
            }
            Work::Interpret { op, ins, outs } => windlass_runtime::Work::Host {
                ins: ins.len(),
                function: host_function(op.as_ref().clone(), ins.clone(), outs.clone()),
            },
        };
        windlass_runtime::Step {
            work,
            args: arguments(program, step),
            name: step_name(program, step),
            origin: step.origin.join(", "),
            flops: step.flops * program.times(number) as u64,
        }
    });
    let repeats = program.repeats.iter().map(|repeat| windlass_runtime::Repeat {
        steps: repeat.range(),
        times: repeat.times,
        moves: repeat.moves.iter().map(moving).collect(),
    });
    let port = |(name, ty): &(String, TensorType)| Port { name: name.clone(), bytes: bytes_of(ty) };
    let parts = Parts {
        steps: steps.collect(),
        repeats: repeats.collect(),
        constants,
        arena_bytes: program.arena_bytes as usize,
        inputs: program.inputs.iter().map(port).collect(),
        outputs: program.outputs.iter().map(port).collect(),
        in_place: program.in_place.clone(),
        code: Box::new(code),
    };
    // SAFETY: kernels are emitted from loops whose accesses lie inside their buffers, whose parallel
    // iterations are independent, and which write only what they declare; `check` holds the steps to
    // that. The code's memory is among the parts.
    Ok(unsafe { Executable::new(parts)? })
}

/// Compiles and runs a program without inputs, once. Its outputs share one buffer.
pub(crate) fn outputs_of(program: &Program, options: &Options) -> Result<(Vec<Tensor>, Statistics), Error> {
    let (executable, statistics) = jit(program, options)?;
    let mut outputs = Outputs::new(program)?;
    let preparing = Preparing::new(program);
    let pool = Pool::new(options.threads());
    let mut slices = outputs.slices();
    let mut run = executable.start(&[], &mut slices)?;
    while run.next().is_some() {
        preparing.step(&mut run, &pool)?;
    }
    drop(run);
    Ok((outputs.into_tensors(program)?, statistics))
}

fn bytes_of(ty: &TensorType) -> usize {
    ty.as_len().unwrap_or(0) * ty.dtype.size()
}

/// The step's buffers, with how many bytes it reaches over.
fn arguments(program: &Program, step: &Step) -> Vec<(windlass_runtime::Place, usize)> {
    let places = step.args.iter().map(|place| match *place {
        Place::Input(i) => windlass_runtime::Place::Input(i),
        Place::Output(i) => windlass_runtime::Place::Output(i),
        Place::Constant(i) => windlass_runtime::Place::Constant(i),
        Place::Arena(offset) => windlass_runtime::Place::Arena(offset),
    });
    let sizes: Vec<usize> = match &step.work {
        Work::Kernel(kernel) => {
            let kernel = &program.kernels[*kernel as usize];
            kernel.params().map(|(_, b)| b.len * b.dtype.size()).collect()
        }
        Work::Interpret { ins, outs, .. } => ins.iter().chain(outs).map(bytes_of).collect(),
    };
    places.zip(sizes).collect()
}

fn moving(moving: &Move) -> windlass_runtime::Move {
    let Move { step, arg, start, stride, period } = *moving;
    windlass_runtime::Move { step, arg, start, stride, period }
}

fn step_name(program: &Program, step: &Step) -> String {
    match &step.work {
        Work::Kernel(kernel) => program.kernels[*kernel as usize].name.clone(),
        Work::Interpret { op, .. } => op.name().to_string(),
    }
}

/// Checks what code relies on and the loop level does not: that steps fit their kernels.
pub(crate) fn check(program: &Program) -> Result<(), Error> {
    for (position, step) in program.steps.iter().enumerate() {
        let fail =
            |message: String| Err(Error::Step { step: position, origin: step.origin.join(", "), message });
        let expected = match &step.work {
            Work::Kernel(kernel) => match program.kernels.get(*kernel as usize) {
                Some(kernel) => kernel.params().count(),
                None => return fail(format!("there is no kernel {kernel}")),
            },
            Work::Interpret { ins, outs, .. } => ins.len() + outs.len(),
        };
        if step.args.len() != expected {
            return fail(format!("takes {expected} buffers, found {}", step.args.len()));
        }
        let read_only = match &step.work {
            Work::Kernel(kernel) => {
                let kernel = &program.kernels[*kernel as usize];
                kernel.params().map(|(_, b)| b.role == windlass_ir::loops::Role::In).collect()
            }
            Work::Interpret { ins, outs, .. } => [vec![true; ins.len()], vec![false; outs.len()]].concat(),
        };
        for (place, read_only) in step.args.iter().zip(read_only) {
            match place {
                Place::Input(_) | Place::Constant(_) if !read_only => {
                    return fail(format!("writes to {place:?}"));
                }
                Place::Arena(offset) if !offset.is_multiple_of(Program::ALIGN) => {
                    return fail(format!("{place:?} is not aligned to {}", Program::ALIGN));
                }
                Place::Input(_) | Place::Output(_) | Place::Constant(_) | Place::Arena(_) => {}
            }
        }
    }
    check_repeats(program)
}

/// Checks that repeats are ranges of steps in order, and that what moves is an argument that stays in its buffer.
fn check_repeats(program: &Program) -> Result<(), Error> {
    let mut next = 0;
    for repeat in &program.repeats {
        let fail = |message: &str| {
            let message = message.to_string();
            Err(Error::Step { step: repeat.first, origin: format!("{} rounds", repeat.times), message })
        };
        let range = repeat.range();
        if range.start < next || range.is_empty() || range.end > program.steps.len() || repeat.times == 0 {
            return fail("repeats steps that are not there, or not next");
        }
        next = range.end;
        for moving in &repeat.moves {
            let fits = range.contains(&moving.step)
                && program.steps[moving.step].args.len() > moving.arg
                && moving.bounds(repeat.times).0 >= 0;
            if !fits {
                return fail("moves what is no argument, or before its buffer");
            }
        }
    }
    Ok(())
}

/// Arithmetic, or bytes moved, that a thread should have to do before it is woken: about 10 microseconds.
pub(crate) const WORTH_A_THREAD: u64 = 100_000;

/// The same for a thread that is there already, in the rounds of a repeat.
const WORTH_A_TURN: u64 = 20_000;

/// The fewest iterations worth another thread.
pub(crate) fn grain(kernel: &Kernel, step: &Step, extent: i64, worth: u64) -> i64 {
    let bytes: usize = kernel.params().map(|(_, b)| b.len * b.dtype.size()).sum();
    let work = step.flops.max(bytes as u64).max(1);
    (worth * extent.max(1) as u64).div_ceil(work).max(1) as i64
}

fn host_function(op: windlass_ir::Op, ins: Vec<TensorType>, outs: Vec<TensorType>) -> HostFn {
    Box::new(move |operands, results| {
        let tensors: Vec<Tensor> = ins
            .iter()
            .zip(operands)
            .map(|(ty, bytes)| {
                Tensor::from_bytes(ty.dtype, &ty.shape(), bytes)
                    .ok_or_else(|| format!("an operand of {ty} has {} bytes", bytes.len()))
            })
            .collect::<Result<_, _>>()?;
        let values = eval_op(&op, &tensors)?;
        for ((value, ty), result) in values.iter().zip(&outs).zip(results) {
            if value.ty() != *ty || value.bytes().len() != result.len() {
                return Err(format!("gave {} instead of {ty}", value.ty()));
            }
            result.copy_from_slice(value.bytes());
        }
        Ok(())
    })
}
