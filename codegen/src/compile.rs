//! Kernels to bytes: emitted and compiled on several threads, each distinct kernel once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::Function;
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::{CodegenError, CompiledCode, Context};
use windlass_ir::loops::{Block, Kernel, LoopKind, Native, Stmt, verify_kernel};

use crate::emit::{Machine, emit};
use crate::error::Error;
use crate::frames::Frame;
use crate::isa::{self, SharedIsa, Target};
use crate::listing::Lines;
use crate::{cranelift, ssa, x86};

/// How code is made. The defaults are what a session uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether Cranelift checks every function; slow, and on in debug builds.
    pub verify: bool,
    /// Threads that compile; 0 is as many as the machine has.
    pub threads: usize,
    /// The most bytes of machine code in all.
    pub code_limit: usize,
    /// The most bits of a vector; `None` is as many as the target has.
    pub vector_bits: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { verify: cfg!(debug_assertions), threads: 0, code_limit: 256 << 20, vector_bits: None }
    }
}

impl Options {
    /// The number of threads that compile.
    pub(crate) fn threads(&self) -> usize {
        // Asking reads files.
        static OF_MACHINE: LazyLock<usize> =
            LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
        if self.threads == 0 { *OF_MACHINE } else { self.threads }
    }

    /// Fails if there is more code than that.
    pub(crate) fn check_limit(&self, bytes: usize) -> Result<(), Error> {
        match self.code_limit {
            limit if bytes > limit => {
                Err(Error::Module(format!("{bytes} bytes of code exceed the limit of {limit}")))
            }
            _ => Ok(()),
        }
    }
}

/// Where compile time went. Times of phases that run on several threads are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Kernels in the program.
    pub kernels: usize,
    /// Kernels compiled: those that differ in more than their name.
    pub distinct: usize,
    /// Bytes of machine code.
    pub code_bytes: usize,
    /// Kernels to CLIF.
    pub emit: Duration,
    /// CLIF to bytes.
    pub compile: Duration,
    /// Bytes to executable memory or an object file.
    pub link: Duration,
    /// Waiting for constants to be prepared, or preparing them, on the calling thread.
    pub prepare: Duration,
    /// Steps of a run that began before all code was made, on the calling thread.
    pub run: Duration,
    /// From start to end.
    pub wall: Duration,
}

impl Statistics {
    /// Adds what another program took, its wall time aside.
    pub(crate) fn add(&mut self, other: &Statistics) {
        self.kernels += other.kernels;
        self.distinct += other.distinct;
        self.code_bytes += other.code_bytes;
        self.emit += other.emit;
        self.compile += other.compile;
        self.link += other.link;
        self.prepare += other.prepare;
    }
}

/// The code of one kernel.
#[derive(Clone, Debug)]
pub(crate) struct Code {
    /// Instructions, and behind them constants.
    pub bytes: Vec<u8>,
    pub alignment: u64,
    /// Where the code of each line of the kernel starts, if that is asked for.
    pub lines: Lines,
    /// Where the code ends, if its lines are asked for.
    pub end: usize,
    /// How it is left through its caller.
    pub frame: Frame,
}

/// The fewest kernels that are worth another thread.
pub(crate) const KERNELS_A_THREAD: usize = 4;

/// Compiles a program's kernels. The second result is the position of each kernel's code in the first.
pub(crate) fn compile(
    kernels: &[Kernel],
    isa: &SharedIsa,
    options: &Options,
    statistics: &mut Statistics,
) -> Result<(Vec<Code>, Vec<usize>), Error> {
    let (distinct, positions) = distinct(kernels);
    // The largest first, so that no thread is left with it in the end.
    let mut order: Vec<usize> = (0..distinct.len()).collect();
    order.sort_by_cached_key(|&at| std::cmp::Reverse(statements(&kernels[distinct[at]].body)));
    let threads = options.threads();
    let next = AtomicUsize::new(0);
    let times = Mutex::new((Duration::ZERO, Duration::ZERO));
    let results: Vec<Mutex<Option<Result<Code, Error>>>> =
        distinct.iter().map(|_| Mutex::new(None)).collect();
    let backend = Backend::new(&**isa, options.vector_bits);
    let known = Arc::<x86::Allocations>::default();
    let work = || {
        let mut memory = Memory::new(known.clone());
        while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let code = backend.make(&kernels[distinct[at]], isa, &mut memory);
            *results[at].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(code);
        }
        let mut times = times.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        times.0 += memory.emitting;
        times.1 += memory.compiling;
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(distinct.len().div_ceil(KERNELS_A_THREAD)) {
            scope.spawn(work);
        }
        work();
    });
    let codes = results
        .into_iter()
        .map(|slot| {
            let slot = slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            slot.unwrap_or_else(|| Err(Error::Module("a kernel was not compiled".to_string())))
        })
        .collect::<Result<Vec<Code>, Error>>()?;
    let (emit, compile) = times.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    statistics.kernels += kernels.len();
    statistics.distinct += distinct.len();
    statistics.code_bytes += codes.iter().map(|c| c.bytes.len()).sum::<usize>();
    statistics.emit += emit;
    statistics.compile += compile;
    options.check_limit(statistics.code_bytes)?;
    Ok((codes, positions))
}

