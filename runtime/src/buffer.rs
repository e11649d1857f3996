//! Memory aligned to [`ALIGN`]. One of the files with unsafe code: raw allocation.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

use memmap2::MmapMut;

use crate::{ALIGN, Error};

/// From this size on, memory is asked of the system in large pages: a few of them cover what compiled code
/// streams through, where small ones would outnumber the entries of the processor's translation buffers, and a
/// small page costs as much to get as a third of a large one's zeros.
const LARGE: usize = 1 << 20;

/// A large page.
const PAGE: usize = 2 << 20;

/// Zero-initialised bytes whose address is a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct AlignedBuffer(Memory);

#[derive(Debug)]
enum Memory {
    /// From the allocator; of size 0, the address dangles.
    Allocated(NonNull<u8>, Layout),
    /// Pages of the system, and which bytes of them.
    Pages(MmapMut, Range<usize>),
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
            return Ok(AlignedBuffer(Memory::pages(len).ok_or(out_of_memory)?));
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
            // The range lies inside the pages.
            Memory::Pages(pages, range) => pages[range.clone()].as_mut_ptr(),
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: `start` is valid for `size` initialised bytes (or dangling, aligned and of size 0).
            Memory::Allocated(start, layout) => unsafe {
                std::slice::from_raw_parts(start.as_ptr(), layout.size())
            },
            Memory::Pages(pages, range) => &pages[range.clone()],
        }
    }

    /// The bytes for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.0 {
            // SAFETY: as in `as_slice`, and `&mut self` is the only access.
            Memory::Allocated(start, layout) => unsafe {
                std::slice::from_raw_parts_mut(start.as_ptr(), layout.size())
            },
            Memory::Pages(pages, range) => &mut pages[range.clone()],
        }
    }
}

impl Memory {
    /// Whole large pages, and small ones for an end of less than half a large one.
    fn pages(len: usize) -> Option<Memory> {
        let whole = len.checked_add(PAGE / 2)? / PAGE * PAGE;
        let bytes = whole.max(len);
        // Room to start at a large page; what is never touched takes no memory.
        let pages = MmapMut::map_anon(bytes.checked_add(PAGE)?).ok()?;
        let start = pages.as_ptr().align_offset(PAGE);
        if start > PAGE {
            return None;
        }
        // Small pages serve as well where the system has no large ones to give.
        #[cfg(target_os = "linux")]
        let _ = pages.advise_range(memmap2::Advice::HugePage, start, whole);
        Some(Memory::Pages(pages, start..start + len))
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
        for len in [0, 1, 63, 4096, LARGE - 1, LARGE, PAGE, 5 * LARGE + 3] {
            let mut buffer = AlignedBuffer::zeroed(len).unwrap();
            assert!(buffer.as_mut_ptr().addr().is_multiple_of(ALIGN));
            assert_eq!(buffer.as_slice().len(), len);
            assert!(buffer.as_slice().iter().all(|&b| b == 0));
            buffer.as_mut_slice().fill(7);
            assert!(buffer.as_slice().iter().all(|&b| b == 7));
        }
    }
}
