//! Memory aligned to [`ALIGN`]. One of the files with unsafe code: raw allocation.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::{ALIGN, Error};

/// Zero-initialised bytes whose address is a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory like a `Vec<u8>`; shared references only read it.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `len` bytes of zeros. Large ones are fresh pages of the system, not written here.
    pub fn zeroed(len: usize) -> Result<AlignedBuffer, Error> {
        let out_of_memory = Error::OutOfMemory { bytes: len };
        let layout = Layout::from_size_align(len, ALIGN).map_err(|_| out_of_memory.clone())?;
        if len == 0 {
            let start = NonNull::without_provenance(std::num::NonZero::new(ALIGN).ok_or(out_of_memory)?);
            return Ok(AlignedBuffer { start, layout });
        }
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Ok(AlignedBuffer { start, layout }),
            None => Err(out_of_memory),
        }
    }

    /// The address of the first byte.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `size` initialised bytes (or dangling, aligned and of size 0).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// The bytes for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: allocated in `zeroed` with this layout, freed once.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}
