//! The constants of an object: each content once, whatever number of variants and steps read it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hasher;

use rustc_hash::FxHasher;
use windlass_ir::Tensor;
use windlass_ir::loops::Program;

/// All constants, one after another, each aligned.
pub(super) struct Weights {
    pub bytes: Vec<u8>,
    little_endian: bool,
    /// Where contents of a [sample](sample) begin and end.
    known: HashMap<(usize, u64), Vec<(usize, usize)>>,
}

impl Weights {
    pub fn new(little_endian: bool) -> Weights {
        Weights { bytes: Vec::new(), little_endian, known: HashMap::new() }
    }

    /// Adds constants. Where each begins.
    pub fn add(&mut self, constants: &[Tensor]) -> Vec<usize> {
        if self.bytes.is_empty() {
            let aligned =
                |tensor: &Tensor| tensor.raw_bytes().len().next_multiple_of(Program::ALIGN as usize);
            self.bytes.reserve_exact(constants.iter().map(aligned).sum());
        }
        constants.iter().map(|tensor| self.place(&in_order(tensor, self.little_endian))).collect()
    }

    /// Where bytes are, added if they are new.
    fn place(&mut self, bytes: &[u8]) -> usize {
        let candidates = self.known.entry(sample(bytes)).or_default();
        let found = candidates.iter().find(|&&(begin, end)| self.bytes[begin..end] == *bytes);
        if let Some(&(begin, _)) = found {
            return begin;
        }
        let begin = self.bytes.len().next_multiple_of(Program::ALIGN as usize);
        self.bytes.resize(begin, 0);
        self.bytes.extend_from_slice(bytes);
        candidates.push((begin, self.bytes.len()));
        begin
    }
}

/// What tells most contents apart without reading all of them: how many bytes there are, and a hash of the first.
fn sample(bytes: &[u8]) -> (usize, u64) {
    let mut hasher = FxHasher::default();
    hasher.write(&bytes[..bytes.len().min(SAMPLE)]);
    (bytes.len(), hasher.finish())
}

const SAMPLE: usize = 1024;

/// A tensor's bytes as a machine that stores the low half of a word first, or last, has them.
pub(super) fn in_order(tensor: &Tensor, little_endian: bool) -> Cow<'_, [u8]> {
    let bytes = tensor.raw_bytes();
    if little_endian == cfg!(target_endian = "little") {
        return Cow::Borrowed(bytes);
    }
    let elements = bytes.chunks(tensor.dtype().size().max(1));
    Cow::Owned(elements.flat_map(|element| element.iter().rev().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_kept_once_and_aligned() {
        let constants =
            |values: &[u16]| -> Vec<Tensor> { values.iter().map(|&v| Tensor::scalar::<u16>(v)).collect() };
        let (first, second) = (constants(&[0x0102, 7, 0x0102]), constants(&[7, 9]));
        for (little_endian, bytes) in [(true, [2, 1]), (false, [1, 2])] {
            let mut weights = Weights::new(little_endian);
            assert_eq!(weights.add(&first), [0, 64, 0]);
            assert_eq!(weights.add(&second), [64, 128]);
            assert_eq!(weights.bytes.len(), 130);
            assert_eq!(weights.bytes[..2], bytes);
        }
    }
}
