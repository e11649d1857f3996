//! Programs to executables in memory. One of the files with unsafe code: it turns addresses of code
//! into functions, and frees the code.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use windlass_ir::loops::{Kernel, Move, Place, Program, Step, Work};
use windlass_ir::{Tensor, TensorType, eval_op};
use windlass_runtime::{AlignedBuffer, Constant, Executable, HostFn, KernelFn, Parts, Pool, Port};

use crate::compile::{Options, Statistics, compile};
use crate::cranelift;
use crate::error::Error;
use crate::isa;

/// The memory of compiled kernels, freed when dropped.
struct JitCode(Mutex<Option<JITModule>>);

impl Drop for JitCode {
    fn drop(&mut self) {
        if let Some(module) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // SAFETY: the executable that calls the code owns this value and drops it last, and no
            // other copy of the addresses was given out.
            unsafe { module.free_memory() }
        }
    }
}

/// A constant, shared with the program.
struct Shared(Tensor);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.raw_bytes()
    }
}

/// Compiles a program for this machine, and prepares its constants meanwhile.
pub fn jit(program: &Program, options: &Options) -> Result<(Executable, Statistics), Error> {
    let start = Instant::now();
    let mut statistics = Statistics::default();
    check(program)?;
    let isa = isa::host(options.verify)?;
    let (compiled, prepared) = std::thread::scope(|scope| {
        let prepare = || program.prepare.as_ref().map(|prepare| outputs_of(prepare, options));
        let preparing = (options.threads() > 1 && program.prepare.is_some()).then(|| scope.spawn(prepare));
        let compiled = compile(&program.kernels, &isa, options, &mut statistics);
        let waiting = Instant::now();
        let prepared = match preparing {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => prepare(),
        };
        statistics.prepare += waiting.elapsed();
        (compiled, prepared)
    });
    let (codes, positions) = compiled?;
    let mut constants = program.constants.clone();
    if let Some((prepared, own)) = prepared.transpose()? {
        constants.extend(prepared);
        statistics.add(&own);
    }
    let linking = Instant::now();
    let call_conv = isa.default_call_conv();
    let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
    let fail = |e: cranelift_module::ModuleError| Error::Module(e.to_string());
    let mut ids = Vec::with_capacity(codes.len());
    for (at, code) in codes.iter().enumerate() {
        let signature = cranelift::signature(call_conv);
        let id = module.declare_function(&format!("k{at}"), Linkage::Local, &signature).map_err(fail)?;
        module.define_function_bytes(id, code.alignment, &code.bytes, &[]).map_err(fail)?;
        ids.push(id);
    }
    module.finalize_definitions().map_err(fail)?;
    let addresses: Vec<*const u8> = ids.iter().map(|&id| module.get_finalized_function(id)).collect();
    write_perf_map(program, &positions, &addresses, &codes.iter().map(|c| c.bytes.len()).collect::<Vec<_>>());
    let steps = program.steps.iter().enumerate().map(|(number, step)| {
        let work = match &step.work {
            Work::Kernel(kernel) => {
                let address = addresses[positions[*kernel as usize]];
                // SAFETY: the address is that of a finalised function of the signature of `KernelFn`.
                let function = unsafe { std::mem::transmute::<*const u8, KernelFn>(address) };
                let kernel = &program.kernels[*kernel as usize];
                let extent = kernel.as_parallel().map_or(1, |(_, extent, _)| extent as i64);
                let worth = if program.repeat_of(number).is_some() { WORTH_A_TURN } else { WORTH_A_THREAD };
                windlass_runtime::Work::Kernel { function, extent, grain: grain(kernel, step, extent, worth) }
            }
            Work::Interpret { op, ins, outs } => windlass_runtime::Work::Host {
                ins: ins.len(),
                function: host_function(op.as_ref().clone(), ins.clone(), outs.clone()),
            },
        };
        Ok(windlass_runtime::Step {
            work,
            args: arguments(program, step),
            name: step_name(program, step),
            origin: step.origin.join(", "),
            flops: step.flops * program.times(number) as u64,
        })
    });
    let steps = steps.collect::<Result<Vec<_>, Error>>()?;
    let repeats = program.repeats.iter().map(|repeat| windlass_runtime::Repeat {
        steps: repeat.range(),
        times: repeat.times,
        moves: repeat.moves.iter().map(moving).collect(),
    });
    let port = |(name, ty): &(String, TensorType)| Port { name: name.clone(), bytes: bytes_of(ty) };
    let parts = Parts {
        steps,
        repeats: repeats.collect(),
        constants: constants.into_iter().map(|tensor| Box::new(Shared(tensor)) as Constant).collect(),
        arena_bytes: program.arena_bytes as usize,
        inputs: program.inputs.iter().map(port).collect(),
        outputs: program.outputs.iter().map(port).collect(),
        code: Box::new(JitCode(Mutex::new(Some(module)))),
    };
    // SAFETY: kernels were emitted from loops whose accesses lie inside their buffers, whose parallel
    // iterations are independent, and which write only what they declare; `check` holds the steps to
    // that. The module is among the parts.
    let executable = unsafe { Executable::new(parts)? };
    statistics.link = linking.elapsed();
    statistics.wall = start.elapsed();
    Ok((executable, statistics))
}

