//! The memory of prepared constants: the outputs of a program that prepares them, in one buffer. One of the files with
//! unsafe code: constants are known by their places before they are written.

use std::ops::Range;
use std::sync::Arc;

use windlass_ir::Tensor;
use windlass_ir::loops::Program;
use windlass_runtime::{AlignedBuffer, Constant};

use super::bytes_of;
use crate::error::Error;

/// Room for the outputs of a program.
pub(super) struct Outputs {
    buffer: Arc<AlignedBuffer>,
    start: *mut u8,
    ranges: Vec<Range<usize>>,
}

impl Outputs {
    pub(super) fn new(program: &Program) -> Result<Outputs, Error> {
        let mut ranges: Vec<Range<usize>> = Vec::with_capacity(program.outputs.len());
        let mut end = 0usize;
        for (_, ty) in &program.outputs {
            let first = end.next_multiple_of(Program::ALIGN as usize);
            end = first + bytes_of(ty);
            ranges.push(first..end);
        }
        let mut buffer = AlignedBuffer::zeroed(end)?;
        let start = buffer.as_mut_ptr();
        Ok(Outputs { buffer: Arc::new(buffer), start, ranges })
    }

    /// The bytes of all outputs.
    pub(super) fn bytes(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Each output, to be written.
    pub(super) fn slices(&mut self) -> Vec<&mut [u8]> {
        // SAFETY: ranges lie in the buffer and apart from each other, and the buffer lives as long as `self`, which
        // gives out no other way to write to it.
        let slice = |range: &Range<usize>| unsafe {
            std::slice::from_raw_parts_mut(self.start.add(range.start), range.len())
        };
        self.ranges.iter().map(slice).collect()
    }

    /// Each output as a constant.
    ///
    /// # Safety
    /// A step that reads one runs when it has been written.
    pub(super) unsafe fn constants(&self) -> Vec<Constant> {
        let constant = |range: &Range<usize>| {
            let start = self.start.wrapping_add(range.start);
            // SAFETY: the range lies in the buffer, which is the owner; when it is written is the caller's promise.
            unsafe { Constant::written_later(start, range.len(), self.buffer.clone()) }
        };
        self.ranges.iter().map(constant).collect()
    }

    /// The outputs once they are written.
    pub(super) fn into_tensors(self, program: &Program) -> Result<Vec<Tensor>, Error> {
        let tensors = program.outputs.iter().zip(self.ranges).map(|((_, ty), range)| {
            let part = Part(self.buffer.clone(), range);
            let tensor = Tensor::from_shared(ty.dtype, &ty.shape(), part);
            tensor.ok_or_else(|| Error::Module(format!("a constant of {ty} has another size")))
        });
        tensors.collect()
    }
}

/// One of several tensors in a buffer.
struct Part(Arc<AlignedBuffer>, Range<usize>);

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.0.as_slice()[self.1.clone()]
    }
}
