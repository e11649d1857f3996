//! Memory for code that is seen at two addresses: it is written at one and run at the other. One of the files with unsafe
//! code: it maps memory that can be run.
//!
//! Where memory is seen at one address, its protection changes for every kernel from written to run, which stops all
//! threads of the process for a moment, those that run kernels already among them. Here too nothing can be written at an
//! address at which it can be run; and when all code is there, it cannot be written at all.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cranelift_jit::{BranchProtection, JITMemoryKind, JITMemoryProvider};
use cranelift_module::ModuleResult;
use memmap2::{Mmap, MmapMut, MmapOptions};

/// Bytes of the first region. Each next one has twice as many, up to the most.
const FIRST_BYTES: usize = 64 << 10;
const MOST_BYTES: usize = 4 << 20;

/// The memory of one module's code.
#[derive(Clone, Default)]
pub(super) struct Regions(Arc<Mutex<Vec<Region>>>);

struct Region {
    /// Where it is written, until all is.
    written: Option<MmapMut>,
    /// Where it is run.
    run: Mmap,
    used: usize,
}

impl Region {
    fn new(bytes: usize) -> io::Result<Region> {
        let file = anonymous_file()?;
        file.set_len(bytes as u64)?;
        let mut options = MmapOptions::new();
        options.len(bytes);
        // SAFETY: no other process has the file, and this one has it no longer than these mappings. What is run is not
        // written again: `allocate` gives out each byte once, before its address is known to anyone who runs it.
        unsafe {
            Ok(Region { written: Some(options.map_mut(&file)?), run: options.map_exec(&file)?, used: 0 })
        }
    }

    /// So many bytes at such an address, if there are as many left.
    fn allocate(&mut self, size: usize, align: usize) -> Option<*mut u8> {
        let written = self.written.as_mut()?;
        let start = self.used.checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        let place = written.get_mut(start..end)?;
        self.used = end;
        Some(place.as_mut_ptr())
    }
}

impl Regions {
    /// Memory, if this system has some that is seen at two addresses.
    pub(super) fn new() -> Option<Regions> {
        let regions = Regions::default();
        regions.lock().push(Region::new(FIRST_BYTES).ok()?);
        Some(regions)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Region>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what is written at an address is run.
    pub(super) fn run_at(&self, written: *const u8) -> Option<*const u8> {
        self.lock().iter().find_map(|region| {
            let offset = written.addr().checked_sub(region.written.as_ref()?.as_ptr().addr())?;
            // Another region may begin where this one ends.
            region.run.get(offset).map(std::ptr::from_ref)
        })
    }

    /// Ends writing.
    pub(super) fn seal(&self) {
        self.lock().iter_mut().for_each(|region| region.written = None);
    }
}

impl JITMemoryProvider for Regions {
    fn allocate(&mut self, size: usize, align: u64, kind: JITMemoryKind) -> io::Result<*mut u8> {
        if !matches!(kind, JITMemoryKind::Executable) {
            return Err(io::Error::other("there is memory for code only"));
        }
        let align = usize::try_from(align).map_err(io::Error::other)?;
        let mut regions = self.lock();
        if let Some(place) = regions.last_mut().and_then(|region| region.allocate(size, align)) {
            return Ok(place);
        }
        let next = FIRST_BYTES.checked_shl(regions.len() as u32).unwrap_or(MOST_BYTES).min(MOST_BYTES);
        // Regions begin where pages do, as code may want at most.
        let mut region = Region::new(next.max(size))?;
        let place = region.allocate(size, align).ok_or(io::ErrorKind::OutOfMemory)?;
        regions.push(region);
        Ok(place)
    }

    unsafe fn free_memory(&mut self) {
        self.lock().clear();
    }

    fn finalize(&mut self, _: BranchProtection) -> ModuleResult<()> {
        Ok(())
    }
}

/// A file in memory that may be run.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn anonymous_file() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let create = |flags: MemfdFlags| memfd_create(c"windlass-code", flags | MemfdFlags::CLOEXEC);
    // Linux before 6.3 does not know the first flag, nor needs it.
    Ok(create(MemfdFlags::EXEC).or_else(|_| create(MemfdFlags::empty()))?.into())
}

/// Other processors have to be told of code that is new at an address, which is left to cranelift-jit.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn anonymous_file() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_run_at_another_address() {
        let mut regions = Regions::new().unwrap();
        let mut functions = Vec::new();
        for number in 0..5000u32 {
            // mov eax, number; ret
            let [a, b, c, d] = number.to_le_bytes();
            let code = [0xb8, a, b, c, d, 0xc3];
            let place = regions.allocate(64, 64, JITMemoryKind::Executable).unwrap();
            assert!(place.addr().is_multiple_of(64));
            // SAFETY: there are 64 bytes, and nobody runs them yet.
            unsafe { place.copy_from_nonoverlapping(code.as_ptr(), code.len()) };
            let run = regions.run_at(place).unwrap();
            assert_ne!(run, place.cast_const());
            functions.push((number, run));
        }
        regions.seal();
        for (number, run) in functions {
            // SAFETY: the code is a function of the System V convention that gives its number.
            let function = unsafe { std::mem::transmute::<*const u8, extern "C" fn() -> u32>(run) };
            assert_eq!(function(), number);
        }
    }

    #[test]
    fn large_functions_get_regions_of_their_own() {
        let mut regions = Regions::new().unwrap();
        let place = regions.allocate(10 << 20, 4096, JITMemoryKind::Executable).unwrap();
        assert!(regions.run_at(place).is_some());
        assert!(regions.run_at(std::ptr::without_provenance(1)).is_none());
        assert!(regions.run_at(place.wrapping_add((10 << 20) - 1)).is_some());
        assert!(regions.run_at(place.wrapping_add(10 << 20)).is_none());
        assert!(regions.allocate(usize::MAX - 100, 64, JITMemoryKind::Executable).is_err());
        assert!(regions.allocate(64, 64, JITMemoryKind::Writable).is_err());
    }
}