/// What making the code of one kernel leaves for the next.
pub(crate) struct Memory {
    /// Cranelift's.
    context: Context,
    /// The registers of kernels so far, which threads share.
    known: Arc<x86::Allocations>,
    /// What was spent on [`Statistics::emit`] and [`Statistics::compile`].
    pub(crate) emitting: Duration,
    pub(crate) compiling: Duration,
}

impl Memory {
    pub(crate) fn new(known: Arc<x86::Allocations>) -> Memory {
        Memory { context: Context::new(), known, emitting: Duration::ZERO, compiling: Duration::ZERO }
    }
}

/// Who makes bytes of a kernel's SSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Cranelift, with vectors of 128 bits.
    Cranelift,
    /// Windlass itself, with vectors of 256 or 512 bits.
    X86(Machine),
}

impl Backend {
    /// The one with the widest vectors that a target has.
    pub(crate) fn new(isa: &dyn TargetIsa, vector_bits: Option<usize>) -> Backend {
        let widest = isa::vector_bits(isa);
        match vector_bits.map_or(widest, |bits| bits.min(widest)) {
            bits @ (256 | 512) => Backend::x86(bits, isa::has_byte_products(isa)),
            _ => Backend::Cranelift,
        }
    }

    fn x86(bits: usize, has_byte_products: bool) -> Backend {
        Backend::X86(Machine {
            vector_bytes: bits / 8,
            little_endian: true,
            byte_products: bits == 512 && has_byte_products,
            masks: if bits == 512 { x86::MASKS } else { 0 },
            picks_lanes: true,
            has_longs: bits == 512,
            // Every processor that has AVX2 does.
            native: Native { half_casts: true },
        })
    }

    /// The one for a kernel, which may be meant for narrower vectors.
    pub(crate) fn for_kernel(self, kernel: &Kernel) -> Backend {
        match (self, kernel.vector_bits) {
            (Backend::X86(machine), Some(256)) if machine.vector_bytes > 32 => Backend::x86(256, false),
            _ => self,
        }
    }

    pub(crate) fn machine(self, isa: &dyn TargetIsa) -> Machine {
        match self {
            Backend::Cranelift => cranelift::machine(isa),
            Backend::X86(machine) => machine,
        }
    }

    /// The code of a kernel.
    pub(crate) fn make(self, kernel: &Kernel, isa: &SharedIsa, memory: &mut Memory) -> Result<Code, Error> {
        let start = Instant::now();
        let backend = self.for_kernel(kernel);
        let function = verified(kernel).and_then(|kernel| emit(kernel, backend.machine(&**isa)));
        let emitted = Instant::now();
        let code = function.and_then(|function| backend.compile(&function, isa, &kernel.name, memory));
        memory.emitting += emitted - start;
        memory.compiling += emitted.elapsed();
        code
    }

    pub(crate) fn compile(
        self,
        ssa: &ssa::Function,
        isa: &SharedIsa,
        name: &str,
        memory: &mut Memory,
    ) -> Result<Code, Error> {
        match self {
            Backend::Cranelift => {
                compile_function(&mut memory.context, cranelift::function(ssa, &**isa), isa, name)
            }
            Backend::X86(machine) => {
                let x86::Assembled { bytes, end, lines, rules } =
                    x86::compile(ssa, machine, &memory.known)
                        .map_err(|message| Error::Compile { kernel: name.to_string(), message })?;
                let frame = Frame::Rules(rules);
                Ok(Code { bytes, alignment: machine.vector_bytes as u64, lines, end, frame })
            }
        }
    }
}

/// A kernel whose accesses lie inside its buffers: the native code does not check them.
fn verified(kernel: &Kernel) -> Result<&Kernel, Error> {
    match verify_kernel(kernel) {
        Ok(()) => Ok(kernel),
        Err(e) => Err(Error::Kernel { kernel: kernel.name.clone(), message: e.to_string() }),
    }
}

