//! The bytes of tensors: their own, or somebody else's.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// A cache line: what tensor storage is made of, so that it is aligned for every vector width.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Row-major bytes, aligned to 64.
pub struct Bytes {
    lines: Vec<Line>,
    len: usize,
    /// Who takes the memory back.
    home: Option<Weak<Home>>,
}

impl Bytes {
    pub fn zeroed(len: usize) -> Bytes {
        Bytes { lines: bytemuck::zeroed_vec(len.div_ceil(64)), len, home: None }
    }

    pub fn copy(bytes: &[u8]) -> Bytes {
        let mut copy = Bytes::zeroed(bytes.len());
        copy.as_mut_slice().copy_from_slice(bytes);
        copy
    }

    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(home) = self.home.take().and_then(|home| home.upgrade()) {
            home.take_back(std::mem::take(&mut self.lines));
        }
    }
}

/// Memory that tensors had, for others of the same size.
struct Home {
    idle: Mutex<Vec<Vec<Line>>>,
    /// The most that are kept.
    most: usize,
}

impl Home {
    fn take_back(&self, lines: Vec<Line>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.most {
            idle.push(lines);
        }
    }
}

/// Tensors whose memory is used again once nothing refers to them: neither allocated nor filled with zeros each time.
///
/// What a tensor holds at first is zeros, or whatever an earlier one held. Memory that is still in use when the recycler
/// is dropped is freed as any other.
#[derive(Clone)]
pub struct Recycler(Arc<Home>);

impl fmt::Debug for Recycler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recycler").field("most", &self.0.most).finish_non_exhaustive()
    }
}

impl Recycler {
    /// One that keeps the memory of so many tensors at the most.
    pub fn new(most: usize) -> Recycler {
        Recycler(Arc::new(Home { idle: Mutex::default(), most }))
    }

    /// So many bytes.
    pub(super) fn bytes(&self, len: usize) -> Bytes {
        let count = len.div_ceil(64);
        let found = {
            let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().position(|lines| lines.len() == count).map(|at| idle.swap_remove(at))
        };
        let lines = found.unwrap_or_else(|| bytemuck::zeroed_vec(count));
        Bytes { lines, len, home: Some(Arc::downgrade(&self.0)) }
    }
}

/// Bytes that somebody else owns, such as a mapped file.
pub type Foreign = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Where a tensor's bytes are.
pub enum Storage {
    Own(Bytes),
    /// Bytes at any alignment, and a copy of them that is aligned, once somebody has asked for it.
    Foreign(Foreign, OnceLock<Bytes>),
}

impl Storage {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Storage::Own(bytes) => bytes.as_slice(),
            Storage::Foreign(bytes, _) => (**bytes).as_ref(),
        }
    }

    /// The bytes, copied if they are not aligned to elements of this size.
    pub fn as_aligned(&self, size: usize) -> &[u8] {
        match self {
            Storage::Foreign(bytes, aligned) if (**bytes).as_ref().as_ptr().addr() % size != 0 => {
                aligned.get_or_init(|| Bytes::copy((**bytes).as_ref())).as_slice()
            }
            _ => self.as_slice(),
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if let Storage::Foreign(bytes, _) = self {
            *self = Storage::Own(Bytes::copy((**bytes).as_ref()));
        }
        match self {
            Storage::Own(bytes) => bytes.as_mut_slice(),
            Storage::Foreign(..) => unreachable!("copied above"),
        }
    }
}

impl Clone for Storage {
    fn clone(&self) -> Storage {
        Storage::Own(Bytes::copy(self.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Recycler, Tensor};

    #[test]
    fn memory_is_used_again_for_as_many_bytes() {
        let recycler = Recycler::new(2);
        let mut first = recycler.tensor(DType::I32, &[3]);
        first.bytes_mut().fill(7);
        let place = first.bytes().as_ptr();
        let shared = first.clone();
        drop(first);
        assert_ne!(recycler.tensor(DType::I32, &[3]).bytes().as_ptr(), place, "it is in use");
        drop(shared);
        assert_ne!(recycler.tensor(DType::I32, &[300]).bytes().as_ptr(), place, "it is too small");
        let again = recycler.tensor(DType::U8, &[12]);
        assert_eq!(again.shape(), [12]);
        drop(recycler);
        assert_eq!(again.bytes().len(), 12);
    }

    #[test]
    fn no_more_is_kept_than_is_wanted() {
        let recycler = Recycler::new(1);
        let made: Vec<Tensor> = (0..3).map(|_| recycler.tensor(DType::F32, &[100])).collect();
        drop(made);
        assert_eq!(recycler.0.idle.lock().unwrap().len(), 1);
    }
}
