//! Memory aligned to [`ALIGN`]. One of the files with unsafe code: raw allocation.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use memmap2::MmapMut;

use crate::{ALIGN, Error};

/// From this size on, memory is asked of the system in large pages: a few of them cover what compiled code
/// streams through, where small ones would outnumber the entries of the processor's translation buffers.
const LARGE: usize = 1 << 20;

/// Zero-initialised bytes whose address is a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct AlignedBuffer(Memory);

#[derive(Debug)]
enum Memory {
    /// From the allocator; of size 0, the address dangles.
    Allocated(NonNull<u8>, Layout),
    /// Pages of the system.
    Pages(MmapMut),
}

// SAFETY: the buffer owns its memory like a `Vec<u8>`; shared references only read it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl AlignedBuffer {
    /// `len` bytes of zeros. Large ones are fresh pages of the system, not written here.
    pub fn zeroed(len: usize) -> Result<AlignedBuffer, Error> {
        let out_of_memory = Error::OutOfMemory { bytes: len };
        if len >= LARGE {
            let pages = MmapMut::map_anon(len).map_err(|_| out_of_memory)?;
            // Small pages serve as well where the system has no large ones to give.
            #[cfg(target_os = "linux")]
            let _ = pages.advise(memmap2::Advice::HugePage);
            return Ok(AlignedBuffer(Memory::Pages(pages)));
        }
        let layout = Layout::from_size_align(len, ALIGN).map_err(|_| out_of_memory.clone())?;
        if len == 0 {
            let start = NonNull::without_provenance(std::num::NonZero::new(ALIGN).ok_or(out_of_memory)?);
            return Ok(AlignedBuffer(Memory::Allocated(start, layout)));
        }
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Ok(AlignedBuffer(Memory::Allocated(start, layout))),
            None => Err(out_of_memory),
        }
    }

    /// The address of the first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match &mut self.0 {
            Memory::Allocated(start, _) => start.as_ptr(),
            Memory::Pages(pages) => pages.as_mut_ptr(),
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: `start` is valid for `size` initialised bytes (or dangling, aligned and of size 0).
            Memory::Allocated(start, layout) => unsafe {
                std::slice::from_raw_parts(start.as_ptr(), layout.size())
            },
            Memory::Pages(pages) => pages,
        }
    }

    /// The bytes for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.0 {
            // SAFETY: as in `as_slice`, and `&mut self` is the only access.
            Memory::Allocated(start, layout) => unsafe {
                std::slice::from_raw_parts_mut(start.as_ptr(), layout.size())
            },
            Memory::Pages(pages) => pages,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Allocated(start, layout) = self
            && layout.size() > 0
        {
            // SAFETY: allocated in `zeroed` with this layout, freed once.
            unsafe { dealloc(start.as_ptr(), *layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_zeroed_aligned_and_writable() {
        for len in [0, 1, 63, 4096, LARGE - 1, LARGE, 5 * LARGE + 3] {
            let mut buffer = AlignedBuffer::zeroed(len).unwrap();
            assert!(buffer.as_mut_ptr().addr().is_multiple_of(ALIGN));
            assert_eq!(buffer.as_slice().len(), len);
            assert!(buffer.as_slice().iter().all(|&b| b == 0));
            buffer.as_mut_slice().fill(7);
            assert!(buffer.as_slice().iter().all(|&b| b == 7));
        }
    }
}