/// One of several tensors in a buffer.
struct Part(Arc<AlignedBuffer>, Range<usize>);

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.0.as_slice()[self.1.clone()]
    }
}

/// Compiles and runs a program without inputs, once. Its outputs share one buffer.
pub(crate) fn outputs_of(program: &Program, options: &Options) -> Result<(Vec<Tensor>, Statistics), Error> {
    let (executable, statistics) = jit(program, options)?;
    let mut ranges: Vec<Range<usize>> = Vec::with_capacity(program.outputs.len());
    let mut end = 0usize;
    for (_, ty) in &program.outputs {
        let first = end.next_multiple_of(Program::ALIGN as usize);
        end = first + bytes_of(ty);
        ranges.push(first..end);
    }
    let mut buffer = AlignedBuffer::zeroed(end)?;
    let mut rest = buffer.as_mut_slice();
    let mut outputs = Vec::with_capacity(ranges.len());
    let mut at = 0;
    for range in &ranges {
        let (output, behind) = std::mem::take(&mut rest)[range.start - at..].split_at_mut(range.len());
        outputs.push(output);
        (rest, at) = (behind, range.end);
    }
    let last_readers = last_readers(program);
    executable.run_observed(&Pool::new(options.threads()), &[], &mut outputs, &mut |step| {
        // Weights are not needed in the model's file once they are packed.
        for (constant, _) in program.constants.iter().zip(&last_readers).filter(|(_, last)| **last == step) {
            windlass_runtime::unload(constant.raw_bytes());
        }
    })?;
    let buffer = Arc::new(buffer);
    let tensors = program.outputs.iter().zip(ranges).map(|((_, ty), range)| {
        let part = Part(buffer.clone(), range);
        let tensor = Tensor::from_shared(ty.dtype, &ty.shape(), part);
        tensor.ok_or_else(|| Error::Module(format!("a constant of {ty} has another size")))
    });
    Ok((tensors.collect::<Result<_, _>>()?, statistics))
}

/// The last step that reads each constant.
fn last_readers(program: &Program) -> Vec<usize> {
    let mut last = vec![usize::MAX; program.constants.len()];
    for (number, step) in program.steps.iter().enumerate() {
        for place in &step.args {
            if let Place::Constant(constant) = place
                && let Some(last) = last.get_mut(*constant as usize)
            {
                *last = number;
            }
        }
    }
    last
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

/// With `WINDLASS_PERF_MAP=1`, names the kernels for `perf` in `/tmp/perf-PID.map`.
fn write_perf_map(program: &Program, positions: &[usize], addresses: &[*const u8], sizes: &[usize]) {
    use std::io::Write;
    if std::env::var_os("WINDLASS_PERF_MAP").is_none_or(|v| v != "1") {
        return;
    }
    let path = std::env::temp_dir().join(format!("perf-{}.map", std::process::id()));
    let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) else { return };
    let mut named = vec![false; addresses.len()];
    for (kernel, &at) in program.kernels.iter().zip(positions) {
        if !std::mem::replace(&mut named[at], true) {
            // A map that cannot be written costs the names only.
            let _ = writeln!(file, "{:x} {:x} windlass::{}", addresses[at] as usize, sizes[at], kernel.name);
        }
    }
}