/// About how many statements code is made for: those of loops that are written out count as often as they come.
pub(crate) fn statements(block: &Block) -> usize {
    let of = |stmt: &Stmt| match stmt {
        Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => 1,
        Stmt::If { then, otherwise, .. } => statements(then).saturating_add(statements(otherwise)),
        Stmt::For { extent, kind: LoopKind::Unroll | LoopKind::Vector, body, .. } => {
            let rounds = extent.as_constant().map_or(1, |n| n.clamp(1, WRITTEN_OUT) as usize);
            statements(body).saturating_mul(rounds)
        }
        Stmt::For { kind: LoopKind::Serial | LoopKind::Parallel, body, .. } => statements(body),
    };
    block.iter().map(of).fold(0, usize::saturating_add)
}

/// Loops of more rounds than this are not written out as often.
const WRITTEN_OUT: i64 = 64;

/// The positions of kernels that differ, and for each kernel which of them it is.
pub(crate) fn distinct(kernels: &[Kernel]) -> (Vec<usize>, Vec<usize>) {
    let mut seen: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut distinct: Vec<usize> = Vec::new();
    let same = |a: &Kernel, b: &Kernel| {
        a.vals == b.vals
            && a.buffers == b.buffers
            && a.vector_bits == b.vector_bits
            && (Arc::ptr_eq(&a.body, &b.body) || a.body == b.body)
    };
    let positions = kernels
        .iter()
        .enumerate()
        .map(|(at, kernel)| {
            let shape = kernel.buffers.values().fold(kernel.vals.len() as u64, |hash, buffer| {
                hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(buffer.len as u64)
            });
            let candidates = seen.entry(shape).or_default();
            match candidates.iter().find(|&&d| same(&kernels[distinct[d]], kernel)) {
                Some(&found) => found,
                None => {
                    candidates.push(distinct.len());
                    distinct.push(at);
                    distinct.len() - 1
                }
            }
        })
        .collect();
    (distinct, positions)
}

/// Compiles one function that needs nothing outside itself.
pub(crate) fn compile_function(
    context: &mut Context,
    function: Function,
    isa: &SharedIsa,
    name: &str,
) -> Result<Code, Error> {
    context.clear();
    context.func = function;
    let refuse = |message: String| Error::Compile { kernel: name.to_string(), message };
    let compiled = lower(context, &**isa, false)
        .map_err(|e| refuse(cranelift_codegen::print_errors::pretty_error(&context.func, e)))?;
    if let Some(reloc) = compiled.buffer.relocs().first() {
        return Err(refuse(format!("needs {:?}, which is outside the kernel", reloc.target)));
    }
    let locations = compiled.buffer.get_srclocs_sorted();
    Ok(Code {
        bytes: compiled.code_buffer().to_vec(),
        alignment: u64::from(compiled.buffer.alignment.max(16)),
        lines: cranelift::lines(locations),
        end: locations.last().map_or(0, |last| last.end as usize),
        frame: Frame::new(&compiled, &**isa).map_err(refuse)?,
    })
}

/// Compiles the context's function as it stands. `Context::compile` would first replace parameters of
/// blocks with one predecessor by what they are passed, which undoes the emitter's splitting of blocks.
pub(crate) fn lower(
    context: &mut Context,
    isa: &dyn TargetIsa,
    disassemble: bool,
) -> Result<CompiledCode, CodegenError> {
    context.verify_if(isa)?;
    context.compute_cfg();
    context.compute_domtree();
    let Context { func, domtree, .. } = context;
    let mut registers = regalloc2::Ctx::default();
    let stencil =
        isa.compile_function(func, domtree, &mut registers, disassemble, &mut ControlPlane::default())?;
    Ok(stencil.apply_params(&func.params))
}

/// A kernel as Cranelift's IR, for dumps and golden files.
pub fn clif_text(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    let isa = isa::build(target, true, false)?;
    let ssa = emit(kernel, cranelift::machine(&*isa))?;
    Ok(cranelift::function(&ssa, &*isa).display().to_string())
}

/// A kernel as blocks of instructions on scalars and vectors, from which machine code is made.
pub fn ssa_text(kernel: &Kernel, target: &Target, vector_bits: Option<usize>) -> Result<String, Error> {
    let isa = isa::build(target, false, false)?;
    let backend = Backend::new(&*isa, vector_bits).for_kernel(kernel);
    Ok(emit(kernel, backend.machine(&*isa))?.to_string())
}
