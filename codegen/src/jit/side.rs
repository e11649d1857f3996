//! A program and the code of its kernels, which comes to its executable bit by bit. One of the files with unsafe code:
//! it turns addresses of code into functions, and frees the code.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use windlass_ir::loops::{Program, Work};
use windlass_runtime::{Constant, Executable, KernelFn};

use super::executable;
use super::memory::Regions;
use crate::compile::{Code, distinct};
use crate::cranelift;
use crate::error::Error;
use crate::isa::SharedIsa;

/// The memory of compiled kernels, freed when dropped.
pub(super) struct JitCode(Mutex<Option<JITModule>>);

impl Drop for JitCode {
    fn drop(&mut self) {
        if let Some(module) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // SAFETY: executables that call the code share this value, so the last of them is gone, and no
            // other copy of the addresses was given out.
            unsafe { module.free_memory() }
        }
    }
}

/// The code of a kernel on its way into executable memory.
enum Slot {
    Waiting,
    Made(Code),
    /// The function, and its bytes of code.
    Linked(KernelFn, usize),
}

/// What slots hold, and what it came to.
struct Slots {
    slots: Vec<Slot>,
    bytes: usize,
    linking: Duration,
}

/// A program, its executable, and the code that it has so far.
pub(super) struct Side<'p> {
    pub(super) program: &'p Program,
    pub(super) executable: Executable,
    /// The positions of the kernels that differ.
    pub(super) distinct: Vec<usize>,
    /// Which of these each kernel is.
    pub(super) positions: Vec<usize>,
    code: Arc<JitCode>,
    /// The module's memory, if it is seen at two addresses.
    regions: Option<Regions>,
    isa: SharedIsa,
    slots: Mutex<Slots>,
}

impl<'p> Side<'p> {
    pub(super) fn new(
        program: &'p Program,
        constants: Vec<Constant>,
        isa: &SharedIsa,
    ) -> Result<Side<'p>, Error> {
        let mut builder = JITBuilder::with_isa(isa.clone(), default_libcall_names());
        let regions = Regions::new();
        if let Some(regions) = &regions {
            builder.memory_provider(Box::new(regions.clone()));
        }
        let module = JITModule::new(builder);
        let code = Arc::new(JitCode(Mutex::new(Some(module))));
        let (distinct, positions) = distinct(&program.kernels);
        let slots = distinct.iter().map(|_| Slot::Waiting).collect();
        Ok(Side {
            program,
            executable: executable(program, constants, code.clone())?,
            distinct,
            positions,
            code,
            regions,
            isa: isa.clone(),
            slots: Mutex::new(Slots { slots, bytes: 0, linking: Duration::ZERO }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the code of the kernel at a position of `distinct`. How many bytes of code there are now.
    pub(super) fn add(&self, at: usize, code: Code) -> usize {
        let mut slots = self.lock();
        slots.bytes += code.bytes.len();
        slots.slots[at] = Slot::Made(code);
        slots.bytes
    }

    /// The kernel of a step, as a position of `distinct`; none if the step has no code.
    pub(super) fn kernel_of(&self, step: usize) -> Option<usize> {
        match self.program.steps[step].work {
            Work::Kernel(kernel) => Some(self.positions[kernel as usize]),
            Work::Interpret { .. } => None,
        }
    }

    /// Gives a step its code, which has been added.
    pub(super) fn provide(&self, step: usize) -> Result<(), Error> {
        let Some(at) = self.kernel_of(step) else { return Ok(()) };
        let mut slots = self.lock();
        if matches!(slots.slots[at], Slot::Made(_)) {
            self.link(&mut slots)?;
        }
        match slots.slots[at] {
            // SAFETY: the function is that of the step's kernel, which keeps to what `executable` says of it, in the
            // memory that the executable shares.
            Slot::Linked(function, _) => unsafe { self.executable.provide(step, function) },
            Slot::Waiting | Slot::Made(_) => return Err(Error::Module("a kernel was not made".to_string())),
        }
        Ok(())
    }

    /// Puts all code that waits into executable memory.
    fn link(&self, slots: &mut Slots) -> Result<(), Error> {
        let start = Instant::now();
        let fail = |e: cranelift_module::ModuleError| Error::Module(e.to_string());
        let lost = |at: usize| Error::Module(format!("the code of kernel {at} is nowhere"));
        let mut module = self.code.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(module) = module.as_mut() else { return Ok(()) };
        let mut defined = Vec::new();
        for (at, slot) in slots.slots.iter().enumerate() {
            if let Slot::Made(code) = slot {
                let signature = cranelift::signature(self.isa.default_call_conv());
                let id =
                    module.declare_function(&format!("k{at}"), Linkage::Local, &signature).map_err(fail)?;
                module.define_function_bytes(id, code.alignment, &code.bytes, &[]).map_err(fail)?;
                defined.push((at, id, code.bytes.len()));
            }
        }
        module.finalize_definitions().map_err(fail)?;
        for (at, id, bytes) in defined {
            let address = module.get_finalized_function(id);
            let address = match &self.regions {
                Some(regions) => regions.run_at(address).ok_or_else(|| lost(at))?,
                None => address,
            };
            // SAFETY: the address is that of a finalised function of the signature of `KernelFn`.
            let function = unsafe { std::mem::transmute::<*const u8, KernelFn>(address) };
            slots.slots[at] = Slot::Linked(function, bytes);
        }
        slots.linking += start.elapsed();
        Ok(())
    }

    /// Ends that code can be written.
    pub(super) fn seal(&self) {
        self.regions.iter().for_each(Regions::seal);
    }

    /// Bytes of code, and the time it took to put them into executable memory.
    pub(super) fn totals(&self) -> (usize, Duration) {
        let slots = self.lock();
        (slots.bytes, slots.linking)
    }

    /// The executable, which keeps the code.
    pub(super) fn into_executable(self) -> Executable {
        self.executable
    }

    /// With `WINDLASS_PERF_MAP=1`, names the kernels for `perf` in `/tmp/perf-PID.map`.
    pub(super) fn write_perf_map(&self) {
        use std::io::Write;
        if std::env::var_os("WINDLASS_PERF_MAP").is_none_or(|v| v != "1") {
            return;
        }
        let path = std::env::temp_dir().join(format!("perf-{}.map", std::process::id()));
        let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) else { return };
        let slots = self.lock();
        for (slot, &kernel) in slots.slots.iter().zip(&self.distinct) {
            if let Slot::Linked(function, bytes) = slot {
                let (start, name) = (*function as usize, &self.program.kernels[kernel].name);
                // A map that cannot be written costs the names only.
                let _ = writeln!(file, "{start:x} {bytes:x} windlass::{name}");
            }
        }
    }
}
